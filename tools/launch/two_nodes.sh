#!/usr/bin/env bash
# Train on two machines. The same command on both, HOST being the name or address of the first:
#
#   tools/launch/two_nodes.sh HOST recipe=mislas_plot_inat data.root=DIR out=RUN [key=value ...]
#
# RUN should lie where both can write: after a restart either of them may hold rank 0. If a rank
# dies, both nodes start again from the last checkpoint. A node that was lost is replaced by giving
# the command anew on another one; with NODES=1:2 the other goes on alone meanwhile.
#
# Without a second machine, as an example, two nodes of one process each on this one:
#
#   tools/launch/two_nodes.sh loopback recipe=quickstart run.device=cpu
set -euo pipefail

host=$1
shift
# Where the nodes meet; a free port of the first node that the second can reach.
endpoint=$host:${PORT:-29400}
ranks=${RANKS:-gpu}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # see one_node.sh
export LTBENCH_CACHE=${LTBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ltbench} # on each node
# Otherwise a node that replaces another waits for an address that is no longer published
# (seen with PyTorch 2.15; see its issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# On machines with several networks, NCCL_SOCKET_IFNAME (GPUs) or GLOO_SOCKET_IFNAME (CPUs) may have
# to name one.

node() {
  python -m torch.distributed.run --nnodes="${NODES:-2}" --nproc-per-node="$ranks" \
    --max-restarts="${RESTARTS:-3}" --rdzv-backend=c10d --rdzv-endpoint="$endpoint" \
    --rdzv-id="${JOB:-ltbench}" -m ltbench run "$@"
}

if [ "$host" = loopback ]; then
  endpoint=127.0.0.1:${PORT:-29400}
  ranks=${RANKS:-1}
  node "$@" &
  second=$!
  node "$@" || status=$?
  wait "$second" || status=$?
  exit "${status:-0}"
fi
node "$@"

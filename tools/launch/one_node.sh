#!/usr/bin/env bash
# Train on all GPUs of this machine. If a rank dies, all start again from the last checkpoint.
#
#   tools/launch/one_node.sh recipe=mislas_plot_inat data.root=DIR [key=value ...]
#
# RANKS=2 tools/launch/one_node.sh ... run.device=cpu   takes two processes instead, here on CPUs.
set -euo pipefail

# PyTorch's threads of one rank: 1 where GPUs compute and loader processes (run.workers) use the
# cores; cores / ranks where CPUs compute.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Shards of a remote data.root are downloaded to here, once for all ranks: a fast local disk.
export LTBENCH_CACHE=${LTBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ltbench}

exec python -m torch.distributed.run --standalone --nproc-per-node="${RANKS:-gpu}" \
  --max-restarts="${RESTARTS:-3}" -m ltbench run "$@"

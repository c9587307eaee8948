#!/usr/bin/env bash
# Many nodes: the quickstart on two "nodes" of this machine, one process each, under torchrun.
# A minute on two cores, no network, no GPU:
#
#   tools/examples/many_nodes.sh
set -euo pipefail
launch=$(cd "$(dirname "$0")/../launch" && pwd)

# 1. Two nodes. On real ones the same script is started on both, with the name of the first instead
# of `loopback`; each then starts one process per GPU:
#   tools/launch/two_nodes.sh HOST recipe=mislas_plot_inat data.root=SHARDS out=RUN
# A folder for `out=` that both can write is the only thing they share. batch_size is that of all
# processes together, so the recipe stays as it is. MAX_STEPS keeps this example short.
"$launch/two_nodes.sh" loopback recipe=quickstart run.device=cpu \
  run.max_steps="${MAX_STEPS:-60}" out=runs/two_nodes

# 2. What was it run on? The record says how many processes took part, and where that changed.
python - << 'PYTHON'
from pathlib import Path
from ltbench.records.record import Record

facts = Record.load(Path("runs/two_nodes/record.json")).execution
print("processes", facts.ranks, "images each", facts.per_rank_batch, "threads", facts.threads)
PYTHON

# 3. The same on one. Losses, class weights and PLOT's objectives are sums over all processes, so one
# process computes the same but for rounding, and for batch statistics, which `run.batchnorm` decides:
# local to a process, or `sync`.
ltbench run recipe=quickstart run.device=cpu run.max_steps="${MAX_STEPS:-60}" out=runs/one_node

# 4. Loss of a process or a node. Give the same command again: it goes on from the last checkpoint
# (every ten minutes, `run.save_minutes`), also with another number of processes. torchrun does it by
# itself, up to RESTARTS times. On a cluster with Slurm: sbatch tools/launch/slurm.sbatch ...

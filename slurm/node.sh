#!/usr/bin/env bash
# srun starts this once on each node: one launcher, which starts the node's ranks.
set -euo pipefail
trap "" USR1 USR2 # they would kill the launcher; the ranks take them for themselves
if [ -n "${SAVES_ON_TERM-}" ]; then
    trap "" TERM # the launcher of one rank would not wait for it to save; that of several takes the signal nevertheless
fi
threads=$((SLURM_CPUS_ON_NODE / RANKS_PER_NODE))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300} # a stop finishes the step and saves
export ZEROTUNE_RANKS=$RANKS                                                 # what the ranks must find themselves to be
exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"

#!/usr/bin/env bash
# srun runs this once on each node. It starts one launcher, which starts the ranks of the node.
set -euo pipefail
trap "" USR1 USR2 # they would kill the launcher; the ranks handle these signals themselves
if [ -n "${SAVES_ON_TERM-}" ]; then
    trap "" TERM # a launcher of one rank would not wait for the save; one of several ranks handles the signal anyway
fi
threads=$((SLURM_CPUS_ON_NODE / RANKS_PER_NODE))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300} # time for a stop to finish the step and save
export ZEROTUNE_RANKS=$RANKS                                                 # the number of ranks, which the ranks verify
exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"

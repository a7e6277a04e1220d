#!/usr/bin/env bash
# Merge a run into one model folder: sbatch slurm/merge.sh runs/NAME runs/NAME/merged [...]
# See docs/slurm.md.
#SBATCH --nodes=1
#SBATCH --requeue
#SBATCH --open-mode=append
[ -f slurm/common.sh ] || { echo "slurm: submit from ZeroTune's folder, or with sbatch --chdir=FOLDER" >&2; exit 64; }
. slurm/common.sh
on_first_node python -m train.merge "$@"

#!/usr/bin/env bash
# Train once for each line of a file of overrides, as a job array:
#   sbatch --array=1-8 [--gpus-per-node=1 ...] slurm/sweep.sh [--accelerate NAME] recipes/NAME.yaml overrides.txt
# A line is words as xargs reads them: quotes group, nothing is expanded. Line 3 trains in the recipe's run.folder + "-3".
# See docs/slurm.md.
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

warned=
trap 'warned=yes' USR1
[ -f slurm/common.sh ] || { echo "slurm: submit from ZeroTune's folder, or with sbatch --chdir=FOLDER" >&2; exit 64; }
. slurm/common.sh

chosen=()
if [ "${1-}" = --accelerate ]; then
    chosen=("$1" "${2-}")
    shift 2
fi
recipe=${1-} file=${2-}
[ -f "$file" ] || refuse "there is no file $file: sbatch --array=1-N slurm/sweep.sh recipes/NAME.yaml FILE"
lines=$(grep -c '' "$file") task=${SLURM_ARRAY_TASK_ID-}
[ -n "$task" ] || refuse "a sweep is a job array: sbatch --array=1-$lines slurm/sweep.sh ..."
line=$(sed -n "${task}p" "$file")
[ -n "$line" ] || refuse "$file has no line $task: sbatch --array=1-$lines slurm/sweep.sh ..."
mapfile -d '' -t words < <(xargs -r printf '%s\0' <<<"$line")

answer=$(on_first_node python -m train.run_folder --config "$recipe" "${words[@]}" && echo .) || exit 64
set -- "${chosen[@]}" "$recipe" "${words[@]}" --run.folder "${answer%$'\n'.}-$task"
. slurm/job.sh

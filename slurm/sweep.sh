#!/usr/bin/env bash
# Train once for each line of a file of overrides, as a job array:
#   sbatch --array=1-8 [--gpus-per-node=1 ...] slurm/sweep.sh [--accelerate NAME] recipes/NAME.yaml overrides.txt
# A line is split into words as by xargs: quotes group words, nothing is expanded. Line 3 trains in run.folder + "-3".
# See docs/slurm.md.
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

warned=
trap 'warned=yes' USR1
[ -f slurm/common.sh ] || { echo "slurm: submit from ZeroTune's folder, or with sbatch --chdir=FOLDER" >&2; exit 64; }
. slurm/common.sh

take_accelerate "$@"
recipe=${WORDS[0]-} file=${WORDS[1]-}
[ -f "$file" ] || refuse "there is no file $file: sbatch --array=1-N slurm/sweep.sh recipes/NAME.yaml FILE"
[ -s "$file" ] || refuse "$file is empty: write one line of overrides for each run"
lines=$(sed -n '$=' "$file") task=${SLURM_ARRAY_TASK_ID-}
[ -n "$task" ] || refuse "a sweep needs a job array: sbatch --array=1-$lines slurm/sweep.sh ..."
if [ "$task" -lt 1 ] || [ "$task" -gt "$lines" ]; then
    refuse "$file has no line $task: sbatch --array=1-$lines slurm/sweep.sh ..."
fi
line=$(sed -n "${task}p" "$file")
xargs <<<"$line" >/dev/null 2>&1 || refuse "$file:$task: a quote is not closed; write \\' or \\\" for a literal quote"
mapfile -d '' -t words < <(xargs -r printf '%s\0' <<<"$line")
[ "${#words[@]}" != 0 ] || refuse "$file:$task: an empty line; every line describes a run"

ask on_first_node python -m train.run_folder --config "$recipe" "${words[@]}" || exit 64
set -- ${ACCELERATE:+"--accelerate=$ACCELERATE"} "$recipe" "${words[@]}" --run.folder "$ANSWER-$task"
. slurm/job.sh

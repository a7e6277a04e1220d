#!/usr/bin/env bash
# Train once for each line of a file of overrides, as a job array:
#   sbatch --array=1-8 [--gpus-per-node=1 ...] slurm/sweep.sh [--accelerate NAME] recipes/NAME.yaml overrides.txt
# A line is split into words as by xargs: quotes group words, nothing is expanded. Line 3 trains in run.folder + "-3".
# With --space, the tasks of the array are the workers of one search (docs/search.md), each on one node:
#   sbatch --array=1-4 [--gpus-per-node=1 ...] slurm/sweep.sh [--accelerate NAME] recipes/NAME.yaml --space SPACE.yaml ...
# See docs/slurm.md.
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

warned=
trap 'warned=yes' USR1
[ -f slurm/common.sh ] || { echo "slurm: submit from ZeroTune's folder, or with sbatch --chdir=FOLDER" >&2; exit 64; }
. slurm/common.sh

# One worker of a search. A warning makes the file that it stops for: its trials save, and the task is requeued.
search() {
    local config launcher=() stop
    stop=$PWD/slurm-$(job).stop
    [ "$SLURM_JOB_NUM_NODES" = 1 ] ||
        refuse "a trial of a search runs on one node: use --nodes=1 and more tasks (--array=1-N), which share the trials"
    count_ranks
    if [ "$RANKS" != 1 ] || [ -n "$ACCELERATE" ]; then
        config=$(accelerate_config "$ACCELERATE")
        launcher=(--accelerate "$config" --num_processes "$RANKS")
    fi
    if [ -n "$warned" ]; then
        refuse_short_limit "one step"
        requeue "warned before the start"
    fi
    rm -f -- "$stop" # left by a start that was killed
    # shellcheck disable=SC2064 # the name of now
    trap "INTERRUPTED=yes; warned=yes; touch -- $(printf %q "$stop"); say 'warned: the trials save and stop'" USR1
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_ON_NODE > RANKS ? SLURM_CPUS_ON_NODE / RANKS : 1))}
    on_every_node --kill-on-bad-exit=1 --wait=0 "${SRUN_OPTIONS[@]}" "${CONTAINER[@]}" \
        python -m train.search "${WORDS[@]}" "${launcher[@]}" --stop_file "$stop" &
    await $!
    trap "" USR1
    rm -f -- "$stop"
    if [ "$CODE" != 0 ]; then
        on_every_node true || node_lost
        say "failed, not requeued. The cause is the first error above"
        exit "$CODE"
    fi
    [ -z "$warned" ] || requeue "stopped and saved"
    exit 0
}

take_accelerate "$@"
case " ${WORDS[*]} " in
    *" --space "* | *" --space="*) search ;;
esac
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

#!/usr/bin/env bash
# Train on one GPU or many nodes. A run that is warned of its time limit or a preemption saves, and resumes later.
#   sbatch [--nodes=2 --gpus-per-node=8 ...] slurm/job.sh [--accelerate NAME] recipes/NAME.yaml [--optim.learning_rate 1e-4 ...]
# See docs/slurm.md.
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

folder=
warned=${warned-}
asked=
# shellcheck disable=SC2317 # for the trap
on_warning() {
    INTERRUPTED=yes
    warned=yes
    [ -z "$folder" ] || [ -n "$asked" ] || ask_to_stop
}
# The run obeys any STOP file. A file made by a person is kept: it means that the job must not be restarted.
ask_to_stop() {
    if (set -C && mkdir -p -- "$folder" && echo "by job $(job)" >"$folder/STOP") 2>/dev/null; then
        asked=yes
        say "warned: the run saves and stops"
    elif [ -e "$folder/STOP" ]; then
        say "warned: a STOP file exists already"
    else
        say "warned, but $folder/STOP cannot be written: the run continues until it is killed"
    fi
}
trap on_warning USR1 # first of all, because a short job is warned as it starts

[ -f slurm/common.sh ] || { echo "slurm: submit from ZeroTune's folder, or with sbatch --chdir=FOLDER" >&2; exit 64; }
. slurm/common.sh

# Removes a STOP file made by a script: of this job, or of one that no longer runs. Succeeds if there was one.
forget_stop() {
    local by
    by=$(sed -n 's/^by job \([0-9_]*\)$/\1/p' "$folder/STOP" 2>/dev/null) || return
    if [ "$by" = "$(job)" ]; then
        rm -f -- "$folder/STOP"
    elif [ -n "$by" ] && [ "$(squeue --noheader --jobs="$by" --format=%T 2>/dev/null)" != RUNNING ]; then
        rm -f -- "$folder/STOP"
    else
        return 1
    fi
}

# The newest checkpoint, from which the next start resumes.
step_reached() {
    local found
    found=$(printf '%s\n' "$folder"/checkpoints/step-* | grep -Eo 'step-[0-9]+$' | sort -V | tail -n 1) || true
    printf '%s' "${found:-step-000000}"
}

# Succeeds if status.json has this entry, and was written by this start of this job.
says() {
    grep -qxF -- " \"job\": \"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}\"," "$folder/status.json" &&
        grep -qxF -- " $1," "$folder/status.json"
} 2>/dev/null

take_accelerate "$@"
set -- "${WORDS[@]}"
[ -f "${1-}" ] || refuse "there is no recipe ${1-}: sbatch slurm/job.sh [--accelerate NAME] recipes/NAME.yaml [overrides]"

count_ranks
config=$(accelerate_config "$ACCELERATE")
ask on_first_node python -m train.run_folder --config "$@" || exit 64 # a bad recipe, before any rank starts
folder=$ANSWER
forget_stop || true # left by a start that was killed before it had saved
if [ -n "$warned" ]; then
    refuse_short_limit "one step"
    requeue "warned before the start"
fi

before=$(step_reached)
SAVES_ON_TERM=yes launch "$config" train/main.py --config "$@" &
await $!
trap "" USR1            # too late for a stop
! forget_stop || asked= # the file was still there, so it did not stop the run

# From any start: a start that finds the run finished leaves status.json as it is.
if [ "$CODE" = 0 ] && grep -qxF ' "state": "finished",' "$folder/status.json" 2>/dev/null; then
    exit 0
elif says '"state": "preempted"'; then
    if [ -z "$asked" ] && says '"reason": "STOP file"'; then
        say "stopped by a STOP file that this job did not write: not requeued. The same command resumes from there"
        exit "$NOT_FINISHED"
    fi
    [ -z "$warned" ] || [ "$(step_reached)" != "$before" ] || refuse_short_limit "one step"
    requeue "stopped and saved"
fi
on_every_node true || node_lost
say "failed, not requeued. The cause is the first error above"
exit "$((CODE > 0 ? CODE : 1))"

#!/usr/bin/env bash
# Train, on one GPU or many nodes. Warned before its limit or a preemption, the run saves, and the job goes on later.
#   sbatch [--nodes=2 --gpus-per-node=8 ...] slurm/job.sh [--accelerate NAME] recipes/NAME.yaml [--optim.learning_rate 1e-4 ...]
# See docs/slurm.md.
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

folder=
warned=${warned-}
# shellcheck disable=SC2317 # for the trap
on_warning() {
    INTERRUPTED=yes
    warned=yes
    [ -z "$folder" ] || ask_to_stop
}
ask_to_stop() {
    say "warned: the run saves and stops"
    mkdir -p -- "$folder" && touch -- "$folder/STOP"
}
trap on_warning USR1 # first of all: a short job is warned as it starts

[ -f slurm/common.sh ] || { echo "slurm: submit from ZeroTune's folder, or with sbatch --chdir=FOLDER" >&2; exit 64; }
. slurm/common.sh

accelerate=
if [ "${1-}" = --accelerate ]; then
    accelerate=${2-}
    shift 2
fi
[ -f "${1-}" ] || refuse "there is no recipe ${1-}: sbatch slurm/job.sh [--accelerate NAME] recipes/NAME.yaml [overrides]"

count_ranks
config=$(accelerate_config "$accelerate")
answer=$(on_first_node python -m train.run_folder --config "$@" && echo .) || exit 64 # a bad recipe, before any rank starts
folder=${answer%$'\n'.}
[ -z "${SLURM_RESTART_COUNT-}" ] || rm -f -- "$folder/STOP" # from before a node was lost
[ -z "$warned" ] || ask_to_stop

launch "$config" train/main.py --config "$@" &
await $!
[ -z "$warned" ] || rm -f -- "$folder/STOP" # where it came too late

# A line of status.json, if this start of this job has written it.
says() {
    grep -qxF -- " \"job\": \"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}\"," "$folder/status.json" &&
        grep -qxF -- " $1," "$folder/status.json"
} 2>/dev/null

if says '"state": "finished"' && [ "$CODE" = 0 ]; then
    exit 0
elif says '"state": "preempted"'; then
    if [ -z "$warned" ] && says '"reason": "STOP file"'; then
        say "stopped by a STOP file that somebody else made: not requeued. The same command continues from there"
        exit "$NOT_FINISHED"
    fi
    requeue "stopped and saved"
fi
on_every_node true || node_lost
say "failed: the first error above counts. Not requeued"
exit "$((CODE > 0 ? CODE : 1))"

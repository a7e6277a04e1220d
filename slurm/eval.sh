#!/usr/bin/env bash
# Evaluate on all GPUs of the job. A restart computes only the answers that are still missing.
#   sbatch [--nodes=2 --gpus-per-node=8 ...] slurm/eval.sh --model runs/NAME/merged --tasks gsm8k,cmmlu [...]
# See docs/slurm.md.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

warned=
launched=
# shellcheck disable=SC2317 # for the trap
on_warning() {
    INTERRUPTED=yes
    warned=yes
    [ -z "$launched" ] || end_step &
}
# Repeats the signal: the first one may arrive before the step exists.
end_step() {
    while kill -0 "$launched" 2>/dev/null; do
        scancel --signal=TERM "$(job)" || true # the step, not this script
        sleep 5
    done
}
trap on_warning USR1

[ -f slurm/common.sh ] || { echo "slurm: submit from ZeroTune's folder, or with sbatch --chdir=FOLDER" >&2; exit 64; }
. slurm/common.sh

count_ranks
config=$(accelerate_config "")
ask on_first_node python -m eval.validate "$@" || exit 64 # invalid options, before any rank starts
journal=$ANSWER                                        # empty if the next start would not read it
if [ -n "$warned" ]; then
    refuse_short_limit "one answer"
    requeue "warned before the start"
fi
# Size in bytes of the answers that the next start would find.
answered() {
    [ -z "$journal" ] || { cat -- "$journal"/*.jsonl 2>/dev/null || true; } | wc -c
}

before=$(answered)
launch "$config" eval/main.py "$@" &
launched=$!
[ -z "$warned" ] || end_step & # the warning came in between
await "$launched"
[ "$CODE" != 0 ] || exit 0
if [ -n "$warned" ]; then
    [ "$(answered)" != "$before" ] || refuse_short_limit "one answer"
    requeue "warned; the answers so far are kept"
fi
on_every_node true || node_lost
say "failed, not requeued. The cause is the first error above"
exit "$CODE"

#!/usr/bin/env bash
# Train, merge and evaluate: three jobs, each started when the one before has succeeded.
#   bash slurm/chain.sh [--nodes=2 --gpus-per-node=8 ...] [--accelerate NAME] recipes/NAME.yaml [overrides] -- --tasks gsm8k [...]
# Write each option of sbatch as one word. The merge uses one node. See docs/slurm.md.
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit
. slurm/common.sh

options=() chosen=() training=()
while [[ ${1-} == -* ]]; do
    take_accelerate "$@"
    if [ -n "$ACCELERATE" ]; then
        chosen=("--accelerate=$ACCELERATE")
        set -- "${WORDS[@]}"
    else
        options+=("$1")
        shift
    fi
done
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    training+=("$1")
    shift
done
if [ "${#training[@]}" = 0 ] || [ $# -lt 2 ]; then
    refuse "bash slurm/chain.sh [sbatch's options] recipes/NAME.yaml [overrides] -- --tasks NAME [evaluation options]"
fi
shift
[ -f "${training[0]}" ] || [[ ${training[0]} == *.y*ml ]] || # train.run_folder suggests similar recipe names
    refuse "there is no recipe ${training[0]}; sbatch's options come first, each as one word (--nodes=2)"

ask "${CONTAINER[@]}" python -m train.run_folder --config "${training[@]}" || exit 64
folder=$ANSWER
# Without this check a mistake would be reported only after the training.
ask "${CONTAINER[@]}" python -m eval.validate --model "$folder/merged" --out "$folder/evaluation" "$@" || exit 64

# Sets ID to the job's number. If one of the three jobs is rejected, those before it are cancelled.
submitted=()
submit() {
    if ! ID=$(sbatch --parsable --kill-on-invalid-dep=yes "${options[@]}" "$@"); then
        [ "${#submitted[@]}" = 0 ] || scancel "${submitted[@]}"
        refuse "sbatch refused a job of the chain, for the reason above; cancelled: ${submitted[*]:-nothing}"
    fi
    ID=${ID%%;*}
    submitted+=("$ID")
}
submit slurm/job.sh "${chosen[@]}" "${training[@]}" --merge.at_end false
submit --dependency="afterok:$ID" --nodes=1 slurm/merge.sh "$folder" "$folder/merged"
submit --dependency="afterok:$ID" slurm/eval.sh --model "$folder/merged" --out "$folder/evaluation" "$@"
echo "train: job ${submitted[0]}, merge: job ${submitted[1]}, evaluate: job ${submitted[2]}"

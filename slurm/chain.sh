#!/usr/bin/env bash
# Train, merge and evaluate: three jobs, each started by the success of the one before.
#   bash slurm/chain.sh [--nodes=2 --gpus-per-node=8 ...] [--accelerate=NAME] recipes/NAME.yaml [overrides] -- --tasks gsm8k [...]
# sbatch's options are written as one word each; the merge takes one node. See docs/slurm.md.
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit
. slurm/common.sh

options=() chosen=() training=()
while [[ ${1-} == -* ]]; do
    case $1 in
        --accelerate=*) chosen=(--accelerate "${1#*=}") ;;
        *) options+=("$1") ;;
    esac
    shift
done
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    training+=("$1")
    shift
done
if [ "${#training[@]}" = 0 ] || [ $# -lt 2 ]; then
    refuse "bash slurm/chain.sh [sbatch's options] recipes/NAME.yaml [overrides] -- --tasks NAME [evaluation options]"
fi
shift

answer=$("${CONTAINER[@]}" python -m train.run_folder --config "${training[@]}" && echo .) || exit 64
folder=${answer%$'\n'.}

submit() {
    local id
    id=$(sbatch --parsable --kill-on-invalid-dep=yes "${options[@]}" "$@")
    printf '%s' "${id%%;*}"
}
train=$(submit slurm/job.sh "${chosen[@]}" "${training[@]}" --merge.at_end false)
merge=$(submit --dependency="afterok:$train" --nodes=1 slurm/merge.sh "$folder" "$folder/merged")
evaluate=$(submit --dependency="afterok:$merge" slurm/eval.sh --model "$folder/merged" --out "$folder/evaluation" "$@")
echo "train: job $train, merge: job $merge, evaluate: job $evaluate"

#!/usr/bin/env bash
# make demo: SmolLM2-135M learns to turn a customer's message into one line of a fixed form; both models are then
# evaluated on held-out messages. A shorter run, or another model:
# MODEL=folder RUN=folder ROWS=8 bash examples/demo.sh --duration.max_steps 5
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="${VENV:-.venv}/bin"
base="${MODEL:-.cache/models/SmolLM2-135M-Instruct}"
run="${RUN:-runs/demo}"

cores=$("$bin/python" -c "import os, psutil; print(psutil.cpu_count(logical=False) or os.cpu_count())")
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cores}"
config=accelerate_configs/cpu.yaml
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then config=accelerate_configs/one_gpu.yaml; fi

if [ -z "${MODEL:-}" ]; then "$bin/python" examples/get_smollm2.py >/dev/null; fi
started=$SECONDS
"$bin/accelerate" launch --config_file "$config" train/main.py --config recipes/demo.yaml \
  --model.path "$base" --run.folder "$run" "$@"
"$bin/python" -m eval --model "$run/merged" --baseline "$base" --tasks perplexity,qa \
  --data examples/data/demo_heldout.jsonl --max_rows "${ROWS:-0}" --max_new_tokens 40 --out "$run/eval"
cat <<END

Done in $((SECONDS - started)) s.
Report:       $run/report.md   (evaluation: $run/eval)
Merged model: $run/merged
Curves:       $bin/tensorboard --logdir $run
END

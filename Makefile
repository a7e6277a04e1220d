# make demo   fine-tune real weights and compare before and after
# make test   everything that must hold
# Each makes .venv by itself; only Python 3.11, make and a C++ compiler must be there.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv demo experiment-language-models experiment-numbers test quick lint format types docs unit test-faults soak test-slurm test-gpu benchmark clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/requirements.lock
SMOLLM2 := .cache/models/SmolLM2-135M-Instruct
WORKERS ?= 2
FAULTS := tests/faults tests/slurm tests/process/test_merge_kill.py tests/process/test_eval_ranks.py tests/unit/train/test_merge.py \
  tests/unit/train/test_label_encoder.py tests/unit/train/test_lock.py tests/unit/eval/test_calculator.py tests/unit/eval/test_evaluation.py \
  tests/unit/inference/test_model.py tests/unit/test_slurm_words.py

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-27s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY) ## .venv with the pinned packages of requirements.lock

# A copy of the lock inside .venv says what is installed; an interrupted installation leaves none.
# --use-pep517: an older pip would run the setup.py of a package without a wheel, whose own requirements then go missing.
$(READY): requirements.lock
	@if ! cmp -s $< $@; then \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    || { echo "Python 3.11 or newer is needed; say where it is: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	  test -x $(RUN)/python || "$(PYTHON)" -m venv $(VENV) || exit 1; \
	  echo "Installing the pinned packages into $(VENV): once, a few minutes ..."; \
	  $(RUN)/python -m pip install -qq --use-pep517 --disable-pip-version-check --progress-bar off -r $< || exit 1; \
	fi
	@cp $< $@

demo: $(READY) ## fine-tune SmolLM2-135M with LoRA, merge, compare before and after (5 minutes on 2 cores)
	@VENV=$(VENV) bash examples/demo.sh

experiment-language-models: $(READY) ## RNN, LSTM and Transformer from scratch, compared on one page (some minutes on 2 cores)
	@$(RUN)/python examples/language_models.py

experiment-numbers: $(READY) ## numbers as values and as digits, compared on one page (minutes on 2 cores)
	@$(RUN)/python examples/numbers_experiment.py

test: lint types docs unit ## lint, types, the documentation's links and all tests (half an hour on 2 cores)

quick: $(READY) lint ## lint, and the unit tests that start no process (2 minutes on 2 cores)
	@$(RUN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow" --no-processes tests/unit

lint: $(READY) ## ruff: rules and formatting
	@$(RUN)/ruff check --quiet && $(RUN)/ruff format --quiet --check && echo "ruff: clean"

format: $(READY) ## let ruff fix what it can
	@$(RUN)/ruff check --fix; $(RUN)/ruff format

types: $(READY) ## mypy --strict over train, eval and zerotune
	@$(RUN)/mypy --no-error-summary && echo "mypy: clean"

docs: $(READY) ## the documentation as a site; fails on a dead link or anchor
	@$(RUN)/python -m sphinx -b html -W --keep-going -q -E -c docs/site -d build/doctrees . build/docs \
	  && echo "docs: build/docs/index.html"

unit: $(READY)
	@$(RUN)/python -m pytest -q -n $(WORKERS) --dist loadfile --ignore tests/slurm

test-faults: $(READY) ## kills, signals, full disks: the whole fault suite (its list: CONTRIBUTING.md)
	@$(RUN)/python -m pytest -q $(FAULTS)

soak: $(READY) ## 200 random kills; the final weights must be those of an undisturbed run (ten minutes)
	@$(RUN)/python -m tests.faults.soak --kills 200

test-slurm: $(READY) ## a real SLURM cluster on this machine (needs slurm-wlm and munge, else says so)
	@$(RUN)/python -m pytest -q tests/slurm

test-gpu: $(READY) ## the equalities on CUDA; skipped with the reason where there is none
	@$(RUN)/python -m pytest -q -m gpu

benchmark: $(READY) ## side by side with TRL and lm-evaluation-harness, and the time to the first step; makes their environments
	@for file in benchmarks/*_throughput.py benchmarks/time_to_first_step.py; do $(RUN)/python $$file || exit 1; done

clean: ## remove runs and caches, keep .venv and fetched weights
	@rm -rf runs build .mypy_cache .ruff_cache .pytest_cache

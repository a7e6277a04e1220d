"""Numbers as values against numbers as digits: two models learn the same rows, and predict the same numbers.

    make experiment-numbers      # a small Transformer from scratch on the published sets
    python examples/numbers_experiment.py --study reading --model.path .cache/models/SmolLM2-135M-Instruct    # LoRA

Makes the sets (examples/make_numbers.py), trains both models for the same epochs, and evaluates the last checkpoint of
each on one page, beside the untrained model or the base model. A digit is a token, so the model of digits takes more
steps. `--number_token_weight 0.3` adds a model with the number token loss. In the reading study all models are measured
on ordinary text too.
Further options belong to the recipe of the study. The same command continues what was interrupted (docs/numbers.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the project can be imported without installation

from examples import make_numbers
from examples.commands import ROOT, run
from train.recipe import parse


class Study(NamedTuple):
    """recipe: of the model with values. train: the set that it learns. validation: for curves, and to calibrate the
    intervals. sets: those that it is asked for.
    """

    recipe: str
    train: str
    validation: str
    sets: tuple[str, ...]


STUDIES = {
    "published": Study("recipes/numeric.yaml", "train", "validation", ("plain", "questions", "extreme", "boundary")),
    "reading": Study(
        "recipes/numeric-lora.yaml",
        "reading_train",
        "reading_validation",
        ("reading", "reading_far", "arithmetic", "words", "questions"),
    ),
}

UNTRAINED = ["--duration.max_steps", "1", "--optim.learning_rate", "1e-30"]  # a run that changes nothing


def main() -> int:
    given, options = arguments()
    study, out = STUDIES[given.study], Path(given.out or ROOT / "runs/numbers" / given.study).resolve()
    data = out / "data"
    make_numbers.write(data, given.rows)
    shared = [
        "--data.train.0.path", str(data / f"{study.train}.jsonl"),
        "--data.validation.0.path", str(data / f"{study.validation}.jsonl"),
        "--merge.checkpoint", "last",  # none is chosen by rows that are evaluated
        *options,
    ]  # fmt: skip
    base = parse(["--config", str(ROOT / study.recipe), *shared]).model
    digits = ["--objective", "causal_lm"]
    models = {"untrained": UNTRAINED} if base.family else {}
    models["digits"] = digits
    if given.number_token_weight:
        weight = ["--causal_lm.number_token_weight", str(given.number_token_weight)]
        models["digits-number-token-loss"] = [*digits, *weight]
    models["values"] = []
    for name, own in models.items():
        run("train.cli", "train", study.recipe, "--run.folder", str(out / name), *shared, *own)
    evaluate(out, study, [] if base.family else [base.path], list(models), given.text)
    print(f"Report: {out / 'eval' / 'report.html'}")
    return 0


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, default="published")
    parser.add_argument("--rows", type=int, default=200, help="of an evaluation set; training sets are larger")
    parser.add_argument("--number_token_weight", type=float, default=0.0)
    parser.add_argument("--text", default=str(ROOT / "examples/data/corpus_heldout.jsonl"), help="ordinary text")
    parser.add_argument("--out", help="default: runs/numbers/STUDY")
    return parser.parse_known_args()


def evaluate(out: Path, study: Study, base: Sequence[str], models: Sequence[str], text: str) -> None:
    """All models in one report; with a base model, which is the baseline, on ordinary text too."""
    data = {"numeric": [str(out / "data" / f"{name}.jsonl") for name in study.sets]} | (
        {"perplexity": text} if base else {}
    )
    options = {
        "model": [*base, *(str(out / name / "merged") for name in models)],
        "tasks": list(data),
        "data": data,
        **({} if base else {"template": "raw"}),  # models from scratch have none
        "precision": "fp32",  # bfloat16 has three digits
        "out": str(out / "eval"),
    }
    (out / "eval.yaml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    run("eval", "--config", out / "eval.yaml")


if __name__ == "__main__":
    sys.exit(main())

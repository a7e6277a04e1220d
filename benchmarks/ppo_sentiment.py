"""PPO toward positive film reviews with real weights and data, once with and once without a penalty for repetition.

    python benchmarks/ppo_sentiment.py [--data FOLDER] [--rollouts 12]

The reward is the logit of a sentiment classifier (all-MiniLM-L6-v2, trained here on 800 reviews of imdb/). The policy,
SmolLM2-135M with LoRA, answers the first 8 tokens of reviews. Rewards before and after are those of greedy answers to
the 200 reviews that are held out. The last line of each run is `NAME: rise=... noise=...`: noise is the standard error
of the mean reward before training; the target is a rise of two of them. The exit code is 1 below it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ours

ROOT = Path(__file__).resolve().parents[1]
ROLLOUT = 32  # prompts
PENALTIES: dict[str, list[dict[str, Any]]] = {
    "with penalty": [{"kind": "repetition", "weight": -4.0}],
    "without": [],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ZEROTUNE_DATA", str(ROOT.parent / "shared" / "data")))
    parser.add_argument("--rollouts", type=int, default=12)
    given = parser.parse_args()
    source = Path(given.data) / "imdb"
    if not source.is_dir():
        print(f"skipped: {source} is not there; give --data or ZEROTUNE_DATA")
        return 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zerotune-benchmark-") as name:
        folder = Path(name)
        train, held_out = split(next(source.glob("*.csv")), folder)
        judge = classifier(train, held_out, folder)
        rises = [run(title, judge, train, held_out, folder, given.rollouts) for title in PENALTIES]
    print(f"minutes={(time.monotonic() - start) / 60:.1f} target_minutes=30")
    return 0 if all(rises) else 1


def split(table: Path, folder: Path) -> tuple[Path, Path]:
    """The published split: reviews to train on, and those that are held out."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    files = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, valid in zip(files, ("False", "True"), strict=True):
        chosen = [{"text": row["text"], "label": row["label"]} for row in rows if row["is_valid"] == valid]
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return files


def classifier(train: Path, held_out: Path, folder: Path) -> Path:
    """The merged sentiment classifier; it reads the first 96 tokens, as answers are short."""
    model = script("examples/get_minilm.py").split("\n")[-2]
    trainer(
        "sequence_classification", model, train, held_out, folder / "classifier", "labelled",
        {"data.max_length_tokens": 96, "batch.tokens_per_step": 2048, "batch.tokens_per_micro_batch": 2048,
         "optim.learning_rate": 2e-4, "duration.max_epochs": 3, "head.dropout": 0.0},
    )  # fmt: skip
    return folder / "classifier" / "merged"


def run(title: str, judge: Path, train: Path, held_out: Path, folder: Path, rollouts: int) -> bool:
    """One run of PPO, its table, and whether the reward has risen enough."""
    model = str(ours.smollm2())
    reward = [{"kind": "model", "path": str(judge), "label": "positive", "name": "sentiment"}]
    reward += PENALTIES[title]
    out = folder / title.replace(" ", "-")
    trainer(
        "ppo", model, train, held_out, out, "text",
        {"ppo.reward": json.dumps(reward), "ppo.prompt_tokens": 8, "ppo.response_tokens": 24,
         "ppo.rollout_prompts": ROLLOUT, "ppo.epochs": 4, "ppo.kl_weight": 0.02, "tuning.kind": "lora",
         "data.max_length_tokens": 64, "optim.learning_rate": 3e-4, "optim.schedule": "constant",
         "optim.warmup_steps": 0, "duration.max_steps": 4 * rollouts, "validation.every_steps": 4 * rollouts,
         "checkpoint.every_steps": 4 * rollouts, "merge.at_end": "false"},
    )  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    looks = [line for line in lines if "validation/reward" in line]
    before, after = looks[0], looks[-1]
    print(f"\n{title}: held-out prompts, greedy answers{'before':>16}{'after':>10}")
    for name in ("reward_sentiment", "reward_deviation", "kl", "repetition", "response_tokens", "finished"):
        print(f"  {name:40}{before[f'validation/{name}']:12.3f}{after[f'validation/{name}']:10.3f}")
    print(
        "  reward by rollout: "
        + " ".join(f"{line['rollout/reward']:.2f}" for line in lines if "rollout/reward" in line)
    )
    count = sum(1 for _ in held_out.open(encoding="utf-8"))
    noise = before["validation/reward_deviation"] / count**0.5
    rise = after["validation/reward"] - before["validation/reward"]
    print(f"{title}: rise={rise:.3f} noise={noise:.3f} target={2 * noise:.3f}", flush=True)
    return bool(rise >= 2 * noise)


def trainer(
    objective: str, model: str, train: Path, held_out: Path, out: Path, form: str, options: dict[str, Any]
) -> None:
    """`train/main.py` as a user calls it."""
    given = {
        "objective": objective, "run.folder": out, "model.path": model,
        "data.train": json.dumps([{"path": str(train), "format": form}]),
        "data.validation": json.dumps([{"path": str(held_out), "format": form}]), **options,
    }  # fmt: skip
    script("train/main.py", *(word for name, value in given.items() for word in (f"--{name}", str(value))), shown=True)


def script(path: str, *words: str, shown: bool = False) -> str:
    """A script of the project; what it printed, or nothing where that was shown."""
    out = None if shown else subprocess.PIPE
    done = subprocess.run([sys.executable, str(ROOT / path), *words], check=True, cwd=ROOT, stdout=out, text=True)
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())

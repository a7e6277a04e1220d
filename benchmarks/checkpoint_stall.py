"""What a checkpoint costs training: written while it goes on, against written while it waits.

    python benchmarks/checkpoint_stall.py [--repeats 3] [--steps 12] [--tokens 256] [--threads 1]
    python benchmarks/checkpoint_stall.py --tiny

Full fine-tuning of SmolLM2-135M in float32, AdamW, one process: weights and two moments, 1.6 GB in each checkpoint.
By default it computes with one thread, so that a core is left for the write, as beside a GPU. Each run saves every
fourth step, so that a write has four steps to end in; the two kinds of run alternate. All is read from what any run
leaves: the times and speeds in metrics.jsonl and the times of the manifests. A save costs the time that training
stands still and what the step after it takes longer. The last line is `ratio=... target=...`; the exit code is 1
below the target. `--tiny` takes a tiny model, to try it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ours

ROOT = Path(__file__).resolve().parents[1]
TARGET = 3.0
EVERY = 4  # steps between two saves
WORDS = (
    "the a of to model data train step learn word answer question long short river blue time people work day".split()
)


@dataclass(frozen=True)
class Run:
    """Seconds. first: of the first save, which makes room for the copy as well; later: of the others but the last."""

    first: float
    later: tuple[float, ...]
    committed: float  # from the end of a step until its checkpoint is listed, median
    step: float  # of the steps after a save, while a checkpoint may be written, median
    peak_gb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of a run; the last save is left out: nothing goes on")
    parser.add_argument("--tokens", type=int, default=256, help="of a step")
    parser.add_argument("--threads", type=int, default=1, help="that training computes with")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if given.steps < 3 * EVERY:
        parser.error(f"--steps: at least {3 * EVERY}, for a first save, a later one and one at the end")
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    model = ROOT / "examples/models/tiny-qwen2" if given.tiny else ours.smollm2()
    results: dict[bool, list[Run]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="zerotune-benchmark-") as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", 4 * given.steps)
        for repeat in range(given.repeats):
            for asynchronous in results:
                done = run(folder, model, given, asynchronous)
                results[asynchronous].append(done)
                print(f"# {repeat + 1}/{given.repeats} asynchronous={asynchronous}: {done}", flush=True)
    return report(results)


def write_rows(path: Path, count: int) -> None:
    """Texts of about 200 tokens."""
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(WORDS, k=180))} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(folder: Path, model: Path, given: argparse.Namespace, asynchronous: bool) -> Run:
    """One training run, and what it wrote about itself."""
    run_folder = folder / "run"
    recipe = {
        "run": {"folder": str(run_folder), "precision": "fp32"},
        "model": {"path": str(model), "init": "random" if given.tiny else "pretrained"},
        "data": {"train": [{"path": str(folder / "rows.jsonl"), "format": "text"}], "max_length_tokens": given.tokens,
                 "cache_folder": str(folder / "cache")},
        "batch": {"tokens_per_step": given.tokens, "tokens_per_micro_batch": given.tokens},
        "duration": {"max_epochs": None, "max_steps": given.steps},
        "validation": {"at_start": False, "samples": 0},
        "checkpoint": {"every_steps": EVERY, "keep_last": given.steps, "asynchronous": asynchronous},
        "merge": {"at_end": False},
        "watch": {"tensorboard": False},
    }  # fmt: skip
    lines, peak = ours.train(recipe, folder)
    found = read(run_folder, lines, peak)
    shutil.rmtree(run_folder)
    return found


def read(run_folder: Path, lines: list[dict[str, Any]], peak_gb: float) -> Run:
    """A line of metrics is written at the end of its step; a step's own seconds are its tokens by its speed."""
    done = {line["step"]: line for line in lines if "train/tokens" in line}
    took = {
        step: (line["train/tokens"] - done[step - 1]["train/tokens"]) / line["train/tokens_per_second"]
        for step, line in done.items()
        if step > 1
    }
    saves = [step for step in done if step % EVERY == 0 and step + 1 in done]
    stalls = [done[step + 1]["time"] - took[step + 1] - done[step]["time"] for step in saves]
    manifests = [run_folder / "checkpoints" / f"step-{step:06d}" / "manifest.json" for step in saves]
    committed = [path.stat().st_mtime - done[step]["time"] for path, step in zip(manifests, saves, strict=True)]
    beside = [took[step + 1] for step in saves]
    return Run(stalls[0], tuple(stalls[1:]), statistics.median(committed), statistics.median(beside), peak_gb)


def report(results: dict[bool, list[Run]]) -> int:
    def middle(asynchronous: bool, what: str) -> float:
        return statistics.median(getattr(one, what) for one in results[asynchronous])

    def later(asynchronous: bool) -> float:
        return statistics.median(stall for one in results[asynchronous] for stall in one.later)

    print(f"\n{'seconds (medians)':48}{'waiting':>10}{'beside':>10}")
    rows = [("training stands still, first save", *(middle(kind, "first") for kind in (False, True)))]
    rows += [("training stands still, later saves", later(False), later(True))]
    rows += [("the step after a save", *(middle(kind, "step") for kind in (False, True)))]
    cost = {kind: later(kind) + middle(kind, "step") - middle(False, "step") for kind in (False, True)}
    rows += [("a later save costs", cost[False], cost[True])]
    rows += [("from the end of the step to the commit", *(middle(kind, "committed") for kind in (False, True)))]
    rows += [("largest resident set, GB", *(middle(kind, "peak_gb") for kind in (False, True)))]
    for name, waiting, beside in rows:
        print(f"{name:48}{waiting:10.2f}{beside:10.2f}")
    ratio = cost[False] / max(cost[True], 1e-3)
    print(f"\nratio={ratio:.1f} target={TARGET:g}")
    return int(ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())

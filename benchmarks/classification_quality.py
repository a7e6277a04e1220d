"""How good the classifiers are that come out: real weights, real data, `train`, merge and `eval` as a user types them.

    python benchmarks/classification_quality.py [--data FOLDER] [--only entities sentiment]

entities: BioNLP-2004 (jnlpba/train.iob2, 1739 sentences), entity F1 on the 539 sentences of test.iob2, which training
never sees: a tenth of the training sentences chooses the epoch. sentiment: financial_phrasebank AllAgree, split 80/20
without shared sentences, accuracy on the fifth. Both tune all weights of all-MiniLM-L6-v2. The last line of each is
`NAME=... target=... minutes=...`; the exit code is 1 below a target.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """objective: also the evaluation task. files: to train on and to test on, under the folder of the data or made."""

    objective: str
    format: str
    metric: str
    target: float
    minutes: float
    epochs: int
    needs: str


JOBS = {
    "entities": Job("token_classification", "tagged", "f1", 0.57, 30.0, 6, "jnlpba/train.iob2"),
    "sentiment": Job(
        "sequence_classification", "labelled", "accuracy", 0.90, 30.0, 4, "financial_phrasebank/Sentences_AllAgree.txt"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ZEROTUNE_DATA", str(ROOT.parent / "shared" / "data")))
    parser.add_argument("--only", nargs="+", choices=tuple(JOBS), default=list(JOBS))
    given = parser.parse_args()
    model = run("examples/get_minilm.py").split("\n")[-2]
    missed = []
    with tempfile.TemporaryDirectory(prefix="zerotune-benchmark-") as folder:
        for name in given.only:
            job = JOBS[name]
            if not (Path(given.data) / job.needs).exists():
                print(f"{name} skipped: {given.data}/{job.needs} is not there; give --data or ZEROTUNE_DATA")
                continue
            start = time.monotonic()
            value = reached(job, model, *files(name, Path(given.data), Path(folder)), Path(folder) / name)
            minutes = (time.monotonic() - start) / 60
            print(
                f"{name}={value:.4f} target={job.target} minutes={minutes:.1f} target_minutes={job.minutes:.0f}",
                flush=True,
            )
            missed += [name] if value < job.target or minutes > job.minutes else []
    return 1 if missed else 0


def files(name: str, data: Path, folder: Path) -> tuple[Path, Path]:
    """To train on, and to test on."""
    if name == "entities":
        return data / "jnlpba/train.iob2", data / "jnlpba/test.iob2"
    run("examples/phrasebank_clean_split.py", str(data / JOBS[name].needs), "--out", str(folder))
    return folder / "clean_train.jsonl", folder / "clean_test.jsonl"


def reached(job: Job, model: str, train: Path, test: Path, folder: Path) -> float:
    """The metric on the test rows of the merged checkpoint."""
    options = {
        "objective": job.objective, "run.folder": folder / "run", "model.path": model,
        "data.train": json.dumps([{"path": str(train), "format": job.format}]), "data.validation_fraction": 0.1,
        "data.max_length_tokens": 256, "batch.tokens_per_step": 1024, "batch.tokens_per_micro_batch": 1024,
        "optim.learning_rate": 3e-4, "duration.max_epochs": job.epochs,
    }  # fmt: skip
    run("train/main.py", *(word for name, value in options.items() for word in (f"--{name}", str(value))), shown=True)
    words = ["--model", folder / "run/merged", "--tasks", job.objective, "--data", test, "--out", folder / "eval"]
    run("eval/main.py", *map(str, words), "--training_data", str(train), shown=True)
    (task,) = json.loads((folder / "eval/result.json").read_text(encoding="utf-8"))["tasks"]
    return next(float(m["estimates"][0]["value"]) for m in task["metrics"] if m["name"] == job.metric)


def run(script: str, *words: str, shown: bool = False) -> str:
    """A script of the project; what it printed, or nothing where that was shown."""
    command = [sys.executable, str(ROOT / script), *words]
    return (
        subprocess.run(command, check=True, cwd=ROOT, stdout=None if shown else subprocess.PIPE, text=True).stdout or ""
    )


if __name__ == "__main__":
    sys.exit(main())

"""Evaluation speed, memory and answers side by side with lm-evaluation-harness, both in bf16 on this machine's CPU.

    python benchmarks/eval_throughput.py [--data FOLDER] [--repeats 3] [--only cmmlu perplexity gsm8k]
    python benchmarks/eval_throughput.py --precision fp32      # both in float32

Both sides take the same real weights (SmolLM2-135M) and the same prompts. Seconds run from loading the weights to the
results. The harness runs once with each of its batch settings; the fastest is repeated. Runs alternate, and medians
count. The last line is `ratio=... target=...` (CMMLU's, then the others'); the exit code is 1 below a target.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval_tasks
import ours
import psutil
from lm_eval_tasks import Job
from measure import measured
from peer import peer_python

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}  # our names and the harness's
TARGETS = {"cmmlu": 5.0, "perplexity": 1.5, "gsm8k": 1.5}
MEMORY_TARGET = 0.5  # of theirs, on CMMLU
LEAST_AGREEMENT = 0.95  # of choices and of log-probabilities; bf16 rounds the rest away
SUBJECTS = ("agronomy", "high_school_physics")
DOCUMENTS, PROBLEMS, NEW_TOKENS = 24, 64, 128
START = "<|im_start|>"  # SmolLM2's bos_token, which the harness puts before a text


@dataclass(frozen=True)
class Run:
    seconds: float
    peak_gb: float
    threads: int
    samples: Any


@dataclass
class Side:
    """The runs of one side; name says with which setting."""

    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def peak_gb(self) -> float:
        return statistics.median(run.peak_gb for run in self.runs)


def main() -> int:
    given = arguments()
    data = Path(given.data)
    missing = [
        place
        for place in ("cmmlu/test", "gsm8k/test.jsonl", "tinyshakespeare/input.txt")
        if not (data / place).exists()
    ]
    if missing:
        print(f"skipped: {data / missing[0]} is not there; give --data or ZEROTUNE_DATA")
        return 0
    model = ours.smollm2()
    peer = peer_python("lm-eval")
    with tempfile.TemporaryDirectory(prefix="zerotune-benchmark-") as folder:
        bench = Bench(Path(folder), model, peer, given.precision)
        jobs = prepare(Path(folder), data, peer, given)
        results = {name: bench.both(name, jobs[name], given) for name in given.only}
    return report(results)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ZEROTUNE_DATA", str(ROOT.parent / "shared" / "data")))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=tuple(TARGETS), default=list(TARGETS))
    parser.add_argument("--batch_sizes", nargs="+", default=["8", "16", "32", "auto"], help="the harness's settings")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="bf16", help="fp32: for CPUs without bf16")
    parser.add_argument("--rows", type=int, default=0, help="rows of each task, to try it out; 0 is all")
    return parser.parse_args()


def prepare(folder: Path, data: Path, peer: Path, given: argparse.Namespace) -> dict[str, Job]:
    """The same rows for both sides."""
    package = next((peer.parent.parent / "lib").glob("python*/site-packages/lm_eval"))
    text = (data / "tinyshakespeare/input.txt").read_text(encoding="utf-8")
    rows = given.rows or None
    makers: dict[str, Callable[[Path], Job]] = {
        "cmmlu": lambda place: lm_eval_tasks.cmmlu(place, data / "cmmlu", package, SUBJECTS, rows),
        "perplexity": lambda place: lm_eval_tasks.perplexity(place, text, rows or DOCUMENTS, START),
        "gsm8k": lambda place: lm_eval_tasks.gsm8k(place, data / "gsm8k", package, range(rows or PROBLEMS), NEW_TOKENS),
    }
    return {name: makers[name](folder / name) for name in given.only}


class Bench:
    """Runs of both sides, each in its own process."""

    def __init__(self, folder: Path, model: Path, peer: Path, precision: str) -> None:
        self.folder, self.model, self.peer, self.precision = folder, model, peer, precision
        self.most_bytes = psutil.virtual_memory().available
        self.count = 0

    def both(self, name: str, job: Job, given: argparse.Namespace) -> tuple[Side, Side]:
        """(theirs with its best batch setting, ours)."""
        ours = Side("ZeroTune")
        tried = [Side(f"lm-eval, batch {size}") for size in given.batch_sizes]
        for side, size in zip(tried, given.batch_sizes, strict=True):
            self.add(side, name, lambda size=size: self.theirs(job, size, may_fail=True))
        best = min((side for side in tried if side.runs), key=lambda side: side.seconds)
        setting = given.batch_sizes[tried.index(best)]
        for repeat in range(given.repeats):
            self.add(ours, name, lambda: self.ours(job))
            if repeat:
                self.add(best, name, lambda: self.theirs(job, setting))
        return best, ours

    def add(self, side: Side, name: str, run: Callable[[], Run | None]) -> None:
        done = run()
        said = f"{done.seconds:.1f} s, {done.peak_gb:.2f} GB" if done else "failed, most likely for want of memory"
        print(f"# {name} {side.name}: {said}", flush=True)
        side.runs += [done] if done else []

    def theirs(self, job: Job, batch_size: str, may_fail: bool = False) -> Run | None:
        options = {"model": self.model, "folder": job.folder, "tasks": ",".join(job.theirs),
                   "batch_size": batch_size, "dtype": DTYPES[self.precision], "out": self.out()}  # fmt: skip
        command = [str(self.peer), str(ROOT / "benchmarks/lm_eval_worker.py")]
        return self.run([*command, *(part for k, v in options.items() for part in (f"--{k}", str(v)))], may_fail)

    def ours(self, job: Job) -> Run | None:
        options = {"model": self.model, "tasks": job.ours, "data": job.data, "precision": self.precision,
                   "max_new_tokens": NEW_TOKENS, "out": self.folder / f"evaluation-{self.count}"}  # fmt: skip
        command = [sys.executable, str(ROOT / "benchmarks/eval_worker.py"), str(self.out())]
        return self.run([*command, *(part for k, v in options.items() for part in (f"--{k}", str(v)))], may_fail=False)

    def out(self) -> Path:
        """Where the next run writes; each has its own, so that none finds another's answers."""
        return self.folder / f"out-{self.count}.json"

    def run(self, command: list[str], may_fail: bool) -> Run | None:
        out = self.out()
        self.count += 1
        done = measured(command, self.folder, self.most_bytes, may_fail)
        if done is None:
            return None
        said = json.loads(out.read_text(encoding="utf-8"))
        return Run(said["seconds"], done[1], said["threads"], said["samples"])


def agreement(name: str, theirs: Run, ours: Run) -> tuple[float, str]:
    """Share of rows with the same choice (cmmlu) or text (gsm8k), or 1 - relative difference of log-probability.

    With words on it. The harness's log-probabilities are bf16, so that its choice between equal ones is the first;
    any choice within one step of bf16 of its best counts as the same.
    """
    rows = [row for own in theirs.samples.values() for row in own if row["filter"] in ("none", "strict-match")]
    (own_rows,) = ours.samples.values()
    if name == "perplexity":
        total, own = sum(-row["resps"][0][0] for row in rows), sum(row["nll"] for row in own_rows)
        return 1 - abs(own / total - 1), "of log-probability"
    if name == "cmmlu":
        said = [{letter: row["resps"][k][0][0] for k, letter in enumerate("ABCD")} for row in rows]
        chosen = [(own, row["chosen"]) for own, row in zip(said, own_rows, strict=True)]
        same = statistics.mean(max(own, key=own.__getitem__) == choice for own, choice in chosen)
        return statistics.mean(
            own[choice] + bf16_step(own[choice]) >= max(own.values()) for own, choice in chosen
        ), f"of choices up to bf16 ties ({same:.4f} with ties broken as the harness does)"
    texts = [(row["resps"][0][0], own["output"]) for row, own in zip(rows, own_rows, strict=True)]
    return statistics.mean(one == other for one, other in texts), "of texts"


def bf16_step(value: float) -> float:
    """Distance to the next number of bf16, which keeps 8 bits."""
    return 2.0 ** (math.floor(math.log2(abs(value) or 1.0)) - 7)


def report(results: dict[str, tuple[Side, Side]]) -> int:
    print(f"\n{'':38}{'seconds':>9}{'spread':>16}{'peak GB':>9}{'threads':>9}")
    ratios, memory, agrees = {}, 0.0, True
    for name, sides in results.items():
        for side in sides:
            seconds = sorted(run.seconds for run in side.runs)
            print(f"{name + ' ' + side.name:38}{side.seconds:9.1f}{f'{seconds[0]:.1f}-{seconds[-1]:.1f}':>16}"
                  f"{side.peak_gb:9.2f}{side.runs[0].threads:9d}")  # fmt: skip
        theirs, ours = sides
        ratios[name] = theirs.seconds / ours.seconds
        same, what = agreement(name, theirs.runs[0], ours.runs[0])
        agrees &= same >= LEAST_AGREEMENT or name == "gsm8k"  # one near-tie in bf16 changes the rest of an answer
        if name == "cmmlu":
            memory = ours.peak_gb / theirs.peak_gb
        print(
            f"{name}: {ratios[name]:.2f} x (target {TARGETS[name]}), memory {ours.peak_gb / theirs.peak_gb:.2f} x, "
            f"agreement {same:.4f} {what}\n"
        )
    first, *others = ratios
    extra = [f"{name}_ratio={ratios[name]:.2f} {name}_target={TARGETS[name]}" for name in others]
    extra += [f"memory_ratio={memory:.2f} memory_target={MEMORY_TARGET}"] if "cmmlu" in ratios else []
    print(f"ratio={ratios[first]:.2f} target={TARGETS[first]} {' '.join(extra)} answers_agree={agrees}")
    slow = any(ratio < TARGETS[name] for name, ratio in ratios.items())
    return int(slow or memory > MEMORY_TARGET or not agrees)


if __name__ == "__main__":
    sys.exit(main())

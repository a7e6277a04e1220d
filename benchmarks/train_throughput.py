"""Training speed, memory and learning side by side with TRL's SFTTrainer, both in bf16 on this machine's CPU.

    python benchmarks/train_throughput.py [--data FOLDER] [--steps 6] [--repeats 3] [--tuning full lora]

Both sides take the same real weights (SmolLM2-135M), the same rows once, the same length limit, learning rate and
tokens per step. Speed counts real tokens (prompts and answers, no padding) by the clock on the wall from the end of the
first step on; runs alternate, and medians count. The last line is `ratio=... target=...`; the exit code is 1 below a
target.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ours
from measure import measured
from peer import peer_python

ROOT = Path(__file__).resolve().parents[1]
TARGET, TARGET_MFU = 3.0, 0.35
ROWS_PER_STEP = 8  # SFTTrainer's default batch
MAX_LENGTH, LORA_RANK = 512, 16
LEARNING_RATE = {"full": 5e-5, "lora": 5e-4}
HELD_OUT_ROWS = 24
LOSS_NOISE = 0.01  # least difference of held-out losses that counts: other orders of the rows move it that far


@dataclass(frozen=True)
class Run:
    tokens_per_second: float
    peak_gb: float
    tokens: int
    held_out_loss: float


def main() -> int:
    given = arguments()
    source = Path(given.data) / "alpaca" / "alpaca_en_demo.json"
    if not source.is_file():
        print(f"skipped: {source} is not there; give --data or ZEROTUNE_DATA")
        return 0
    model = ours.smollm2()
    peer, rates = peer_python("trl"), matmul_rates()
    with tempfile.TemporaryDirectory(prefix="zerotune-benchmark-") as folder:
        bench = Bench(Path(folder), model, peer)
        bench.write_rows(json.loads(source.read_text(encoding="utf-8")), given.steps)
        before = bench.held_out_loss(bench.model)
        results: dict[tuple[str, str], list[Run]] = {}
        for repeat in range(given.repeats):
            for tuning in given.tuning:
                for side, run in (("TRL", bench.trl), ("ZeroTune", bench.ours)):
                    done = run(tuning, repeat)
                    results.setdefault((tuning, side), []).append(done)
                    print(
                        f"# {repeat + 1}/{given.repeats} {tuning} {side}: {done.tokens_per_second:.1f} tokens/s",
                        flush=True,
                    )
    return report(results, rates, before)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ZEROTUNE_DATA", str(ROOT.parent / "shared" / "data")))
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a run; the first is not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tuning", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    return parser.parse_args()


class Bench:
    """Runs of both sides on the same rows, each in its own process."""

    def __init__(self, folder: Path, model: Path, peer: Path) -> None:
        self.folder, self.model, self.peer = folder, model, peer
        self.train, self.held_out = folder / "train.jsonl", folder / "held_out.jsonl"
        self.tokens_per_step = 0

    def write_rows(self, rows: list[dict], steps: int) -> None:
        random.Random(0).shuffle(rows)
        parts = {self.held_out: rows[:HELD_OUT_ROWS], self.train: rows[HELD_OUT_ROWS:][: steps * ROWS_PER_STEP]}
        for path, part in parts.items():
            path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")

    def trl(self, tuning: str, seed: int) -> Run:
        out = self.folder / f"trl-{tuning}-{seed}"
        options = {"model": self.model, "rows": self.train, "out": out, "tuning": tuning, "rank": LORA_RANK,
                   "seed": seed, "learning_rate": LEARNING_RATE[tuning], "max_length": MAX_LENGTH}  # fmt: skip
        command = [str(self.peer), str(ROOT / "benchmarks/trl_worker.py")]
        output, peak = self.measured([*command, *(part for k, v in options.items() for part in (f"--{k}", str(v)))])
        said = json.loads(output.strip().splitlines()[-1])
        tokens = said["tokens"]
        self.tokens_per_step = round(tokens[-1] / len(tokens))  # what our steps shall hold too
        speed = (tokens[-1] - tokens[0]) / (said["times"][-1] - said["times"][0])
        return Run(speed, peak, tokens[-1], self.held_out_loss(out, remove=True))

    def ours(self, tuning: str, seed: int) -> Run:
        run = self.folder / f"ours-{tuning}-{seed}"
        recipe = {
            "run": {"folder": str(run), "precision": "bf16", "seed": seed},
            "model": {"path": str(self.model)},  # trained weights in float32 under bf16 autocast, on both sides
            "data": {"train": [{"path": str(self.train), "format": "io"}], "max_length_tokens": MAX_LENGTH,
                     "on_bad_row": "skip", "cache_folder": str(self.folder / "cache")},  # TRL drops them too
            "batch": {"tokens_per_step": self.tokens_per_step, "tokens_per_micro_batch": self.tokens_per_step},
            "tuning": {"kind": tuning, "lora": {"rank": LORA_RANK, "alpha": 2.0 * LORA_RANK}},
            "optim": {"learning_rate": LEARNING_RATE[tuning], "schedule": "constant", "warmup_steps": 0},
            "validation": {"at_start": False, "samples": 0},
            "checkpoint": {"keep_best": False},
            "merge": {"at_end": False, "checkpoint": "last"},
        }  # fmt: skip
        lines, peak = ours.train(recipe, self.folder)
        steps = [line for line in lines if "train/tokens" in line]
        speed = (steps[-1]["train/tokens"] - steps[0]["train/tokens"]) / (steps[-1]["time"] - steps[0]["time"])
        merged = self.folder / f"merged-{run.name}"
        # Stored as TRL stores its own: bf16 would round small updates away.
        merge = [sys.executable, "-m", "train.merge", str(run), str(merged), "--checkpoint", "last",
                 "--weights", "float32"]  # fmt: skip
        subprocess.run(merge, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(run)
        loss = self.held_out_loss(merged, remove=True)
        return Run(speed, peak, int(steps[-1]["train/tokens"]), loss)

    def measured(self, command: list[str]) -> tuple[str, float]:
        """Standard output, and the peak resident memory in GB of the largest process that the command started."""
        done = measured(command, self.folder)
        assert done is not None
        return done

    def held_out_loss(self, model: Path, remove: bool = False) -> float:
        command = [
            str(self.peer),
            str(ROOT / "benchmarks/held_out_loss.py"),
            str(model),
            str(self.held_out),
            str(MAX_LENGTH),
        ]
        output, _ = self.measured(command)
        if remove:
            shutil.rmtree(model)
        return float(output.split()[-1])


def matmul_rates() -> dict[str, float]:
    """Best FLOP/s of this machine over several large shapes, by precision."""
    import torch

    rates = {}
    for name in ("float32", "bfloat16"):
        best = 0.0
        for m, k, n in ((2048, 2048, 2048), (4096, 1024, 4096), (2048, 576, 8192), (1024, 4096, 1024)):
            a, b = (torch.randn(shape).to(getattr(torch, name)) for shape in ((m, k), (k, n)))
            end = time.perf_counter() + 1.5
            while time.perf_counter() < end:
                start = time.perf_counter()
                torch.mm(a, b)
                best = max(best, 2 * m * k * n / (time.perf_counter() - start))
        rates[name] = best
    return rates


def flops_per_token(tuning: str) -> float:
    """6 for each weight that multiplies (4 where it is frozen, adapters left out): SmolLM2-135M, its tied head once."""
    return (6.0 if tuning == "full" else 4.0) * 134_515_008


def report(results: dict[tuple[str, str], list[Run]], rates: dict[str, float], before: float) -> int:
    print(f"\nmatrix products: bf16 {rates['bfloat16'] / 1e9:.0f} GFLOP/s, fp32 {rates['float32'] / 1e9:.0f} GFLOP/s")
    print(f"held-out loss before training: {before:.4f}\n")
    print(f"{'':14}{'tokens/s':>10}{'spread':>16}{'MFU':>8}{'peak GB':>9}{'tokens':>8}{'held-out loss':>15}")
    ratios, memory, agree, mfus = [], [], True, {}
    for tuning in dict.fromkeys(name for name, _ in results):
        sides = {}
        for side in ("TRL", "ZeroTune"):
            runs = results[tuning, side]
            speeds = sorted(run.tokens_per_second for run in runs)
            losses = [run.held_out_loss for run in runs]
            sides[side] = (statistics.median(speeds), statistics.median(run.peak_gb for run in runs), losses)
            mfu = sides[side][0] * flops_per_token(tuning) / rates["bfloat16"]
            mfus[tuning] = mfu
            print(f"{tuning + ' ' + side:14}{sides[side][0]:10.1f}{f'{speeds[0]:.1f}-{speeds[-1]:.1f}':>16}{mfu:8.3f}"
                  f"{sides[side][1]:9.2f}{runs[0].tokens:8d}{statistics.mean(losses):15.4f}")  # fmt: skip
        (theirs, their_gb, their_losses), (ours, our_gb, our_losses) = sides["TRL"], sides["ZeroTune"]
        ratios.append(ours / theirs)
        memory.append(our_gb / their_gb)
        noise = max(LOSS_NOISE, *(max(losses) - min(losses) for losses in (their_losses, our_losses)))
        difference = statistics.mean(our_losses) - statistics.mean(their_losses)
        agree &= abs(difference) <= noise
        print(
            f"{tuning}: {ratios[-1]:.2f} x TRL, memory {memory[-1]:.2f} x, loss {difference:+.4f} (noise {noise:.4f})\n"
        )
    mfu = mfus.get("full", next(iter(mfus.values())))
    print(
        f"ratio={min(ratios):.2f} target={TARGET} mfu={mfu:.3f} target_mfu={TARGET_MFU} "
        f"memory_ratio={max(memory):.2f} loss_agrees={agree}"
    )
    return int(min(ratios) < TARGET or mfu < TARGET_MFU or max(memory) > 1.0 or not agree)


if __name__ == "__main__":
    sys.exit(main())

"""PPO's speed and memory side by side with TRL's experimental PPOTrainer, on this machine's CPU.

    python benchmarks/ppo_throughput.py [--data FOLDER] [--rollouts 6] [--repeats 3] [--precision fp32]
    python benchmarks/ppo_throughput.py --value_model                 # ours with a whole value model, as TRL's
    python benchmarks/ppo_throughput.py --rollouts 2 --repeats 1      # to try it

Both sides take the same real weights (SmolLM2-135M under LoRA), the same reward model, the same prompts (the first
tokens of film reviews) once, and the same batch, lengths and passes. An episode is a prompt answered and learned from;
the clock on the wall runs from the end of the first rollout and its updates to the end of the last. Runs alternate, and
medians count. The last line is `ratio=... target=...`; the exit code is 1 below a target.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ours
from measure import measured
from peer import peer_python

ROOT = Path(__file__).resolve().parents[1]
TARGET, MEMORY_TARGET = 2.0, 0.7
BATCH, PROMPT_TOKENS, RESPONSE_TOKENS, EPOCHS, LORA_RANK = 16, 8, 24, 4, 16
LEARNING_RATE, KL_WEIGHT = 5e-5, 0.05
CHARACTERS = 400  # of a review: far more than a prompt's tokens


@dataclass(frozen=True)
class Run:
    episodes_per_second: float
    peak_gb: float
    first_reward: float
    last_reward: float


def main() -> int:
    given = arguments()
    source = Path(given.data) / "imdb"
    if not source.is_dir():
        print(f"skipped: {source} is not there; give --data or ZEROTUNE_DATA")
        return 0
    model = ours.smollm2()
    peer = peer_python("trl-ppo")
    with tempfile.TemporaryDirectory(prefix="zerotune-benchmark-") as folder:
        bench = Bench(Path(folder), model, peer, given)
        bench.write_prompts(next(source.glob("*.csv")))
        bench.make_reward(given.reward_layers)
        results: dict[str, list[Run]] = {"TRL": [], "ZeroTune": []}
        sides: dict[str, Callable[[int], Run]] = {"TRL": bench.trl, "ZeroTune": bench.ours}
        for repeat in range(given.repeats):
            for side, run in sides.items():
                done = run(repeat)
                results[side].append(done)
                print(
                    f"# {repeat + 1}/{given.repeats} {side}: {done.episodes_per_second:.3f} episodes/s, "
                    f"{done.peak_gb:.2f} GB",
                    flush=True,
                )
    return report(results)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ZEROTUNE_DATA", str(ROOT.parent / "shared" / "data")))
    parser.add_argument("--rollouts", type=int, default=6, help="of a run, at least 2; the first is not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: for CPUs that have it")
    parser.add_argument("--value_model", action="store_true", help="train a whole one on our side too, as TRL does")
    parser.add_argument("--reward_layers", type=int, default=30, help="of SmolLM2's 30, for a smaller reward model")
    return parser.parse_args()


class Bench:
    """Runs of both sides on the same prompts, each in its own process."""

    def __init__(self, folder: Path, model: Path, peer: Path, given: argparse.Namespace) -> None:
        self.folder, self.model, self.peer = folder, model, peer
        self.precision, self.rollouts = given.precision, given.rollouts
        self.value_model = str(model) if given.value_model else ""
        self.rows, self.reward = folder / "prompts.jsonl", folder / "reward"

    def write_prompts(self, table: Path) -> None:
        """As many reviews as there are episodes, so that each side answers each of them once."""
        with table.open(encoding="utf-8", newline="") as file:
            texts = [row["text"][:CHARACTERS] for row in csv.DictReader(file)][: self.rollouts * BATCH]
        self.rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")

    def make_reward(self, layers: int) -> None:
        """The policy's first layers with one random output: PPOTrainer hands the policy's tokens to it."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            self.model, num_labels=1, num_hidden_layers=layers, pad_token_id=0, dtype=torch.float32
        )
        model.save_pretrained(self.reward)
        AutoTokenizer.from_pretrained(self.model).save_pretrained(self.reward)

    def trl(self, seed: int) -> Run:
        options = {"model": self.model, "reward": self.reward, "rows": self.rows, "out": self.folder / "trl",
                   "precision": self.precision, "prompt_tokens": PROMPT_TOKENS, "response_tokens": RESPONSE_TOKENS,
                   "batch": BATCH, "epochs": EPOCHS, "rank": LORA_RANK, "seed": seed,
                   "learning_rate": LEARNING_RATE, "kl_weight": KL_WEIGHT}  # fmt: skip
        command = [str(self.peer), str(ROOT / "benchmarks/trl_ppo_worker.py")]
        output, peak = self.measured([*command, *(part for k, v in options.items() for part in (f"--{k}", str(v)))])
        said = json.loads(output.strip().splitlines()[-1])
        return self.run(said["times"], said["rewards"], peak)

    def ours(self, seed: int) -> Run:
        run = self.folder / f"ours-{seed}"
        recipe = {
            "objective": "ppo",
            "run": {"folder": str(run), "precision": self.precision, "seed": seed},
            "model": {"path": str(self.model)},
            "data": {"train": [{"path": str(self.rows), "format": "text"}], "validation_fraction": 0.0,
                     "cache_folder": str(self.folder / "cache")},
            "tuning": {"kind": "lora", "lora": {"rank": LORA_RANK, "alpha": 2.0 * LORA_RANK}},
            "ppo": {"reward": [{"kind": "model", "path": str(self.reward)}], "prompt_tokens": PROMPT_TOKENS,
                    "response_tokens": RESPONSE_TOKENS, "rollout_prompts": BATCH, "epochs": EPOCHS,
                    "kl_weight": KL_WEIGHT, "value_model": self.value_model},
            "optim": {"learning_rate": LEARNING_RATE, "schedule": "constant", "warmup_steps": 0},
            "duration": {"max_epochs": 1},
            "validation": {"at_start": False, "samples": 0},
            "checkpoint": {"keep_best": False},
            "merge": {"at_end": False, "checkpoint": "last"},
        }  # fmt: skip
        lines, peak = ours.train(recipe, self.folder)
        shutil.rmtree(run)
        ends = [line["time"] for line in lines if "train/tokens" in line and line["step"] % EPOCHS == 0]
        return self.run(ends, [line["rollout/reward"] for line in lines if "rollout/reward" in line], peak)

    def run(self, ends: list[float], rewards: list[float], peak: float) -> Run:
        """What it was, by the ends of all rollouts with their updates."""
        assert len(ends) == len(rewards) == self.rollouts, (ends, rewards)
        return Run(BATCH * (self.rollouts - 1) / (ends[-1] - ends[0]), peak, rewards[0], rewards[-1])

    def measured(self, command: list[str]) -> tuple[str, float]:
        """Standard output, and the peak resident memory in GB of the largest process that the command started."""
        done = measured(command, self.folder)
        assert done is not None
        return done


def report(results: dict[str, list[Run]]) -> int:
    print(f"\n{'':10}{'episodes/s':>12}{'spread':>16}{'peak GB':>9}{'reward, first and last':>26}")
    medians = {}
    for side, runs in results.items():
        speeds = sorted(run.episodes_per_second for run in runs)
        medians[side] = statistics.median(speeds), statistics.median(run.peak_gb for run in runs)
        rewards = f"{runs[0].first_reward:.3f} {runs[0].last_reward:.3f}"
        print(f"{side:10}{medians[side][0]:12.3f}{f'{speeds[0]:.3f}-{speeds[-1]:.3f}':>16}{medians[side][1]:9.2f}"
              f"{rewards:>26}")  # fmt: skip
    ratio, memory = (ours / theirs for ours, theirs in zip(medians["ZeroTune"], medians["TRL"], strict=True))
    print(f"\nratio={ratio:.2f} target={TARGET} memory_ratio={memory:.2f} memory_target={MEMORY_TARGET}")
    return int(ratio < TARGET or memory > MEMORY_TARGET)


if __name__ == "__main__":
    sys.exit(main())

"""A stand-in for a training process in searches: the files and signals of a run, numbers from a formula, no model.

The validation loss of a step depends on optim.learning_rate (best at 0.01) and optim.beta1 alone. FAKE_SECONDS is the
time of a step. Every step is written down in trained.log beside the trials, every start in starts.log.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from train.failure.lock import hold
from zerotune.common.errors import UserError


def loss_of(learning_rate: float, beta1: float, step: int) -> float:
    """The validation loss after a step; a learning rate above 1 diverges."""
    return math.log10(learning_rate / 0.01) ** 2 + (beta1 - 0.8) ** 2 + 2.0 / (step + 1)


def main() -> int:
    words = sys.argv[1:]
    folder = Path(words[words.index("--config") + 1]).parent
    try:
        with hold(folder) as held:
            held.begun = True
            return train(folder, words)
    except UserError as error:
        print(error, file=sys.stderr)
        return 64


def train(folder: Path, words: list[str]) -> int:
    share = float(words[words.index("--run.stop_at_share") + 1]) if "--run.stop_at_share" in words else 1.0
    config = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    steps, every = config["duration"]["max_steps"], config["validation"]["every_steps"]
    rate, beta1 = float(config["optim"]["learning_rate"]), float(config["optim"]["beta1"])
    if rate > 1:
        print("step 1: 11 updates in a row had no finite gradient", file=sys.stderr)
        return 65
    asked: list[int] = []
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    saved = folder / "saved"
    step = int(saved.read_text()) if saved.exists() else 0
    with (folder.parent.parent / "starts.log").open("a") as log:
        log.write(f"{folder.name} {step} {os.getppid()}\n")
    metrics = folder / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= step] if step else []
    replace(metrics, "".join(f"{line}\n" for line in kept))
    replace(folder / "run.json", json.dumps({"total_steps": steps, "lower_is_better": {"loss": True}}))
    reason = "all steps done"
    with metrics.open("a") as lines:
        while step < steps:
            if step and step % every == 0 and step >= share * steps - 1e-9:
                reason = "run.stop_at_share reached"
                break
            if asked or (folder / "STOP").exists():
                reason = "SIGINT" if asked else "STOP file"
                break
            time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
            step += 1
            with (folder.parent.parent / "trained.log").open("a") as log:
                log.write(f"{folder.name} {step}\n")
            values = {"train/loss": loss_of(rate, beta1, step) - 0.1}
            if step % every == 0 or step == steps:
                values["validation/loss"] = loss_of(rate, beta1, step)
            lines.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
            lines.flush()
            if step % every == 0:
                replace(saved, str(step))
            replace(folder / "status.json", json.dumps({"state": "running", "step": step}))
    replace(saved, str(step))
    (folder / "STOP").unlink(missing_ok=True)
    state = "finished" if reason == "all steps done" else "preempted"
    replace(folder / "status.json", json.dumps({"state": state, "step": step, "reason": reason}))
    return 130 if asked else 0


def replace(path: Path, text: str) -> None:
    """Atomically, as the trainer does."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text)
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())

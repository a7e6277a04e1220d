"""What the benchmarks share of ZeroTune's side: the real weights, and a training run as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import measured

ROOT = Path(__file__).resolve().parents[1]


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched if it is not there."""
    fetch = [sys.executable, str(ROOT / "examples/get_smollm2.py")]
    return Path(subprocess.run(fetch, check=True, stdout=subprocess.PIPE, text=True).stdout.split("\n")[-2])


def train(recipe: dict[str, Any], folder: Path) -> tuple[list[dict[str, Any]], float]:
    """`accelerate launch train/main.py` with this recipe: (the lines of metrics.jsonl, peak resident memory in GB)."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file",
              str(ROOT / "accelerate_configs/cpu.yaml")]  # fmt: skip
    done = measured([*launch, str(ROOT / "train/main.py"), "--config", str(path)], folder)
    assert done is not None
    lines = (Path(recipe["run"]["folder"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], done[1]

"""One evaluation by lm-evaluation-harness on the CPU, in the peer's environment.

Writes a JSON object: seconds (from loading the weights to the results, without imports and task files), and for each
task its results and each row's prompt, answers and scores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})

import lm_eval
import torch
from lm_eval.models import huggingface  # noqa: F401  (what `model="hf"` imports, not to be timed)
from lm_eval.tasks import TaskManager


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "folder", "tasks", "batch_size", "dtype", "out"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    manager = TaskManager(include_path=given.folder, include_defaults=False)
    start = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": given.model, "dtype": given.dtype},
        tasks=given.tasks.split(","),
        batch_size=given.batch_size,
        device="cpu",
        bootstrap_iters=0,
        task_manager=manager,
    )
    seconds = time.perf_counter() - start
    kept = ("doc_id", "arguments", "resps", "filtered_resps", "filter", "acc", "exact_match")
    samples = {
        task: [{key: row[key] for key in kept if key in row} for row in rows] for task, rows in found["samples"].items()
    }
    said = {"seconds": seconds, "threads": torch.get_num_threads(), "results": found["results"], "samples": samples}
    Path(given.out).write_text(json.dumps(said, default=str, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()

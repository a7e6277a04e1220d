"""One evaluation by this project, timed as lm_eval_worker.py times the other side: from loading the weights to results.

python benchmarks/eval_worker.py OUT.json [options of python -m eval]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from eval.config import parse
from eval.distributed import join
from eval.evaluation import evaluate


def main() -> None:
    config, ranks = parse(sys.argv[2:]), join()
    start = time.perf_counter()
    found = evaluate(config, ranks)
    said = {"seconds": time.perf_counter() - start, "threads": torch.get_num_threads()}
    samples = {
        task: [{"id": s.id, **s.values, **s.shown} for s in next(iter(models.values()))]
        for task, models in found.samples.items()
    }
    Path(sys.argv[1]).write_text(json.dumps({**said, "samples": samples}, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()

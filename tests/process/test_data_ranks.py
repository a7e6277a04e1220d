"""The data path on real gloo ranks: tokenised once, and no rank left waiting when another fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.data_tools import write_jsonl

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import json, os, sys
from datetime import timedelta
import torch
from torch import distributed
from tests.support.data_tools import recipe, tokenizer
from train.config import SourceConfig
from train.data import rank_sync
from train.data.prepare import prepare
from train.errors import UserError

class Gloo:
    index, count, device = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.device("cpu")
    def sum(self, values):
        tensor = torch.tensor(list(values), dtype=torch.float64)
        distributed.all_reduce(tensor)
        return tensor.tolist()
    def barrier(self):
        distributed.barrier()

path, caches, slow = sys.argv[1], sys.argv[2], float(sys.argv[3])
rank_sync.BEAT_SECONDS = 0.5
distributed.init_process_group("gloo", timeout=timedelta(seconds=3))
cache = f"{caches}/{Gloo.index}" if os.environ.get("OWN_CACHE") else caches
if slow and Gloo.index == 0:
    import time
    from train.data import token_cache
    original = token_cache._ensure
    def slowly(*arguments):
        time.sleep(slow)
        return original(*arguments)
    token_cache._ensure = slowly
try:
    corpus = prepare(recipe(cache, SourceConfig(path, "qa"), validation_fraction=0.1), tokenizer(), 0, Gloo())
    print(json.dumps([corpus.digest, len(corpus.train), corpus.lines]), flush=True)
except UserError as error:
    print(json.dumps(str(error)), flush=True)
distributed.destroy_process_group()
"""


def run(path, caches, slow=0.0, **extra):
    """What each of two ranks printed, and how long it took."""
    port = str(20_000 + os.getpid() % 20_000)
    start = time.monotonic()
    processes = []
    for rank in range(2):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RANK": str(rank), **extra}
        environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = [sys.executable, "-c", WORKER, str(path), str(caches), str(slow)]
        processes.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(text.strip().splitlines()[-1]) for text in printed], time.monotonic() - start


@pytest.fixture
def rows(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", [{"question": f"What is {i}?", "answer": f"{i}."} for i in range(60)])


def test_the_first_rank_tokenises_and_the_others_map(tmp_path, rows):
    (first, second), _ = run(rows, tmp_path / "cache", slow=6.0)  # twice the time limit of the collectives
    assert first == second
    assert first[1] == 54
    assert len(list((tmp_path / "cache").rglob("tokens.arrow"))) == 1


def test_a_node_with_a_cache_of_its_own_tokenises_for_itself(tmp_path, rows):
    (first, second), _ = run(rows, tmp_path / "caches", OWN_CACHE="1")
    assert first == second
    assert len(list((tmp_path / "caches").rglob("tokens.arrow"))) == 2


def test_a_failure_on_the_first_rank_reaches_all(tmp_path, rows):
    with rows.open("a") as handle:
        handle.write('{"question": "x", "answer": null}\n')
    (first, second), _ = run(rows, tmp_path / "cache")
    assert "rows.jsonl:61: field `answer` is null" in first
    assert second == first

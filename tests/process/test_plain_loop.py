"""Models from scratch, trained by the trainer and by a plain PyTorch loop on the same batches: the same losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.plain_loop import SAME_LOSS, Plain, padded, plain_loss, updates
from tests.support.data_tools import write_jsonl
from tests.support.fault_runs import Zygote
from tests.support.training_runs import QUESTIONS, arguments, metrics, new_model
from train.models.load import load_model
from train.recipe import load

UPDATES, RATE = 12, 1e-2
STEPS = {
    "duration__max_epochs": 9, "duration__max_steps": UPDATES, "batch__tokens_per_micro_batch": 256,
    "optim__learning_rate": RATE, "optim__schedule": "constant", "optim__warmup_steps": 0, "optim__clip_norm": 0,
}  # fmt: skip


@pytest.mark.parametrize("family", ["rnn", "lstm", "transformer"])
def test_losses_are_those_of_a_plain_loop(family: str, zygote: Zygote, tmp_path: Path) -> None:
    """Over several micro-batches an update and rows beyond a window of truncated back-propagation."""
    texts = [f"{row['question']} {row['answer']}" for row in QUESTIONS]
    run, seen = tmp_path / "run", tmp_path / "seen"
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    options = STEPS | new_model(family) | {"data__train": json.dumps([{"path": str(rows), "format": "text"}])}
    note = {"at": "train.engine.loop:Loop._update", "nth": 0, "do": f"rows {seen}"}
    processes = zygote.run(arguments(run, rows, **options), tmp_path / "log", orders=[note])
    assert processes.codes == [0], processes.output

    steps = [json.loads(line)["rows"] for line in seen.read_text().splitlines()]
    assert max(map(len, steps)) > 1  # micro-batches
    tokenizer = AutoTokenizer.from_pretrained(run / "base")
    ids = [torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id]) for text in texts]
    batches = [padded([ids[int(row.rpartition(":")[2]) - 1] for rows in step for row in rows]) for step in steps]
    config = load(run / "config.yaml")
    model = load_model(AutoModelForCausalLM, config.model.within(run), torch.float32, seed=config.run.seed)
    if family != "transformer":
        plain = Plain(family, len(tokenizer), model.config.hidden_size, config.model.bptt_tokens)
        plain.take(model)
        model = plain
    expected = updates(model, batches, plain_loss, RATE)
    assert list(metrics(run, "train/loss").values()) == pytest.approx(expected, abs=SAME_LOSS, rel=0)

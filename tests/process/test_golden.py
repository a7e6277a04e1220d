"""Golden losses: tiny random models, float32 on a CPU. A change that should not alter numbers leaves these files alone.

`pytest tests/process/test_golden.py --update-golden` writes them anew and prints what changed.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.support.training_runs import ROOT, TINY, arguments, launch, metrics, write_rows

TOLERANCE = 2e-4  # processors differ in the order of float32 sums; a wrong loss differs in the first digits
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


def tiny_llama(folder):
    """The tiny tokenizer with an untied Llama of random weights."""
    shutil.copytree(TINY, folder)
    kept = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    shared = {key: kept[key] for key in ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id") if key in kept}
    (folder / "config.json").write_text(json.dumps(LLAMA | shared), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("model", "tuning"), [("qwen2", "full"), ("llama", "lora")])
def test_losses(model, tuning, tmp_path, request):
    path = TINY if model == "qwen2" else tiny_llama(tmp_path / "llama")
    folder = tmp_path / "run"
    words = arguments(folder, write_rows(tmp_path), model__path=path, tuning__kind=tuning, duration__max_epochs=2)
    done = launch(words)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: {str(k): v for k, v in metrics(folder, name).items()} for name in ("train/loss", "validation/loss")}
    file = ROOT / "tests" / "golden" / f"{model}-{tuning}.json"
    golden = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"losses": {}}
    if request.config.getoption("--update-golden"):
        for name, values in found.items():
            for step, value in values.items():
                print(name, step, golden["losses"].get(name, {}).get(step), "->", value)
        file.write_text(
            json.dumps({"torch": torch.__version__.split("+")[0], "losses": found}, indent=1) + "\n", encoding="utf-8"
        )
        return
    assert found.keys() == golden["losses"].keys()
    for name, values in golden["losses"].items():
        assert found[name] == pytest.approx(values, rel=TOLERANCE), f"{name} (written with torch {golden['torch']})"

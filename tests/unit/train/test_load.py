"""Reading models: nothing that could run code, nothing that is damaged, and the same start from the same seed."""

from __future__ import annotations

import json
import os
import shutil
import time
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    GPTNeoConfig,
    MambaConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    RobertaConfig,
    T5Config,
)

from tests.support.tuned_runs import tiny_model
from train.config import ModelConfig
from train.model_sizes import layer_weights
from train.models.load import learned_positions, load_model, load_tokenizer, skeleton
from train.registry import FAMILIES
from zerotune.common.errors import UserError
from zerotune.models.folder import resolve
from zerotune.models.recurrent import RnnConfig, register
from zerotune.models.weights_digest import config_digest, model_digest


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def folder(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


def load(folder, **options):
    return load_model(AutoModelForCausalLM, ModelConfig(path=str(folder), **options), torch.float32)


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickled_weights_are_refused_by_name(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Canary(tmp_path / "canary")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is not read.*Convert it once"):
        load(folder)
    assert not (tmp_path / "canary").exists()


def test_a_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights; fetch them"):
        load(folder)


def test_a_tokenizer_with_an_empty_vocabulary_is_refused(tiny_qwen2, tmp_path):
    """Where its file is missing, transformers makes an empty one for some kinds of models."""
    shutil.copytree(tiny_qwen2, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer.json"))
    with pytest.raises(UserError, match=r"model\.path: .*has an empty vocabulary; is its tokenizer\.json missing"):
        load_tokenizer(ModelConfig(path=str(tmp_path / "model")))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (RnnConfig(), AutoModelForSequenceClassification),
        (MambaConfig(), AutoModelForTokenClassification),
        (T5Config(), AutoModelForCausalLM),
    ],
)
def test_a_model_without_the_class_of_the_objective_is_refused(tmp_path, config, kind):
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}: .*no {kind.__name__} for {config.model_type};.*another model"):
        skeleton(kind, ModelConfig(str(tmp_path), init="random"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../model.safetensors", "/etc/passwd"])
def test_an_index_may_name_safetensors_beside_it_only(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(UserError, match=r"index\.json: .*; safetensors files beside it"):
        load(folder)


def test_code_in_the_folder_is_refused_and_not_run(folder, tmp_path):
    described = json.loads((folder / "config.json").read_text())
    described |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"},
    }
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "modeling_evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'canary')!r})")
    with pytest.raises(UserError, match=r"config\.json: .*modeling_evil\.py.*trust_remote_code true"):
        load(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["modeling_evil.T", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: .*modeling_evil\.py"):
        load_tokenizer(ModelConfig(path=str(folder)))
    assert not (tmp_path / "canary").exists()


def test_damage_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: not a complete safetensors file"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as JSON"):
        load(folder)


def test_missing_weights_do_not_start_at_random(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight is not in its safetensors files \(1 weights missing\)"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", {}, "contains an adapter"),
        ("config.json", {"model_type": "nonsense"}, "knows no model_type 'nonsense'"),
        (
            "config.json",
            {"model_type": "llama", "transformers_weights": "adapter_model.bin"},
            "'adapter_model.bin'; only",
        ),
    ],
)
def test_other_folders_are_refused(folder, name, content, message):
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such", "~/no/such", "a/b/c", "name"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name):
    with pytest.raises(UserError, match=f"model.path: there is no folder {name}"):
        resolve(name)


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no/such is no folder here, and could not be fetched"):
        resolve("no/such")


def test_random_start_is_a_function_of_the_seed(folder):
    (folder / "model.safetensors").unlink()
    config = ModelConfig(path=str(folder), init="random")
    first, again, other = (
        load_model(AutoModelForCausalLM, config, torch.float32, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    with pytest.raises(UserError, match="no pretrained weights to quantise"):
        load_model(AutoModelForCausalLM, config, torch.float32, options={"quantization_config": object()})


def test_tensors_that_nobody_reads_are_named_once(folder, caplog):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in ("mtp.0.head.weight", "mtp.1.head.weight", "model.visual.patch.weight"):
        tensors[name] = torch.zeros(2, 2)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)  # the model computes its own
    save_file(tensors, path, {"format": "pt"})
    save_file({"x": torch.zeros(1)}, folder / "consolidated.safetensors", {"format": "pt"})
    for _ in range(2):
        load(folder)
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(": ")[2] for line in told] == [
        "not read, and not in the model that results: model.visual.patch.weight, mtp.*.head.weight (2)",
        "weight files that are not read: consolidated.safetensors",
    ]


def test_what_a_family_passes_over_in_silence_is_named_too(tmp_path, caplog):
    config = Qwen3_5TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, layer_types=["full_attention"],
    )  # fmt: skip
    Qwen3_5ForCausalLM(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {"mtp.fc.weight": torch.zeros(2, 2), "model.visual.blocks.0.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    load(tmp_path)
    assert "not in the model that results: model.visual.blocks.*.weight, mtp.fc.weight" in caplog.text


def test_nothing_is_named_where_all_is_read(folder, caplog):
    load(folder)
    assert not caplog.records


def test_a_weight_with_another_shape_than_in_the_config_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 10}))
    with pytest.raises(UserError, match=r"does not have the shape of its config\.json"):
        load(folder)


def test_digest_of_a_config_follows_what_it_says(folder):
    before = config_digest(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}, indent=7, sort_keys=True))
    assert config_digest(folder) == before
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert config_digest(folder) != before


def test_digest_follows_the_weights_alone(folder):
    before = model_digest(folder)
    (folder / "README.md").write_text("hello")
    os.utime(folder / "model.safetensors", (time.time(), 0))
    assert model_digest(folder) == before
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert model_digest(folder) != before
    path.unlink()
    assert model_digest(folder) not in (before, "")  # of the config, for models that start at random


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
POSITIONS = {
    "bert": (lambda: BertConfig(**SMALL, max_position_embeddings=40), 40),
    "roberta": (lambda: RobertaConfig(**SMALL, max_position_embeddings=42, pad_token_id=1), 40),
    "gpt2": (lambda: GPT2Config(vocab_size=50, n_embd=16, n_head=2, n_layer=1, n_positions=40), 40),
    "opt": (lambda: OPTConfig(**SMALL, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=40), 40),
    "gpt-neo": (
        lambda: GPTNeoConfig(
            vocab_size=50, hidden_size=16, num_heads=2, num_layers=2, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=40, intermediate_size=16,
        ),
        40,
    ),
    "qwen2": (lambda: Qwen2Config(**SMALL, num_key_value_heads=2, max_position_embeddings=40), None),
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIONS)
def test_how_many_positions_a_model_has(name: str) -> None:
    """As many tokens as go through it, and not one more."""
    make, positions = POSITIONS[name]
    model: Any = AutoModel.from_config(make())
    assert learned_positions(model) == positions
    model(input_ids=torch.full((1, 40), 5))
    if positions:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 41), 5))


def test_rows_that_a_model_has_no_positions_for_are_refused_before_any_is_read(tmp_path: Any) -> None:
    from transformers import BertModel

    from tests.support.ranks import Solo
    from train.config import Config, DataConfig, SourceConfig, TuningConfig
    from train.objectives.token_classification import TokenClassification
    from train.tuning import make_tuning

    BertModel(BertConfig(**SMALL, max_position_embeddings=40)).save_pretrained(tmp_path)
    config = Config(
        model=ModelConfig(path=str(tmp_path)),
        tuning=TuningConfig(kind="prompt"),
        data=DataConfig(train=[SourceConfig("missing.iob2", "tagged")], max_length_tokens=33),
    )
    with pytest.raises(UserError, match=r"data\.max_length_tokens: 33 .* 32 positions .* the 8 of the tuned prompt"):
        TokenClassification(config, make_tuning(config.tuning, model=config.model), Solo())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_a_family_are_counted_without_it(family: str) -> None:
    """By the formula that refuses a model larger than the machine's memory."""
    config = ModelConfig(family=family, width=32, layers=3, heads=2, feed_forward=48)
    assert config.spec is not None
    register()
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(resolve_name(config.spec.place)(config, 64, {"vocab_size": 10}))
    assert sum(weight.numel() for weight in made.model.layers.parameters()) == layer_weights(config)

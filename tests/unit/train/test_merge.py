"""The hand-over: merged models answer as the trained ones did; what is not right is refused and leaves nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, Qwen3MoeConfig

from tests.support.tuned_runs import SIZES, add_checkpoint, disturb, finished_run, tiny_model, tiny_tokenizer
from train.config import LoraConfig, MergeConfig, PromptConfig, TuningConfig
from train.merge import steps
from train.merge.__main__ import main
from train.merge.steps import merge
from train.merge.writer import ShardWriter
from train.recipe import load
from zerotune.common.errors import CannotWriteError, UserError
from zerotune.inference.checkpoint import open_checkpoint

IDS = torch.randint(0, 290, (2, 24), generator=torch.Generator().manual_seed(5))
PROMPT = TuningConfig(kind="prompt", prompt=PromptConfig(virtual_tokens=5))


def lora(quantization="none", **options):
    return TuningConfig(kind="lora", quantization=quantization, lora=LoraConfig(rank=4, **options))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    tiny_tokenizer(folder / "larger", 310)
    return {
        "llama": tiny_model(folder / "llama", "llama"),
        "qwen2": tiny_model(folder / "qwen2", "qwen2"),
        "qwen2-bf16": tiny_model(folder / "qwen2-bf16", "qwen2", "bfloat16"),
        "spare": tiny_model(folder / "spare", "qwen2", vocabulary=320),  # more rows than the tokenizer has tokens
        "larger": folder / "larger",
    }


@pytest.fixture(scope="module")
def full_run(bases, tmp_path_factory):
    """A run that merges fast, for tests of what can go wrong; copy it before changing it."""
    folder = tmp_path_factory.mktemp("full") / "run"
    finished_run(folder, bases["qwen2"], TuningConfig())
    return folder


@torch.no_grad()
def answers(model, start=()):
    start_ids = torch.tensor(start, dtype=torch.long).expand(len(IDS), -1)
    return model.eval()(torch.cat([start_ids, IDS], 1)).logits[:, -IDS.shape[1] :]


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


CASES = {
    "full": ("llama", TuningConfig(), True),
    "full tied": ("qwen2", TuningConfig(), True),
    "lora": ("llama", lora(), False),
    "lora tied": ("qwen2", lora(), True),
    "rslora": ("qwen2", lora(rslora=True), True),
    "dora": ("llama", lora(dora=True), False),
    "all biases": ("qwen2", lora(bias="all"), True),
    "embeddings saved": ("llama", lora(modules_to_save=["embed_tokens", "lm_head"]), False),
    "tied embeddings saved": ("qwen2", lora(modules_to_save=["embed_tokens"]), True),
    "adapted embeddings": ("llama", lora(targets=["q_proj", "embed_tokens"], dora=True), False),
    "one of the tied adapted": ("qwen2", lora(targets=["q_proj", "embed_tokens"]), False),
}


@pytest.mark.parametrize("name", CASES)
def test_merged_answers_equal_the_trained(bases, tmp_path, name):
    base, tuning, tied = CASES[name]
    expected = answers(finished_run(tmp_path / "run", bases[base], tuning))
    report = merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    torch.testing.assert_close(answers(merged), expected, rtol=0, atol=1e-5)
    assert report.comparison.max_difference <= 1e-5
    assert report.weights == "float32"
    is_tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert is_tied == report.tied == (tied and base == "qwen2")
    assert ("lm_head.weight" in tensors(tmp_path / "out")) == (not is_tied)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert json.loads((tmp_path / "out" / "run.json").read_text())["merge"]["step"] == 7
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.parametrize("base", ["llama", "qwen2"])
def test_new_tokens_keep_their_embeddings(bases, tmp_path, base):
    tuned = finished_run(tmp_path / "run", bases[base], lora(), tokenizer=bases["larger"])
    merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    merged = loaded(tmp_path / "out")
    assert merged.config.vocab_size == 310
    torch.testing.assert_close(answers(merged), answers(tuned), rtol=0, atol=1e-5)
    copy = tuned.get_base_model().model.embed_tokens.modules_to_save["default"]
    assert torch.equal(merged.get_input_embeddings().weight, copy.weight)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 310


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_base_both_ways(bases, tmp_path, quantization, monkeypatch, caplog):
    monkeypatch.setattr("train.merge.steps.NOTABLE_KL", 0.0)
    trained = answers(finished_run(tmp_path / "run", bases["qwen2"], lora(quantization)))
    reports = {}
    for base in ("original", "dequantized"):
        reports[base] = merge(tmp_path / "run", tmp_path / base, MergeConfig(quantized_base=base))
        warned = "--quantized_base dequantized" in caplog.text
        assert warned == (base == "original")  # where it is the further one
        caplog.clear()
        assert reports[base].comparison.max_difference <= 1e-4
        assert set(reports[base].divergence) == {"original", "dequantized"}
        assert "quantization_config" not in json.loads((tmp_path / base / "config.json").read_text())
    found = {base: answers(loaded(tmp_path / base)) for base in reports}
    error = {base: float((found[base] - trained).abs().max()) for base in found}
    assert error["dequantized"] < error["original"]
    if quantization == "nf4":  # int8 rounds the activations as well, and so has no equal among plain models
        assert error["dequantized"] <= 1e-4
        assert reports["original"].divergence["dequantized"] < 1e-6 < reports["original"].divergence["original"]
    assert any("KL from the trained quantised model" in line for line in reports["original"].lines())


def test_what_a_quantised_run_rounded_besides_is_merged_as_rounded(bases, tmp_path):
    """A base stored in float32 under bf16 training: embeddings and norms were rounded too, and training saw that."""
    finished_run(tmp_path / "run", bases["qwen2"], lora("nf4"), dtype="bfloat16")
    report = merge(tmp_path / "run", tmp_path / "out", MergeConfig(quantized_base="dequantized"))
    assert (report.weights, report.compared_in) == ("float32", "float32")
    assert report.comparison.max_difference <= 1e-5
    embeddings = loaded(tmp_path / "out").get_input_embeddings().weight
    assert torch.equal(embeddings, embeddings.bfloat16().float())


@pytest.mark.parametrize("base", ["llama", "qwen2", "spare"])
def test_prompt_becomes_tokens(bases, tmp_path, base):
    tuned = finished_run(tmp_path / "run", bases[base], PROMPT)
    learned = AutoTokenizer.from_pretrained(tmp_path / "run/tokenizer").chat_template
    facts = json.loads((tmp_path / "run/run.json").read_text())
    facts["template_hash"] = hashlib.sha256(learned.encode()).hexdigest()
    (tmp_path / "run/run.json").write_text(json.dumps(facts))
    report = merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    evaluated = open_checkpoint(str(tmp_path / "out"), "merged")
    evaluated.require_template(evaluated.chat_template, "tokenizer")  # the prompt's tokens are in it now
    merged = loaded(tmp_path / "out")
    tokenizer, before = (AutoTokenizer.from_pretrained(tmp_path / part) for part in ("out", "run/tokenizer"))
    ids = list(report.prompt_tokens)
    assert len(ids) == 5
    rows = answers(tuned).shape[-1]
    torch.testing.assert_close(answers(merged, ids)[..., :rows], answers(tuned), rtol=0, atol=1e-5)
    assert merged.config.vocab_size == (320 if base == "spare" else 305)
    assert report.prompt_leak < 5 / rows
    talk = [{"role": "user", "content": "Hello 你好"}]
    for text in ("Hello", ""):
        assert tokenizer(text)["input_ids"] == ids + before(text)["input_ids"]
    assert tokenizer("a", "b")["input_ids"] == ids + before("a", "b")["input_ids"]
    asked, was = (t.apply_chat_template(talk, return_dict=False) for t in (tokenizer, before))
    assert asked == ids + was
    assert tokenizer.decode(asked, skip_special_tokens=True) == before.decode(was, skip_special_tokens=True)
    out = merged.generate(torch.tensor([tokenizer("Hello")["input_ids"]]), max_new_tokens=30, do_sample=True, top_k=0)
    assert not set(out[0, len(tokenizer("Hello")["input_ids"]) :].tolist()) & set(ids)


def test_weights_in_half_precision_in_a_run_in_float32(bases, tmp_path):
    finished_run(tmp_path / "run", bases["qwen2"], TuningConfig(kind="full"), dtype="bfloat16", precision="fp32")
    recorded = merge(tmp_path / "run", tmp_path / "out", MergeConfig()).recorded
    assert recorded is not None
    assert (recorded.precision, recorded.allowed) == ("bfloat16", 2e-1)


@pytest.mark.parametrize(
    ("weights", "kind"), [("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)]
)
def test_storage_is_as_asked(bases, tmp_path, weights, kind):
    finished_run(tmp_path / "run", bases["qwen2-bf16"], lora(bias="all"), dtype="bfloat16")
    report = merge(tmp_path / "run", tmp_path / "out", MergeConfig(weights=weights))
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {kind}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")
    assert report.comparison.max_difference <= {"auto": 0.1, "float32": 1e-5, "float16": 1e-2}[weights]


def test_fused_experts_are_written_as_their_files_were(tmp_path):
    config = Qwen3MoeConfig(
        vocab_size=300, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, head_dim=8,
        tie_word_embeddings=False, **SIZES,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.requires_grad_(True)
    disturb(model)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer(tmp_path / "base")
    expected = answers(finished_run(tmp_path / "run", tmp_path / "base", lora()))
    merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    torch.testing.assert_close(answers(loaded(tmp_path / "out")), expected, rtol=0, atol=1e-5)
    assert tensors(tmp_path / "out").keys() == tensors(tmp_path / "base").keys()
    assert any("experts.3.down_proj" in name for name in tensors(tmp_path / "out"))


def test_a_classification_head_is_handed_over_with_its_labels(bases, tmp_path):
    labels = {
        "id2label": {0: "O", 1: "B-protein", 2: "I-protein"},
        "label2id": {"O": 0, "B-protein": 1, "I-protein": 2},
    }
    head = (AutoModelForTokenClassification, labels, "TOKEN_CLS")
    tuned = finished_run(tmp_path / "run", bases["qwen2"], lora(modules_to_save=["score"]), head=head)
    merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    merged = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(answers(merged), answers(tuned), rtol=0, atol=1e-5)
    assert merged.config.id2label == labels["id2label"]


def test_a_model_that_started_at_random(bases, tmp_path):
    base = shutil.copytree(bases["llama"], tmp_path / "base")
    (base / "model.safetensors").unlink()
    expected = answers(finished_run(tmp_path / "run", base, lora(), init="random"))
    merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    torch.testing.assert_close(answers(loaded(tmp_path / "out")), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_dropout_is_off_when_the_trained_model_answers(bases, tmp_path, init):
    tuned = finished_run(tmp_path / "run", bases["qwen2"], lora(dropout=0.5), init=init)
    merge(tmp_path / "run", tmp_path / "merged", MergeConfig())
    torch.testing.assert_close(answers(loaded(tmp_path / "merged")), answers(tuned), rtol=0, atol=2e-4)


def test_full_tuning_needs_no_base_any_more(bases, tmp_path):
    base = shutil.copytree(bases["qwen2"], tmp_path / "base")
    expected = answers(finished_run(tmp_path / "run", base, TuningConfig()))
    shutil.rmtree(base)
    merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    torch.testing.assert_close(answers(loaded(tmp_path / "out")), expected, rtol=0, atol=1e-5)


def test_best_last_or_a_checkpoint_by_name(bases, tmp_path):
    run = tmp_path / "run"
    tuned = finished_run(run, bases["qwen2"], TuningConfig())
    expected = {7: answers(tuned)}
    disturb(tuned)
    expected[9] = answers(tuned)
    add_checkpoint(run, load(run / "config.yaml"), tuned, step=9, best_step=7)
    chosen = {"best": (run, 7), "last": (run, 9), "named": (run / "checkpoints" / "step-000009", 9)}
    for name, (path, step) in chosen.items():
        settings = MergeConfig(checkpoint="last" if name == "last" else "best")
        assert merge(path, tmp_path / name, settings).step == step
        torch.testing.assert_close(answers(loaded(tmp_path / name)), expected[step])


def test_shards_and_their_index(full_run, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "ShardWriter", lambda folder: ShardWriter(folder, shard_bytes=40_000))
    merge(full_run, tmp_path / "out", MergeConfig())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in tensors(tmp_path / "out").values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, "pt") as handle:
            assert name in handle.keys()  # noqa: SIM118


def change_weights(change):
    def sabotage(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return sabotage


def change_config(**values):
    def sabotage(folder):
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(described | values))

    return sabotage


def swap(found):
    one, two = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    found[one], found[two] = found[two], found[one]


NORM = "model.norm.weight"
SABOTAGE = {
    "two tensors swapped": (change_weights(swap), "was changed after writing"),
    "a tensor empty": (change_weights(lambda found: found.update({NORM: torch.empty(0)})), "norm.weight is empty"),
    "a tensor not finite": (change_weights(lambda found: found[NORM].fill_(torch.nan)), "not finite"),
    "a tensor missing": (change_weights(lambda found: found.pop(NORM)), "norm.weight is missing"),
    "a tensor too many": (change_weights(lambda found: found.update({"extra": torch.ones(2)})), "extra was changed"),
    "a flipped bit": (change_weights(lambda found: found[NORM].view(torch.int32).add_(1)), "changed after writing"),
    "no tie": (change_config(tie_word_embeddings=False), "lm_head.weight"),
    "another position code": (change_config(rope_parameters={"rope_type": "default", "rope_theta": 7.0}), "answers"),
    "another norm": (change_config(rms_norm_eps=0.5), "answers differently"),
    "another size": (change_config(intermediate_size=40), "cannot be loaded|mismatched"),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_bad_result_is_refused_and_leaves_nothing(full_run, tmp_path, monkeypatch, name):
    sabotage, message = SABOTAGE[name]
    finish = steps._Merge._write_rest

    def spoil(self, draft, tokenizer):
        finish(self, draft, tokenizer)
        sabotage(draft)

    monkeypatch.setattr(steps._Merge, "_write_rest", spoil)
    with pytest.raises(UserError, match=message):
        merge(full_run, tmp_path / "out", MergeConfig())
    assert list(tmp_path.iterdir()) == []


def test_wrong_arithmetic_is_noticed(bases, tmp_path, monkeypatch):
    finished_run(tmp_path / "run", bases["qwen2"], lora())
    from peft.tuners.lora import Linear

    monkeypatch.setattr(
        Linear, "get_delta_weight", lambda self, adapter: torch.zeros_like(self.get_base_layer().weight)
    )
    with pytest.raises(UserError, match="answers differently from the trained one"):
        merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    assert not list(tmp_path.glob("out*"))


def copy_of(run, folder):
    return shutil.copytree(run, folder / "run")


def test_a_base_that_has_changed_is_refused(bases, tmp_path):
    base = shutil.copytree(bases["llama"], tmp_path / "base")
    finished_run(tmp_path / "run", base, lora())
    kept = shutil.copytree(base, tmp_path / "kept")
    change_weights(lambda found: found["model.norm.weight"].add_(1e-3))(base)
    with pytest.raises(UserError, match=r"not the weights that training started from.*--base"):
        merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    assert not (tmp_path / "out").exists()
    shutil.rmtree(base)
    with pytest.raises(UserError, match="there is no folder"):
        merge(tmp_path / "run", tmp_path / "out", MergeConfig())
    assert merge(tmp_path / "run", tmp_path / "out", MergeConfig(), base=str(kept)).kind == "lora"


def test_a_damaged_checkpoint_is_refused(full_run, tmp_path):
    run = copy_of(full_run, tmp_path)
    path = run / "checkpoints" / "step-000007" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: sha256 differs"):
        merge(run, tmp_path / "out", MergeConfig())
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused(bases, tmp_path):
    run = tmp_path / "run"
    tuned = finished_run(run, bases["qwen2"], TuningConfig())
    tuned.model.norm.weight.data[3] = torch.inf
    add_checkpoint(run, load(run / "config.yaml"), tuned, step=8)
    with pytest.raises(UserError, match=r"model\.norm\.weight is not finite"):
        merge(run, tmp_path / "out", MergeConfig())


def test_only_an_earlier_merge_is_replaced(full_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    merge(full_run, out, MergeConfig())  # an empty folder is nobody's
    (out / "note.txt").write_text("old")
    merge(full_run, out, MergeConfig(weights="float16"))
    assert not (out / "note.txt").exists()
    assert tensors(out)["model.norm.weight"].dtype == torch.float16
    (out / "run.json").write_text("{}")
    with pytest.raises(UserError, match="is not an earlier merge"):
        merge(full_run, out, MergeConfig())


def test_a_full_disk_is_said_before_writing(full_run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("train.merge.atomic_folder.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CannotWriteError, match=r"out: about [0-9,]+ bytes are needed and 1,000 are free"):
        merge(full_run, tmp_path / "out", MergeConfig())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "neither a run folder"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "no finished checkpoint"),
        (lambda run: (run / "run.json").write_text("{"), r"run\.json: cannot be read as JSON"),
    ],
)
def test_what_is_no_run_is_refused(full_run, tmp_path, spoil, message):
    run = copy_of(full_run, tmp_path)
    spoil(run)
    with pytest.raises(UserError, match=message):
        merge(run, tmp_path / "out", MergeConfig())


def test_command_line(full_run, tmp_path, capsys):
    assert main([str(full_run), str(tmp_path / "out"), "--weights", "bfloat16"]) == 0
    assert "reloaded and compared in float32" in capsys.readouterr().out
    assert main([str(tmp_path), str(tmp_path / "other")]) == 64
    assert "neither a run folder" in capsys.readouterr().err


def test_help_waits_for_no_heavy_import():
    code = "import sys, train.merge.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

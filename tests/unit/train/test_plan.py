"""`python -m train.plan`: launch files and their conflicts, advice, and the reports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, Qwen3MoeConfig

from train.config import Config, ModelConfig
from train.engine import optimizer_state
from train.plan.__main__ import main, options
from train.plan.advice import fastest, smallest_change
from train.plan.launch import conflicts, layout_of, not_planned, read_files
from train.plan.layout import Layout
from train.plan.plan import Machine, Plan, checkpoint_bytes, plan, read_model, sent_bytes, with_changes
from train.plan.report import notes, verdict
from train.plan.states import at_peak, at_update
from train.plan.weights import Weight, local_model
from train.recipe import parse
from zerotune import shipped
from zerotune.common.byte_sizes import GB, bytes_of
from zerotune.common.errors import UserError

TINY = "examples/models/tiny-qwen2"
RECIPE = ["sft-full", "--model.path", TINY]


def of_recipe(*words: str) -> Config:
    return parse(["--config", "recipes/sft-full.yaml", "--model.path", TINY, *words])


@pytest.mark.parametrize("name", shipped.names(shipped.ACCELERATE))
def test_shipped_files_have_no_conflicts(name: str) -> None:
    files = read_files(name)
    layout = layout_of(files, 1 if name in ("cpu", "one_gpu") else 8, 2)
    assert list(conflicts(files, layout, Config())) == []
    assert layout.stage == (int(name[4]) if name.startswith("zero") else 0)
    assert layout.offloads_optimizer == ("offload" in name)
    assert layout.offloads_weights == (name == "zero3_offload")


def written(folder: Path, deepspeed: dict[str, Any], accelerate: str = "") -> str:
    (folder / "ds.json").write_text(json.dumps(deepspeed, indent=2))
    text = (
        f"distributed_type: DEEPSPEED\n{accelerate}deepspeed_config:\n  deepspeed_config_file: {folder / 'ds.json'}\n"
    )
    (folder / "my.yaml").write_text(text)
    return str(folder / "my.yaml")


SOUND = {
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("changed", "where", "said"),
    [
        ({"gradient_accumulation_steps": 4}, "ds.json:7", "batch.tokens_per_step; remove it, or set 1"),
        ({"gradient_clipping": 0.5}, "ds.json:7", "optim.clip_norm of the recipe is 1; set auto"),
        ({"bf16": {"enabled": False}}, "ds.json:8", "contradicts run.precision bf16; set auto"),
        ({"fp16": {"enabled": True}}, "ds.json:8", "contradicts run.precision bf16; set auto"),
        ({"optimizer": {"type": "Adam"}}, "ds.json:7", "contradicts optim.name of the recipe; remove it"),
        ({"scheduler": {}}, "ds.json:7", "contradicts optim.schedule"),
        ({"zero_allow_untested_optimizer": False}, "ds.json:5", "is false: the optimizer comes from the recipe"),
        ({**OFFLOAD, "zero_force_ds_cpu_optimizer": True}, "ds.json:9", "zero_force_ds_cpu_optimizer is true"),
    ],
)
def test_conflicts_name_file_line_and_cure(tmp_path: Path, changed: dict[str, Any], where: str, said: str) -> None:
    files = read_files(written(tmp_path, {**SOUND, **changed}))
    config = of_recipe("--run.precision", "bf16")
    (line,) = conflicts(files, layout_of(files, 8, 2), config)
    assert line.startswith(f"{tmp_path}/{where}: ")
    assert said in line


def test_conflicts_with_the_recipe(tmp_path: Path) -> None:
    files = read_files(written(tmp_path, SOUND, "mixed_precision: fp16\n"))
    config = of_recipe("--run.precision", "bf16", "--optim.name", "adafactor")
    first, second = conflicts(files, layout_of(files, 8, 2), config)
    assert first.startswith(f"{tmp_path}/my.yaml:2: mixed_precision fp16 is not used")
    assert second.startswith(f"{tmp_path}/my.yaml:1: optim.name adafactor cannot be used with zero-2")


@pytest.mark.parametrize(
    ("keys", "allreduces"),
    [
        ({}, True),
        ({"use_multi_rank_bucket_allreduce": False}, False),
        ({"use_multi_rank_bucket_allreduce": False, "reduce_scatter": False}, True),
    ],
)
def test_deepspeed_reduces_for_all_ranks_unless_told_otherwise(
    tmp_path: Path, keys: dict[str, bool], allreduces: bool
) -> None:
    files = read_files(written(tmp_path, {"zero_optimization": {"stage": 2, **keys}}))
    assert layout_of(files, 8, 2).allreduces is allreduces


def fsdp(folder: Path, key: str) -> str:
    text = f"distributed_type: FSDP\nnum_machines: 2\nnum_processes: 4\nfsdp_config:\n  fsdp_version: 2\n  {key}\n"
    (folder / "my.yaml").write_text(text)
    return str(folder / "my.yaml")


@pytest.mark.parametrize(
    ("key", "is_planned"),
    [
        ("fsdp_offload_params: true", False),
        ("fsdp_activation_checkpointing: true", False),
        ("fsdp_reshard_after_forward: false", False),
        ("fsdp_reshard_after_forward: true", True),
    ],
)
def test_keys_of_fsdp_that_are_not_planned(tmp_path: Path, key: str, is_planned: bool) -> None:
    files = read_files(fsdp(tmp_path, key))
    lines = list(not_planned(files, layout_of(files, 8, 2)))
    wanted = f"{tmp_path}/my.yaml:6: the memory with {key.replace(':', '')}"
    assert lines == ([] if is_planned else [wanted])


def test_keys_of_deepspeed_that_are_not_planned(tmp_path: Path) -> None:
    keys = {"stage": 3, "zero_hpz_partition_size": 8, "zero_quantized_weights": False}
    files = read_files(written(tmp_path, {"zero_optimization": keys}))
    (line,) = not_planned(files, layout_of(files, 8, 2))
    assert line.endswith("ds.json:4: the memory with zero_hpz_partition_size 8")


def test_offload_without_a_deepspeed_file(tmp_path: Path) -> None:
    inner = "  zero_stage: 3\n  offload_optimizer_device: cpu\n  offload_param_device: none\n"
    (tmp_path / "my.yaml").write_text(f"distributed_type: DEEPSPEED\ndeepspeed_config:\n{inner}")
    layout = layout_of(read_files(str(tmp_path / "my.yaml")), 8, 2)
    assert (layout.offloads_optimizer, layout.offloads_weights) == (True, False)


def test_a_plan_with_a_missing_part_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fsdp(tmp_path, "fsdp_offload_params: true")
    words = ["--accelerate", path, "--gpus-per-node", "8", "--gpu-memory", "0.5GB", "--format", "json"]
    assert main([*RECIPE, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is None
    assert found["notes"][0] == "Whether it fits is NOT KNOWN: see below."
    assert any("fsdp_offload_params" in line for line in found["notes"])
    machines, processes = found["conflicts"]
    assert machines.endswith("num_machines 2, but --nodes is 1; start with --num_machines 1, or change one")
    assert "num_processes 4, but --nodes times --gpus-per-node is 8" in processes


@pytest.mark.parametrize("stage", [0, 4, None, "two"])
def test_an_unknown_stage_is_refused(tmp_path: Path, stage: Any) -> None:
    files = read_files(written(tmp_path, {"zero_optimization": {"stage": stage}}))
    with pytest.raises(UserError, match=r"ds\.json:3: zero_optimization\.stage is .*must be 1, 2 or 3"):
        layout_of(files, 8, 2)


def test_a_missing_deepspeed_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, SOUND)
    (tmp_path / "ds.json").unlink()
    with pytest.raises(UserError, match=r"my\.yaml:3: there is no file"):
        read_files(path)


WEIGHTS = [
    Weight("embed.weight", (1000, 64), 256_000, 0),
    *(Weight(f"layer.{k}.matrix.weight", (64, 64), 16_384, 0, f"layer.{k}") for k in range(8)),
    Weight("layer.7.norm.weight", (64,), 256, 1, "layer.7"),
]


@pytest.mark.parametrize("ranks", [2, 4, 8, 1024])
@pytest.mark.parametrize("kind", ["zero-1", "zero-2", "zero-3", "fsdp"])
def test_shards_of_all_ranks_hold_each_number_once(kind: str, ranks: int) -> None:
    """All parts together are the whole state, and what fills the last ones up is less than a shard of each."""
    whole = at_update(WEIGHTS, Layout("single"), optimizer_state.adamw)
    shards = [at_update(WEIGHTS, Layout(kind, ranks, 4), optimizer_state.adamw, rank) for rank in range(ranks)]
    filled = 4 * len(WEIGHTS) * ranks + 8 * ranks * (64 * len(WEIGHTS) + 4)
    together = sum(states.optimizer for states in shards)
    assert whole.optimizer - 4 * len(WEIGHTS) <= together <= whole.optimizer + filled
    peak = at_peak(WEIGHTS, Layout(kind, ranks, 4), optimizer_state.adamw)
    assert peak.optimizer >= max(states.optimizer for states in shards)


def test_fewer_bytes_with_each_stage() -> None:
    sizes = [
        at_peak(WEIGHTS, Layout(kind, 8, 2, reduce_bucket=0, live=0, persistent_size=0), optimizer_state.adamw)
        for kind in ("zero-1", "zero-2", "zero-3")
    ]
    assert sizes[0].in_backward >= sizes[1].in_backward > sizes[2].in_backward


@pytest.mark.parametrize(("live", "gathered"), [(0, 64_000), (1000, 65_000), (10**9, 96_832)])
def test_zero3_fetches_the_largest_module_whatever_the_limit(live: int, gathered: int) -> None:
    """The embeddings have 64,000 of 96,832 weights."""
    assert at_peak(WEIGHTS, Layout("zero-3", 8, 2, live=live), optimizer_state.adamw).gathered == 2 * gathered


def test_offload_moves_to_the_host() -> None:
    near = at_update(WEIGHTS, Layout("zero-3", 8, 2), optimizer_state.adamw)
    far = at_update(
        WEIGHTS, Layout("zero-3", 8, 2, offloads_optimizer=True, offloads_weights=True), optimizer_state.adamw
    )
    assert far.master == far.optimizer == far.gradients == 0
    moved = near.weights - far.weights + near.master + near.optimizer + near.gradients
    assert far.on_host == moved


def test_sent_bytes() -> None:
    size = sum(w.size for w in WEIGHTS)
    assert sent_bytes(WEIGHTS, Layout("single")) == 0
    with pytest.raises(ValueError, match="sharding single on 8 ranks"):
        sent_bytes(WEIGHTS, Layout("single", 8))
    assert sent_bytes(WEIGHTS, Layout("ddp", 2)) == 4 * size  # reduced as float32, each half sent twice
    assert sent_bytes(WEIGHTS, Layout("zero-1", 2, micro_batches=4)) == 3 * size
    assert (
        sent_bytes(WEIGHTS, Layout("zero-2", 2)) == 3 * size
    )  # DeepSpeed reduces for all ranks, unless told otherwise
    assert sent_bytes(WEIGHTS, Layout("zero-2", 2, micro_batches=4)) == 9 * size
    assert sent_bytes(WEIGHTS, Layout("zero-2", 2, micro_batches=4, allreduces=False)) == 5 * size
    assert sent_bytes(WEIGHTS, Layout("zero-3", 2)) == 3 * size


@pytest.mark.parametrize("kind", ["single", "ddp", "zero-3", "fsdp"])
def test_checkpoint_bytes(kind: str) -> None:
    """Trained weights and two moments in float32, and a counter for each; shards of it do not count twice."""
    frozen = [dataclasses.replace(w, group=None) for w in WEIGHTS[1:]]
    for weights, size, count in ((WEIGHTS, 96_832, 10), ([WEIGHTS[0], *frozen], 64_000, 1)):
        layout = Layout(kind, 1 if kind == "single" else 8)
        assert checkpoint_bytes(weights, layout, optimizer_state.adamw) == 12 * size + 4 * count


@pytest.mark.parametrize(
    ("words", "checkpoints", "merged"),
    [
        ([], 4, 4 * 217_664),
        (["--checkpoint.keep_best", "false", "--checkpoint.keep_last", "1"], 2, 4 * 217_664),
        (["--merge.at_end", "false"], 4, 0),
        (["--merge.weights", "bfloat16"], 4, 2 * 217_664),
    ],
)
def test_disk(words: list[str], checkpoints: int, merged: int) -> None:
    with local_model(of_recipe(*words)) as config:
        found = plan(read_model(config), Layout(), Machine(80 * GB))
    assert (found.checkpoints, found.merged) == (checkpoints, merged)
    assert found.disk == checkpoints * found.checkpoint  # the merged model is smaller than one of them
    full = dataclasses.replace(found, checkpoint=1000, merged=5000, free_disk=(checkpoints - 1) * 1000 + 4999)
    said = any("The disk has no room" in line for line in notes(full, Machine(80 * GB), None, None))
    assert said
    roomy = dataclasses.replace(full, free_disk=full.disk)
    assert not any("The disk has no room" in line for line in notes(roomy, Machine(80 * GB), None, None))


def test_parameters_are_those_of_the_run() -> None:
    """217,664 is what a run of the tiny model prints."""
    with local_model(of_recipe()) as config:
        model = read_model(config)
        found = plan(model, Layout(), Machine(80 * GB))
        assert (found.trained, found.total) == (217_664, 217_664)
        lora = read_model(with_changes(config, {"tuning.kind": "lora"}))
        assert plan(lora, Layout(), Machine(80 * GB)).total > 217_664


def test_a_new_model_and_a_prompt() -> None:
    words = ["--model.family", "transformer", "--model.path", "", "--data.max_length_tokens", "64"]
    with local_model(parse(["--config", "recipes/language-model.yaml", *words])) as config:
        assert plan(read_model(config), Layout(), Machine(80 * GB)).trained > 10_000
    with local_model(of_recipe("--tuning.kind", "prompt")) as config:
        found = plan(read_model(config), Layout(), Machine(80 * GB))
    assert found.trained == 8 * 64
    assert not any("activations" in text for text in found.unknown)


def test_what_an_objective_adds_is_not_known() -> None:
    with local_model(parse(["--config", "recipes/numeric.yaml"])) as config:
        model = read_model(config)
        found = plan(model, Layout(), Machine(80 * GB))
    assert any("numeric values" in text for text in model.unknown)
    assert any("numeric" in weight.name for weight in model.weights)
    assert found.fits(Machine(80 * GB)) is None
    assert found.fits(Machine(GB // 2)) is False
    assert "NOT KNOWN" in verdict(found, Machine(80 * GB))


def ppo(*words: str) -> Config:
    return parse(["--config", "recipes/ppo-imdb-full.yaml", "--model.path", TINY, *words])


def test_ppo_holds_a_reference_a_scorer_and_the_responses() -> None:
    with local_model(ppo("--ppo.reward.0.path", TINY)) as config:
        model = read_model(config)
        found = plan(model, Layout("ddp", 8), Machine(80 * GB))
        sharded = plan(model, Layout("zero-3", 8), Machine(80 * GB))
    size = 217_664
    assert found.trained == size + 64  # a value head
    assert found.parts["reference model"] == 4 * size
    assert size <= found.parts["reward models"] / 2 <= size + 128 * 64
    assert found.is_whole
    assert found.seconds is None
    assert (found.step_tokens, found.layout.micro_batches) == (64 * 56, 1)
    assert sharded.parts["reference model"] < found.parts["reference model"]
    sampled = model.further.while_sampling(model.weights, sharded.layout, 80 * GB)
    assert sampled["gathered weights"] == 2 * (size + 64)
    heads, layers = 2, 2
    assert sampled["generation cache"] % (8 * 56 * heads * layers) == 0
    assert model.further.while_sampling(model.weights, sharded.layout, 0)["generation cache"] == 0


def test_ppo_without_its_scorer_is_not_whole() -> None:
    with local_model(ppo()) as config:
        found = plan(read_model(config), Layout(), Machine(80 * GB))
    assert found.fits(Machine(80 * GB)) is None
    assert any("ppo.reward[0].path" in text for text in found.unknown)


def test_a_value_model_is_trained_too() -> None:
    with local_model(ppo("--ppo.reward", "[{kind: length}]")) as config:
        alone = plan(read_model(config), Layout(), Machine(80 * GB))
    with local_model(ppo("--ppo.reward", "[{kind: length}]", "--ppo.value_model", TINY)) as config:
        found = plan(read_model(config), Layout(), Machine(80 * GB))
    assert found.trained > 1.8 * alone.trained
    assert found.parts["activations"] > 1.5 * alone.parts["activations"]


def test_a_value_model_is_measured_anew_for_each_setting() -> None:
    with local_model(ppo("--ppo.reward", "[{kind: length}]", "--ppo.value_model", TINY)) as config:
        again, alone = read_model(config), read_model(config)
        for kind in ("zero-3", "ddp"):
            plan(again, Layout(kind, 8), Machine(80 * GB))
        plan(alone, Layout("ddp", 8), Machine(80 * GB))
    assert len(again.activations) == 2
    assert alone.activations.items() <= again.activations.items()


def test_activations_that_cannot_be_measured_are_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("inside the model")

    monkeypatch.setattr("train.plan.plan.measure", fails)
    with local_model(of_recipe()) as config:
        found = plan(read_model(config), Layout(), Machine(80 * GB))
    assert found.fits(Machine(80 * GB)) is None
    assert any("activations" in text for text in found.unknown)


def test_a_mixture_of_experts_has_no_time(tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    Qwen3MoeConfig(**sizes, **experts).save_pretrained(tmp_path)
    words = ["--duration.max_steps", "10", "--model.path", str(tmp_path), "--model.init", "random"]
    with local_model(of_recipe(*words)) as config:
        found = plan(read_model(config), Layout(), Machine(80 * GB, "H100"))
    assert found.flops_per_token is found.seconds is None
    assert "the work and time of a mixture of experts" in found.unknown


def test_dropout_keeps_no_attention_weights(tmp_path: Path) -> None:
    sizes = []
    for dropout in (0.0, 0.1):
        GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=300, attn_pdrop=dropout).save_pretrained(tmp_path)
        words = ["--model.path", str(tmp_path), "--model.init", "random", "--data.max_length_tokens", "512"]
        with local_model(of_recipe(*words)) as config:
            sizes.append(plan(read_model(config), Layout(), Machine(80 * GB)).memory)
    assert sizes[0] == sizes[1]


def test_fsdp_keeps_whole_gradients_between_micro_batches() -> None:
    one, two = (at_peak(WEIGHTS, Layout("fsdp", 8, 2, n), optimizer_state.adamw).gradients for n in (1, 2))
    assert two - one == 4 * sum(w.size for w in WEIGHTS)


def test_more_gpus_are_offered() -> None:
    with local_model(of_recipe()) as config:
        model = read_model(config)
        few = plan(model, Layout("zero-3", 8), Machine(80 * GB))
        machine = Machine(round(few.memory * 0.999))
        change = smallest_change(model, Layout(), machine)
    assert change is not None


def test_a_classifier() -> None:
    words = ["--model.path", TINY, "--model.init", "random"]
    with local_model(parse(["--config", "recipes/bionlp-ner.yaml", *words])) as config:
        found = plan(read_model(config), Layout(), Machine(80 * GB))
    assert found.parts["activations"] > 0
    assert "loss" not in found.parts
    assert not any("activations" in text for text in found.unknown)


def test_advice_fits_and_can_be_copied() -> None:
    with local_model(of_recipe("--batch.tokens_per_micro_batch", "65536")) as config:
        model = read_model(config)
        layout = Layout("ddp", 8)
        needed = plan(model, layout, Machine(80 * GB)).memory - round(0.04 * 80 * GB)
        machine = Machine(round(needed * 0.98))
        tight = plan(model, layout, machine)
        assert tight.fits(machine) is False
        change = smallest_change(model, layout, machine)
        assert change is not None
        assert change.startswith("--batch.tokens_per_micro_batch") or "--model.gradient_checkpointing true" in change
        words = change.split()
        keys = {key.removeprefix("--"): json.loads(value) for key, value in zip(words[::2], words[1::2], strict=True)}
        changed = dataclasses.replace(model, config=with_changes(config, keys))
        assert plan(changed, layout, machine).fits(machine)
        assert fastest(model, layout, machine) is not None
        assert fastest(model, layout, Machine(10**6)) is None
        assert smallest_change(model, Layout(), Machine(10**6)) is None


def test_the_fastest_setting_can_be_this_one() -> None:
    machine = Machine(80 * GB)
    with local_model(of_recipe("--model.gradient_checkpointing", "false")) as config:
        model = read_model(config)
        layout = layout_of(read_files("ddp"), 8, 2)
        assert fastest(model, layout, machine) == ""
        assert str(fastest(model, layout_of(read_files("zero3"), 8, 2), machine)).startswith("--accelerate ddp")
        assert notes(plan(model, layout, machine), machine, None, "")[1].endswith("on 8 GPUs: this one")


def test_the_text_has_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes", "4", "--gpus-per-node", "8", "--accelerate", "zero3", "--ranks", "8", "64", "1024"]
    assert (
        main([*RECIPE, *words, "--gpu", "H100", "--duration.max_steps", "1000", "--duration.max_epochs", "null"]) == 0
    )
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "It fits" in text
    assert "1,024" in text
    assert "1,000 steps" in text


def test_json_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RECIPE, "--format", "json", "--ranks", "1", "8", "--accelerate", "ddp"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] == sum(found["parts"].values())
    assert [(one["sharding"]["kind"], one["sharding"]["ranks"]) for one in found["scaling"]] == [
        ("single", 1),
        ("ddp", 8),
    ]
    assert found["scaling"][0]["sent"] == 0
    assert found["scaling"][1]["sent"] == 7 * 217_664  # 8 bytes, 7 eighths of them
    assert "communication buckets" in found["scaling"][1]["parts"]
    assert found["seconds"] is None
    assert found["is_estimated"]
    assert found["tokens"] > 1000
    assert main([*RECIPE, "--format", "markdown"]) == 0
    assert "| together |" in capsys.readouterr().out


def test_tokens_are_estimated_from_files(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("x" * 40_000)

    def estimated(*words: str) -> Plan:
        with local_model(of_recipe(*words)) as config:
            return plan(read_model(config), Layout(), Machine(80 * GB, "H100"))

    source = f"[{{path: {tmp_path}/rows.jsonl, format: text, weight: 2.0, fraction: 0.5}}]"
    found = estimated("--data.train", source, "--duration.max_epochs", "3", "--batch.tokens_per_step", "10000")
    assert (found.tokens, found.steps, found.is_estimated) == (30_000, 3, True)
    assert found.token_cache == 60_000
    fixed = estimated("--data.train", source, "--duration.max_epochs", "3", "--duration.max_tokens", "5000")
    assert (fixed.tokens, fixed.is_estimated) == (5000, False)
    unknown = estimated("--data.train", "[{path: owner/name, format: text}]")
    assert unknown.tokens is unknown.seconds is unknown.token_cache is None
    assert any("steps and time" in text for text in unknown.unknown)


def test_gpus_without_rows_do_not_make_it_faster() -> None:
    with local_model(of_recipe("--duration.max_steps", "10", "--batch.tokens_per_step", "8192")) as config:
        model = read_model(config)
        few, many = (plan(model, Layout("ddp", ranks), Machine(80 * GB, "H100")) for ranks in (2, 1024))
    rows = 8192 // config.data.max_length_tokens
    assert (few.busy, many.busy) == (2, rows)
    assert few.seconds is not None
    assert many.seconds is not None
    assert few.seconds / many.seconds == pytest.approx(rows / 2)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_checkpointing_adds_the_forward_pass_of_the_layers(kind: str) -> None:
    """A matrix of a layer has 6 FLOPs for a token, frozen ones 4, attention 12, of which 2, 2 and 4 are repeated."""
    words = ["--duration.max_steps", "10", "--tuning.kind", kind, "--model.gradient_checkpointing", "false"]
    with local_model(of_recipe(*words)) as config:
        model = read_model(config)
        changed = dataclasses.replace(model, config=with_changes(config, {"model.gradient_checkpointing": True}))
        plain, again = (plan(each, Layout(), Machine(80 * GB, "H100")).seconds for each in (model, changed))
    attention = 2 * 64 * (config.data.max_length_tokens + 1) / 2  # layers x width x attended positions
    matrices = [w for w in model.weights if len(w.shape) == 2 and "embed" not in w.name]
    head = 2048 * 64 * (6 if kind == "full" else 4)
    products = sum((6 if w.is_trained else 4) * w.size for w in matrices)
    assert model.flops_per_token == pytest.approx(products + head + 12 * attention)
    repeated = sum(2 * w.size for w in matrices) + 4 * attention
    assert plain is not None
    assert again is not None
    assert again / plain == pytest.approx(1 + repeated / model.flops_per_token)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no recipe"),
        ([*RECIPE, "--gpu-memory", "much"], "--gpu-memory much: must be a size"),
        ([*RECIPE, "--nodes", "0"], "--nodes 0: must be a whole number from 1 on"),
        ([*RECIPE, "--nodes"], "--nodes needs a value"),
        ([*RECIPE, "--format", "html"], "--format html: must be text, markdown, json"),
        ([*RECIPE, "--utilization", "40"], "--utilization 40: must be above 0 and at most 1"),
        ([*RECIPE, "--accelerate", "zero4"], "there is no such accelerate config; did you mean"),
        ([*RECIPE, "--accelerate", "one_gpu", "--nodes", "2"], "it starts one process, not 2"),
        ([*RECIPE, "--accelerate", "one_gpu", "--ranks", "1", "8"], "it starts one process, not 8"),
        ([*RECIPE, "--gpu-memori", "80GB"], "did you mean --gpu-memory"),
    ],
)
def test_bad_words_give_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 64
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * GB), ("24", 24 * GB), ("79.5GiB", round(79.5 * 2**30))])
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text, "--gpu-memory") == size


def test_ranks_take_several_numbers() -> None:
    chosen = options([*RECIPE, "--ranks", "8", "64", "--nodes=2", "--gpus-per-node", "4", "--optim.name", "adamw_8bit"])
    assert (chosen.ranks, chosen.gpus, chosen.accelerate) == ((8, 64), 8, "ddp")
    assert chosen.recipe[-2:] == ("--optim.name", "adamw_8bit")
    assert options([*RECIPE, "--ranks", "1"]).accelerate == "one_gpu"
    assert options([*RECIPE, "--ranks", "1", "8"]).accelerate == "ddp"


def test_a_hub_model_is_asked_for_its_config_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, file: str, revision: str | None) -> str:
        asked.append((name, file))
        return str(Path(TINY, file))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with local_model(Config(model=ModelConfig(path="org/name"))) as config:
        assert Path(config.model.path) == Path(TINY)
    assert asked == [("org/name", "config.json")]

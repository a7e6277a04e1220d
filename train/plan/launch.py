"""The launch configuration of a run (accelerate config, DeepSpeed JSON) as a `Layout`, and its contradictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import Config
from train.plan.layout import Layout
from zerotune import shipped
from zerotune.common.errors import UserError
from zerotune.common.suggest import did_you_mean
from zerotune.common.yaml_lines import KeyPath, Located, read_yaml

AUTO = (None, "auto")
KINDS = {"NO": "single", "MULTI_CPU": "ddp", "MULTI_GPU": "ddp", "FSDP": "fsdp"}
ZERO = ("deepspeed", "zero_optimization")
NOT_PLANNED: dict[tuple[str, ...], object] = {  # keys that change the memory of a run: values with which they do not
    ("fsdp_config", "fsdp_offload_params"): False,
    ("fsdp_config", "fsdp_reshard_after_forward"): True,
    ("fsdp_config", "fsdp_activation_checkpointing"): False,
    (*ZERO, "zero_hpz_partition_size"): 1,
    (*ZERO, "mics_shard_size"): -1,
    (*ZERO, "zero_quantized_weights"): False,
    (*ZERO, "zero_quantized_gradients"): False,
    (*ZERO, "zero_quantized_nontrainable_weights"): False,
}


@dataclass(frozen=True)
class Files:
    """Both files. Keys of the DeepSpeed JSON begin with `deepspeed`."""

    accelerate: Located
    deepspeed: Located | None

    def get(self, *key: str) -> Any:
        """The value of a key, None where it is missing."""
        first, rest = (self.deepspeed, key[1:]) if key[0] == "deepspeed" else (self.accelerate, key)
        value: Any = first.value if first else None
        for part in rest:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def place(self, *key: str) -> str:
        """file:line of a key, or of the nearest above it."""
        file, path = (self.deepspeed, key[1:]) if key[0] == "deepspeed" else (self.accelerate, key)
        assert file is not None
        where: KeyPath = path
        while where not in file.places:
            where = where[:-1]
        return file.places[where]


def read_files(name: str) -> Files:
    """name: of a file in accelerate_configs, or a path. Raises UserError."""
    file = shipped.find(name, shipped.ACCELERATE)
    if file is None:
        known = list(shipped.names(shipped.ACCELERATE))
        near = did_you_mean(name, known) or f"; use a file, or one of {', '.join(known)}"
        raise UserError(f"--accelerate {name}: there is no such accelerate config{near}")
    accelerate = read_yaml(file)
    if not isinstance(accelerate.value, dict):
        raise UserError(f"{file}: not an accelerate config: it must be a mapping of keys to values")
    inner = accelerate.value.get("deepspeed_config") or {}
    path = inner.get("deepspeed_config_file") if isinstance(inner, dict) else None
    if path is None:
        return Files(accelerate, None)
    found = Path(shipped.from_here(str(path)))
    if not found.is_file():
        place = accelerate.places["deepspeed_config", "deepspeed_config_file"]
        raise UserError(f"{place}: there is no file {path}; name the DeepSpeed JSON, relative to the current folder")
    return Files(accelerate, read_yaml(found))  # JSON is YAML, and this reader knows the lines


def layout_of(files: Files, ranks: int, item: int) -> Layout:
    """How these files divide the state of a run. Raises UserError for a distributed_type that is not supported, or that
    does not suit the ranks.
    """
    kind = str(files.get("distributed_type"))
    if kind != "DEEPSPEED":
        if kind not in KINDS:
            raise UserError(f"{files.place('distributed_type')}: {kind} is not supported; see docs/sharding.md")
        known = KINDS[kind]
        if known == "single" and ranks > 1:
            place = files.place("distributed_type")
            raise UserError(f"{place}: it starts one process, not {ranks:,}; choose ddp, zero2 or another config")
        return Layout("single" if ranks == 1 and known == "ddp" else known, ranks, item)
    stage = files.get(*ZERO, "stage")
    if stage is None and files.deepspeed is None:
        stage = files.get("deepspeed_config", "zero_stage")
    if stage not in (1, 2, 3):
        where = files.place(*ZERO, "stage") if files.deepspeed else files.place("deepspeed_config")
        raise UserError(f"{where}: zero_optimization.stage is {stage}; it must be 1, 2 or 3 (without ZeRO, use ddp)")

    def number(key: str, default: int) -> int:
        value = files.get(*ZERO, key)
        return default if value in AUTO else int(float(value))

    default = Layout()
    overlaps = files.get(*ZERO, "overlap_comm")
    return Layout(
        f"zero-{stage}",
        ranks,
        item,
        reduce_bucket=number("reduce_bucket_size", default.reduce_bucket),
        persistent_size=number("stage3_param_persistence_threshold", default.persistent_size),
        persistent_total=number("stage3_model_persistence_threshold", default.persistent_total),
        live=number("stage3_max_live_parameters", default.live),
        sub_group=number("sub_group_size", default.sub_group),
        overlaps=stage == 3 if overlaps is None else bool(overlaps),
        allreduces=False in (files.get(*ZERO, "reduce_scatter"), files.get(*ZERO, "contiguous_gradients"))
        or files.get(*ZERO, "use_multi_rank_bucket_allreduce") is not False,
        contiguous=files.get(*ZERO, "contiguous_gradients") is not False,
        offloads_optimizer=_offloads(files, "offload_optimizer"),
        offloads_weights=_offloads(files, "offload_param"),
    )


def _offloads(files: Files, key: str) -> bool:
    where = (*ZERO, key, "device") if files.deepspeed else ("deepspeed_config", f"{key}_device")
    return files.get(*where) not in (None, "none")


def not_planned(files: Files, layout: Layout) -> Iterator[str]:
    """file:line, and a key that changes the memory of the run in a way that is not computed."""
    for key, default in NOT_PLANNED.items():
        matters = bool(layout.stage) if key[0] == "deepspeed" else layout.kind == "fsdp"
        value = files.get(*key)
        if matters and value not in (*AUTO, default):
            yield f"{files.place(*key)}: the memory with {key[-1]} {str(value).lower()}"


def other_counts(files: Files, nodes: int, ranks: int) -> Iterator[str]:
    """file:line of numbers that are not those of the plan, and the cure."""
    for key, count, option, unset in (
        ("num_machines", nodes, "--nodes", (None, 1)),  # the files for one machine say 1 by default
        ("num_processes", ranks, "--nodes times --gpus-per-node", (None,)),
    ):
        value = files.get(key)
        if value not in (*unset, count):
            cure = f"start with --{key} {count}, or change one"
            yield f"{files.place(key)}: {key} {value}, but {option} is {count}; {cure}"


def conflicts(files: Files, layout: Layout, config: Config) -> Iterator[str]:
    """file:line, what contradicts the recipe or the program, and the cure."""
    for key in (
        ("gradient_accumulation_steps",),
        ("deepspeed_config", "gradient_accumulation_steps"),
        ("deepspeed", "gradient_accumulation_steps"),
    ):
        value = files.get(*key)
        if value not in (*AUTO, 1):
            yield (
                f"{files.place(*key)}: gradient_accumulation_steps {value} is not used: the loop accumulates up to "
                "batch.tokens_per_step; remove it, or set 1"
            )
    yield from _precision(files, config)
    clip = files.get("deepspeed", "gradient_clipping")
    if clip not in (*AUTO, config.optim.clip_norm):
        yield (
            f"{files.place('deepspeed', 'gradient_clipping')}: {clip} is not used: optim.clip_norm of the recipe is "
            f"{config.optim.clip_norm:g}; set auto"
        )
    for name, recipe_key in (("optimizer", "optim.name"), ("scheduler", "optim.schedule")):
        if files.get("deepspeed", name) is not None:
            yield f"{files.place('deepspeed', name)}: {name} contradicts {recipe_key} of the recipe; remove it"
    if layout.stage:
        yield from _zero(files, layout)
    reason = config.optim.spec.unfit.get(layout.kind.partition("-")[0])
    if reason:
        place = files.place("distributed_type")
        yield f"{place}: optim.name {config.optim.name} cannot be used with {layout.kind}: {reason}; set adamw, or ddp"
    if config.tuning.quantization != "none" and layout.kind in ("zero-3", "fsdp"):
        place = files.place("distributed_type")
        yield f"{place}: {layout.kind} does not shard quantised weights: every GPU holds all of them; use ddp"
    version = files.get("fsdp_config", "fsdp_version")
    if layout.kind == "fsdp" and version != 2:
        yield f"{files.place('fsdp_config', 'fsdp_version')}: fsdp_version {version}: only 2 is supported; set 2"


def _precision(files: Files, config: Config) -> Iterator[str]:
    wanted = config.run.precision
    mixed = files.get("mixed_precision")
    if mixed is not None and wanted != "auto" and {"no": "fp32"}.get(str(mixed), str(mixed)) != wanted:
        place = files.place("mixed_precision")
        yield f"{place}: mixed_precision {mixed} is not used: run.precision of the recipe is {wanted}; remove it"
    for name in ("bf16", "fp16"):
        value = files.get("deepspeed", name, "enabled")
        expected = (("bf16" if wanted == "auto" else wanted) == name) if value not in AUTO else value
        if value not in AUTO and bool(value) != expected:
            place = files.place("deepspeed", name, "enabled")
            yield f"{place}: {name}.enabled {str(value).lower()} contradicts run.precision {wanted}; set auto"


def _zero(files: Files, layout: Layout) -> Iterator[str]:
    if files.deepspeed is None:
        return
    for key, needed in (("zero_allow_untested_optimizer", True), ("zero_force_ds_cpu_optimizer", False)):
        value = files.get("deepspeed", key)
        matters = key == "zero_allow_untested_optimizer" or layout.offloads_optimizer
        if matters and value is not needed:
            text = "is missing" if value is None else f"is {str(value).lower()}"
            yield (
                f"{files.place('deepspeed', key)}: {key} {text}: the optimizer comes from the recipe; "
                f"set {str(needed).lower()}"
            )
    if files.get("use_cpu"):
        yield f"{files.place('use_cpu')}: Accelerate ignores DeepSpeed if use_cpu is true; remove use_cpu"

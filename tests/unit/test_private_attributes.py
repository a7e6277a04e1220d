"""Every attribute that a library does not promise, named once with the versions that have it.

An upgrade past an upper bound starts here: raise the bound in pyproject.toml and in `KNOWN`, and see which are gone.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("train", "eval", "zerotune")
STANDARD_LIBRARY = {"_exit", "_current_frames", "_actions"}  # os, sys, argparse
PREFIXES = ("_", "ds_")  # ds_: what ZeRO-3 writes on parameters
# Versions (as in pyproject.toml) -> attribute -> the library's file that defines it.
KNOWN = {
    "accelerate>=1.15,<1.16": {"_set_sync_gradients": "accelerate/state.py"},
    "datasets>=5.2,<6": {"_fingerprint": "datasets/arrow_dataset.py"},
    "deepspeed>=0.19.8,<0.20": {
        "_copy_recovery_script": "deepspeed/runtime/engine.py",
        "_get_zero_param_shapes": "deepspeed/runtime/engine.py",
        "_hp_mapping": "deepspeed/utils/mixed_precision_linkage.py",
        "_param_slice_mappings": "deepspeed/runtime/zero/stage_1_and_2.py",
        "_register_deepspeed_module": "deepspeed/runtime/zero/parameter_offload.py",
        "backward_hooks": "deepspeed/runtime/zero/parameter_offload.py",
        "build_shm_op": "deepspeed/comm/torch.py",
        "ds_active_sub_modules": "deepspeed/runtime/zero/partition_parameters.py",
        "ds_numel": "deepspeed/runtime/zero/partition_parameters.py",
        "ds_shape": "deepspeed/runtime/zero/partition_parameters.py",
        "forward_hooks": "deepspeed/runtime/zero/parameter_offload.py",
        "fp32_partitioned_groups_flat": "deepspeed/runtime/zero/stage3.py",
        "parameter_offload": "deepspeed/runtime/zero/stage3.py",
        "single_partition_of_fp32_groups": "deepspeed/runtime/zero/stage_1_and_2.py",
        "update_lp_params": "deepspeed/runtime/zero/stage_1_and_2.py",
    },
    "sacrebleu>=2.6,<3": {
        "_compute_score_from_stats": "sacrebleu/metrics/base.py",
        "_extract_corpus_statistics": "sacrebleu/metrics/base.py",
    },
    "torch>=2.13,<2.14": {
        "_DropoutNd": "torch/nn/modules/dropout.py",
        "_MEM_FORMAT_ENCODING": "torch/distributed/checkpoint/metadata.py",
        "_StorageInfo": "torch/distributed/checkpoint/filesystem.py",
        "_buffers": "torch/nn/modules/module.py",
        "_cdata": "torch/storage.py",
        "_foreach_mul_": "torch/_C/_VariableFunctions.pyi",
        "_forward_hooks": "torch/nn/modules/module.py",
        "_forward_pre_hooks": "torch/nn/modules/module.py",
        "_forward_pre_hooks_with_kwargs": "torch/nn/modules/module.py",
        "_get_fsdp_state": "torch/distributed/fsdp/_fully_shard/_fully_shard.py",
        "_get_layout": "torch/serialization.py",
        "_get_metadata_path": "torch/distributed/checkpoint/filesystem.py",
        "_lazy_init": "torch/distributed/fsdp/_fully_shard/_fsdp_state.py",
        "_non_persistent_buffers_set": "torch/nn/modules/module.py",
        "_orig_mod": "torch/_dynamo/eval_frame.py",
        "_post_forward_hook_handle": "torch/distributed/fsdp/_fully_shard/_fsdp_state.py",
        "_pre_forward_hook_handle": "torch/distributed/fsdp/_fully_shard/_fsdp_state.py",
        "_python_dispatch": "torch/utils/_python_dispatch.py",
        "_pytree": "torch/utils/_pytree.py",
        "_subclasses": "torch/_subclasses/fake_tensor.py",
    },
    "transformers>=5.23,<5.24": {
        "_attn_implementation": "transformers/configuration_utils.py",
        "_dequantize_one": "transformers/integrations/finegrained_fp8.py",
        "_from_config": "transformers/modeling_utils.py",
        "_hf_deepspeed_config_weak_ref": "transformers/integrations/deepspeed.py",
        "_is_stateful": "transformers/modeling_utils.py",
        "_keep_in_fp32_modules_strict": "transformers/modeling_utils.py",
        "_model_mapping": "transformers/models/auto/auto_factory.py",
        "_no_split_modules": "transformers/modeling_utils.py",
        "_supports_attention_backend": "transformers/modeling_utils.py",
    },
}
NAMED = {name for attributes in KNOWN.values() for name in attributes}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def trees() -> dict[str, ast.Module]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return {str(path.relative_to(ROOT)): tree_of(path) for path in files}


def is_private(name: str) -> bool:
    return name.startswith(PREFIXES) and not name.startswith("__") and name not in STANDARD_LIBRARY


def defined(tree: ast.Module) -> set[str]:
    """Names that a file gives to functions, classes, variables and attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def foreign(tree: ast.Module, ours: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of each private attribute of something that is not ours."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            on_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [node.attr] if not on_self or node.attr not in ours else []
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith((*FOLDERS, "__future__")):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in names:
            if is_private(name):
                yield node.lineno, name


def test_each_private_attribute_is_named_here() -> None:
    ours = {name for tree in trees().values() for name in defined(tree)}
    used = [(f"{file}:{line}", name) for file, tree in trees().items() for line, name in foreign(tree, ours)]
    assert [f"{at}: {name}" for at, name in used if name not in NAMED] == []


def test_each_name_here_is_used() -> None:
    words = {
        word
        for tree in trees().values()
        for node in ast.walk(tree)
        for text in [getattr(node, key, None) for key in ("attr", "name", "value", "module")]
        if isinstance(text, str)
        for word in (text, *text.split("."))
    }
    assert sorted(NAMED - words) == []


@pytest.mark.parametrize("versions", KNOWN)
def test_a_library_has_an_upper_bound_and_is_within_it(versions: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert versions in [*project["dependencies"], *project["optional-dependencies"]["eval"]]
    known = Requirement(versions)
    assert "<" in versions
    assert metadata.version(known.name) in known.specifier


@pytest.mark.parametrize("versions", KNOWN)
def test_the_installed_library_defines_them(versions: str) -> None:
    distribution = metadata.distribution(Requirement(versions).name)
    gone = []
    for name, file in KNOWN[versions].items():
        path = Path(str(distribution.locate_file(file)))
        is_module = name in path.with_suffix("").parts
        if not path.is_file() or not (is_module or name in defined(tree_of(path))):
            gone.append(f"{file}: {name}")
    assert not gone

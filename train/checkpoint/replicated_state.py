"""Model and optimizer state if every rank has all of it (one process, DDP): safetensors and JSON, no pickle.

The optimizer's state is stored by parameter name, independent of their order. It is restored entry by entry, without
the casts of `Optimizer.load_state_dict`, which would damage 8-bit states.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zerotune.common.errors import UserError

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
OPTIMIZER_REST = "optimizer.json"
# Options that change how a step is computed, not its result: chosen for the current machine, not restored.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """All tensors that training changes, by name: trained parameters (tied ones once) and persistent buffers."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    persistent = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    }
    return parameters | {name: b for name, b in model.named_buffers() if name in persistent}


def require_same_names(saved: Iterable[str], present: Iterable[str], where: Path) -> None:
    """Raise UserError if the names differ."""
    missing, extra = sorted(set(present) - set(saved)), sorted(set(saved) - set(present))
    if missing:
        raise UserError(
            f"{where}: has no {missing[0]!r} ({len(missing)} missing), which this run trains: another model or tuning?"
        )
    if extra:
        raise UserError(
            f"{where}: has {extra[0]!r} ({len(extra)} such), which this run does not train: another model or tuning?"
        )


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All tensors of model and optimizer that are written; shared ones once."""
    states = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    return list({id(tensor): tensor for tensor in (*trained_state(model).values(), *states)}.values())


def bytes_to_save(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of tensors that would be written now."""
    return sum(tensor.nbytes for tensor in tensors(model, optimizer))


def contents(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> dict[str, Any]:
    """The content of the files by name, for `write`: tensors, not copied, or text."""
    tensors, rest = _optimizer_contents(model, optimizer, scaler)
    return {MODEL: trained_state(model), OPTIMIZER: tensors, OPTIMIZER_REST: json.dumps(rest, indent=1)}


def write(files: Mapping[str, Any], folder: Path) -> None:
    """Write the files of `contents`, or a copy of them, into `folder`."""
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            on_host = {key: tensor.detach().cpu().contiguous() for key, tensor in content.items()}
            save_file(on_host, folder / name, {"format": "pt"})


def load(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, folder: Path) -> None:
    """Restore model and optimizer."""
    load_model(model, folder)
    load_optimizer(model, optimizer, scaler, folder)


@torch.no_grad()
def load_model(model: nn.Module, folder: Path) -> None:
    """Restore the weights in place. Raises UserError naming the first tensor that does not fit."""
    target = trained_state(model)
    with safe_open(folder / MODEL, "pt") as file:
        require_same_names(file.keys(), target, folder / MODEL)
        for name, tensor in target.items():
            saved = file.get_tensor(name)
            if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                raise UserError(
                    f"{folder / MODEL}: {name} is {saved.dtype} {list(saved.shape)}, "
                    f"the model's is {tensor.dtype} {list(tensor.shape)}"
                )
            tensor.copy_(saved)


def _optimizer_contents(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and everything else (fp16's loss scale too) as JSON."""
    names = _names(model, optimizer)
    tensors: dict[str, Tensor] = {}
    # Some optimizers share one table among all parameters; safetensors stores no tensor twice.
    aliases: dict[str, str] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    numbers: dict[str, dict[str, Any]] = {}

    def put(key: str, tensor: Tensor) -> None:
        known = first.setdefault((tensor.data_ptr(), tensor.shape), key) if tensor.numel() else key
        if known == key:
            tensors[key] = tensor
        else:
            aliases[key] = known

    for parameter, state in optimizer.state.items():
        name = names[parameter]
        numbers[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        for key, value in state.items():
            if isinstance(value, Tensor):
                put(f"{name}/{key}", value)
    groups = [
        {
            "params": [names[p] for p in group["params"]],
            "options": {k: _number(v) for k, v in group.items() if k != "params" and k not in IMPLEMENTATION},
        }
        for group in optimizer.param_groups
    ]
    return tensors, {
        "optimizer": type(optimizer).__name__,
        "groups": groups,
        "numbers": numbers,
        "aliases": aliases,
        "scaler": scaler.state_dict() if scaler is not None else None,
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, folder: Path) -> None:
    """Restore the state, also of an optimizer without one. Raises UserError naming what does not fit."""
    path = folder / OPTIMIZER_REST
    rest = json.loads(path.read_text(encoding="utf-8"))
    if rest["optimizer"] != type(optimizer).__name__:
        raise UserError(f"{path}: state of {rest['optimizer']}, this run uses {type(optimizer).__name__} (optim.name)")
    load_scaler(scaler, rest["scaler"], path)
    names = _names(model, optimizer)
    parameters = {name: parameter for parameter, name in names.items()}
    present = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    require_same_names((n for group in rest["groups"] for n in group["params"]), (n for g in present for n in g), path)
    if present != [group["params"] for group in rest["groups"]]:
        raise UserError(
            f"{path}: the optimizer's groups hold other parameters, or in another order. Resume with the version of "
            "the program that wrote this checkpoint (`code` in run.json)"
        )
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in rest["numbers"].items()}
    placed: dict[str, Tensor] = {}
    with safe_open(folder / OPTIMIZER, "pt") as file:
        for full in file.keys():  # noqa: SIM118  (not a dict)
            name, key = full.rsplit("/", 1)
            placed[full] = file.get_tensor(full).to(_device(optimizer, parameters[name], key))
    for full, tensor in (placed | {alias: placed[known] for alias, known in rest["aliases"].items()}).items():
        name, key = full.rsplit("/", 1)
        state[name][key] = tensor
    optimizer.state.clear()
    for name, values in state.items():
        optimizer.state[parameters[name]] = values
    for group, saved in zip(optimizer.param_groups, rest["groups"], strict=True):
        for key, value in saved["options"].items():
            group[key] = _like(group.get(key), value)


def load_scaler(scaler: Any, saved: dict[str, Any] | None, where: Path) -> None:
    """Restore fp16's loss scale. Raises UserError if only the run or only the checkpoint has one."""
    if (saved is None) != (scaler is None):
        raise UserError(f"{where}: run.precision differs: fp16 {'now' if scaler else 'in the checkpoint'} only")
    if scaler is not None:
        scaler.load_state_dict(saved)


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {p: names[p] for group in optimizer.param_groups for p in group["params"]}


def _device(optimizer: torch.optim.Optimizer, parameter: Tensor, key: str) -> torch.device:
    """The device of an entry: torch keeps `step` on the CPU, except for fused and capturable optimizers."""
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    on_device = key != "step" or group.get("fused") or group.get("capturable")
    return parameter.device if on_device else torch.device("cpu")


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _like(present: Any, saved: Any) -> Any:
    """`saved`, as the type of `present`: JSON has neither tuples nor tensors."""
    if isinstance(present, Tensor):
        return torch.tensor(saved, dtype=present.dtype, device=present.device)
    return tuple(saved) if isinstance(present, tuple) else saved


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, on the CPU."""
    with safe_open(folder / MODEL, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)

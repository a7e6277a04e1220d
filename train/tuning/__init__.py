"""Which weights move: one file for each tuning of `train.registry.TUNINGS`. What is learned is no concern of theirs."""

from __future__ import annotations

from pkgutil import resolve_name

from torch import nn

from train.config import ModelConfig, TuningConfig
from train.protocols import Tuning


def make_tuning(
    config: TuningConfig, seed: int = 0, *, model: ModelConfig | None = None, task: str = "CAUSAL_LM"
) -> Tuning:
    """The tuning that the recipe asks for.

    Args:
        config: The recipe's `tuning`.
        seed: Start values of new weights are a function of it, the same on every rank.
        model: The recipe's `model`, for a prompt that starts from a text.
        task: peft's name for what the model is used for: CAUSAL_LM, TOKEN_CLS, SEQ_CLS, or FEATURE_EXTRACTION.
    """
    made: Tuning = resolve_name(config.spec.place)(config, seed, model=model, task=task)
    return made


def share_trained(model: nn.Module) -> tuple[int, int]:
    """(trained, all) parameters, tied ones once, as in the unsharded and unquantised model."""
    trained = total = 0
    for parameter in model.parameters():
        count = _size(parameter)
        total += count
        trained += count if parameter.requires_grad else 0
    return trained, total


def _size(parameter: nn.Parameter) -> int:
    whole = getattr(parameter, "ds_numel", None)  # under ZeRO-3 the parameter itself is a shard, or empty
    if whole is not None:
        return int(whole)
    if type(parameter).__name__ == "Params4bit":  # two weights a byte, in storage that may be wider than a byte
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        return int(shape.numel()) if shape is not None else parameter.numel() * 2 * parameter.element_size()
    return parameter.numel()

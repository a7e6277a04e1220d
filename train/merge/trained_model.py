"""Builds the trained model as training does, unmerged: the merged model must give the same answers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.initialization import no_init_weights

from train.config import TuningConfig
from train.merge.base_weights import dequantized
from train.merge.source import Source, new_parts
from train.models.load import load_model, unquantized
from train.tuning import make_tuning
from zerotune.common.errors import UserError
from zerotune.models import number_rows


def trained_model(source: Source, dtype: torch.dtype, quantized: bool = False) -> Any:
    """The tuned model with the trained weights, in evaluation mode; base in `dtype`, or quantised as in training."""
    if source.tuning.spec.replaces_base:
        with no_init_weights():  # every weight is replaced
            model = source.model_class._from_config(copy.deepcopy(source.model_config), dtype=dtype)
        model.tie_weights()
        _fill(model, source.trained, source)
        return model.eval()
    tuning_config = source.tuning if quantized else dataclasses.replace(source.tuning, quantization="none")
    return _tuned(source, tuning_config, dtype)


def _tuned(source: Source, config: TuningConfig, dtype: torch.dtype) -> Any:
    tuning = make_tuning(config, source.config.run.seed, model=source.model, task=source.task)
    model_config = copy.deepcopy(source.model_config)
    rows = model_config.get_text_config().vocab_size
    model_config.get_text_config().vocab_size = source.base_rows
    head = [] if source.task == "CAUSAL_LM" else new_parts(source)
    pretrained_options = {**unquantized(tuning.load_options(dtype), head), "config": model_config}
    options = pretrained_options if source.model.init == "pretrained" else source.head_options
    model: Any = load_model(
        source.model_class, source.model, dtype, None, options, source.config.run.seed, new_parts(source)
    )
    if rows > source.base_rows:
        model.resize_token_embeddings(rows, mean_resizing=False)  # the new rows are replaced
    if source.trains_new_rows:
        model.resized_from_tokens = source.base_rows
    if source.number_rows is not None:
        number_rows.set_rows(model, source.number_id, source.number_rows)
    tuned = tuning.apply(model)
    _fill(tuned, source.trained, source)
    return tuned.eval()


@torch.no_grad()
def _fill(model: Any, trained: Mapping[str, Tensor], source: Source) -> None:
    """Set the trained weights. Their names must be exactly those of the model's trained parameters."""
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    extra, missing = sorted(set(trained) - set(places)), sorted(expected - set(trained))
    if extra or missing:
        what = f"{extra[0]} does not belong to" if extra else f"{missing[0]} is missing for"
        raise UserError(f"{source.checkpoint}: {what} the model that its config.yaml describes")
    for name, tensor in trained.items():
        if places[name].shape != tensor.shape:
            raise UserError(
                f"{source.checkpoint}: {name} is {list(tensor.shape)}, the model's {list(places[name].shape)}"
            )
        if places[name].dtype == tensor.dtype and places[name].device == tensor.device:
            places[name].data = tensor  # shared, not copied: saves memory
        else:
            places[name].copy_(tensor)


@torch.no_grad()
def copy_dequantized(plain: Any, quantized: Any) -> None:
    """Copy the dequantised weights of `quantized` into `plain`, also those that are not quantised but rounded."""
    twins = dict(quantized.named_modules())
    for name, module in plain.named_modules():
        twin = dict(twins[name].named_parameters(recurse=False))
        for leaf, parameter in module.named_parameters(recurse=False):
            if leaf in twin:
                parameter.copy_(dequantized(twins[name], twin[leaf]))

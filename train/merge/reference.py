"""The trained model before merging: built as training builds it, to say what the merged one must answer.

Shape suffixes: r rows of the probe, t positions, v vocabulary or classes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.initialization import no_init_weights

from train.config import TuningConfig
from train.errors import UserError
from train.merge.base import dequantized
from train.merge.source import Source, new_parts
from train.models.load import load_model, unquantized
from train.tuning import TUNINGS

# A little of what models meet: English, Chinese, digits, code. Enough to tell right from wrong, short enough for a CPU.
TEXT = (
    'The old lighthouse keeper counted 37 ships before dawn, and wrote: "fog from the north-west; nothing lost." '
    "人工智能模型需要在合并之后保持完全一致的输出,否则评估的结果就没有意义。def merge(a, b): return {**a, **b}"
)
POSITIONS = 64


def probe(tokenizer: Any, vocabulary: int, positions: int) -> Tensor:
    """[2, t] token ids, always the same for one tokenizer: the text (repeated to length), and tokens at random."""
    ids = [i for i in tokenizer(TEXT, add_special_tokens=False)["input_ids"] if i < vocabulary] if tokenizer else []
    text_t = torch.tensor((ids * positions or [0] * positions)[:positions])
    random_t = torch.randint(0, vocabulary, (positions,), generator=torch.Generator().manual_seed(0))
    return torch.stack([text_t, random_t])


@torch.no_grad()
def logits(model: Any, ids_rt: Tensor, start: tuple[int, ...] = ()) -> Tensor:
    """[r, t, v] float32 answers to each row after the tokens of `start`; [r, v] where there is one answer a row."""
    model.eval()
    rows = []
    for ids_t in ids_rt:
        ids_1t = torch.cat([torch.tensor(start, dtype=ids_t.dtype), ids_t])[None].to(model.device)
        out: Tensor = model(input_ids=ids_1t, use_cache=False).logits[0].float().cpu()
        rows.append(out[-len(ids_t) :] if out.ndim == 2 else out)
    return torch.stack(rows)


def trained_model(source: Source, dtype: torch.dtype, quantized: bool = False) -> Any:
    """The tuned model with the trained weights, its base in `dtype` or quantised as in training."""
    if source.tuning.kind == "full":
        with no_init_weights():  # every weight is replaced
            model = source.model_class._from_config(copy.deepcopy(source.described), dtype=dtype)
        model.tie_weights()
        _fill(model, source.trained, source)
        return model
    tuning_config = source.tuning if quantized else dataclasses.replace(source.tuning, quantization="none")
    return _tuned(source, tuning_config, dtype)


def _tuned(source: Source, config: TuningConfig, dtype: torch.dtype) -> Any:
    tuning = TUNINGS[config.kind](config, source.config.run.seed, model=source.model, task=source.task)
    described = copy.deepcopy(source.described)
    rows = described.get_text_config().vocab_size
    described.get_text_config().vocab_size = source.base_rows
    head = [] if source.task == "CAUSAL_LM" else new_parts(source)
    given = {**unquantized(tuning.load_options(dtype), head), "config": described}
    options = given if source.model.init == "pretrained" else source.head_options
    model: Any = load_model(
        source.model_class, source.model, dtype, None, options, source.config.run.seed, new_parts(source)
    )
    if rows > source.base_rows:
        model.resize_token_embeddings(rows, mean_resizing=False)  # the new rows are replaced
        model.resized_from_tokens = source.base_rows
    tuned = tuning.apply(model)
    _fill(tuned, source.trained, source)
    return tuned


@torch.no_grad()
def _fill(model: Any, trained: Mapping[str, Tensor], source: Source) -> None:
    """Put the trained weights in their places; all of them must have one, and all trained places must get one."""
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    asked = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    strange, missing = sorted(set(trained) - set(places)), sorted(asked - set(trained))
    if strange or missing:
        what = f"{strange[0]} has no place in" if strange else f"{missing[0]} is missing for"
        raise UserError(f"{source.checkpoint}: {what} the model that its config.yaml describes")
    for name, tensor in trained.items():
        if places[name].shape != tensor.shape:
            raise UserError(
                f"{source.checkpoint}: {name} is {list(tensor.shape)}, the model's {list(places[name].shape)}"
            )
        if places[name].dtype == tensor.dtype and places[name].device == tensor.device:
            places[name].data = tensor  # shared: a model is held in memory once
        else:
            places[name].copy_(tensor)


@torch.no_grad()
def take_over_quantized(plain: Any, quantized: Any) -> None:
    """Give a model the weights that its quantised twin stands for; those left unquantised too, as rounded there."""
    twins = dict(quantized.named_modules())
    for name, module in plain.named_modules():
        for leaf, parameter in module._parameters.items():  # its own: an adapter shows the weight of the layer inside
            seen = twins[name]._parameters.get(leaf)
            if parameter is not None and seen is not None:
                parameter.copy_(dequantized(twins[name], seen))

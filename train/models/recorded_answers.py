"""Records the answers of the model in training to a fixed batch in every checkpoint: a merge is compared with them.

Shape suffixes: r rows of the batch, t positions, v outputs (of the vocabulary, or classes), k recorded outputs, f
features of the distribution of a value.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from zerotune.models import numeric
from zerotune.models.loss_head import causal_lm
from zerotune.models.precision import HALF

# English, Chinese, digits and code: enough to detect a wrong model, short enough for a CPU.
TEXT = (
    'The old lighthouse keeper counted 37 ships before dawn, and wrote: "fog from the north-west; nothing lost." '
    "人工智能模型需要在合并之后保持完全一致的输出,否则评估的结果就没有意义。def merge(a, b): return {**a, **b}"
)
POSITIONS = 64
OUTPUTS = 256  # recorded per position: all logits of a large vocabulary would take tens of megabytes per checkpoint
NEWEST = 16  # always recorded: the last rows of the vocabulary, which training may have added
NUMBER_EVERY = 4  # positions, in the rows for predicted values
SPARE_POSITIONS = 4  # some families count positions from 2
FILE = "answers.safetensors"


@dataclass(frozen=True)
class Answers:
    """Recorded logits of one model.

    ids_rt: the batch. outputs_k: indices of the recorded outputs. outputs: number of the model's outputs. found_rtk
    ([r, k] with one answer per row): logits in float32. precision: of matrix products (bf16, ...). start_rtk: the
    logits before the first step. values_rtf: of a model with numbers, see `predicted_values`.
    """

    ids_rt: Tensor
    outputs_k: Tensor
    outputs: int
    found_rtk: Tensor
    precision: str
    start_rtk: Tensor | None = None
    values_rtf: Tensor | None = None

    def chosen(self, logits_rtv: Tensor) -> Tensor:
        """Select the recorded outputs of a model, which may have more outputs now (tokens of a tuned prompt)."""
        return logits_rtv[..., : self.outputs].index_select(-1, self.outputs_k)

    def to_bytes(self) -> bytes:
        tensors = {"ids": self.ids_rt, "outputs": self.outputs_k, "found": self.found_rtk.contiguous()}
        if self.start_rtk is not None:
            tensors["start"] = self.start_rtk.contiguous()
        if self.values_rtf is not None:
            tensors["values"] = self.values_rtf
        # One entry: safetensors writes several in any order, and equal answers must give equal bytes.
        return save(tensors, {"about": json.dumps({"precision": self.precision, "outputs": self.outputs})})


def read_answers(folder: Path) -> Answers | None:
    """The answers of a checkpoint; None if it has none (written by an earlier version)."""
    path = folder / "tuning" / FILE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        tensors: Mapping[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["about"])
    return Answers(
        tensors["ids"],
        tensors["outputs"],
        about["outputs"],
        tensors["found"],
        about["precision"],
        tensors.get("start"),
        tensors.get("values"),
    )


class Recorder:
    """Records the answers of the model in training. `begin`, `files` and `record` are collectives.

    Args:
        model: Gives the number of positions.
        tokenizer: For the text of the batch.
        rows: Tokens of data rows, which join the batch.
        precision: Of the run. Weights that are kept in half precision are multiplied in it, in any run.
        device: For the batch.
        in_front: Positions that a tuned prompt takes.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        rows: Sequence[Sequence[int]],
        precision: str,
        device: torch.device,
        in_front: int = 0,
    ) -> None:
        inner: Any = causal_lm(model)
        longest = getattr(inner.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        positions = max(min(longest - in_front - SPARE_POSITIONS, POSITIONS), 1)
        self.ids_rt = batch(tokenizer, rows, len(tokenizer), positions)
        stored = inner.dtype
        coarse = precision == "fp32" and stored in HALF  # model.weights: bfloat16
        self.precision, self.device = str(stored).removeprefix("torch.") if coarse else precision, device
        self.start_rtk: Tensor | None = None

    def begin(self, model: nn.Module) -> None:
        """Record the answers before the first step."""
        self.start_rtk = self.record(model).found_rtk

    def resume(self, folder: Path) -> None:
        """Read the answers before the first step from a checkpoint, if it has them for the same batch."""
        recorded = read_answers(folder)
        same = recorded is not None and torch.equal(recorded.ids_rt, self.ids_rt)
        self.start_rtk = recorded.start_rtk if recorded is not None and same else None

    def files(self, model: nn.Module) -> Mapping[str, bytes]:
        """Name and content of the file for a checkpoint."""
        return {FILE: self.record(model).to_bytes()}

    def record(self, model: nn.Module) -> Answers:
        """The model's answers now. Its mode (training or evaluation) does not change."""
        was_training = model.training
        model.eval()
        logits_rtv = logits(model, self.ids_rt, device=self.device)
        values_rtf = predicted_values(model, self.ids_rt, self.device)
        model.train(was_training)
        outputs = int(logits_rtv.shape[-1])
        chosen_k = some_outputs(outputs)
        found_rtk = logits_rtv.index_select(-1, chosen_k)
        return Answers(self.ids_rt, chosen_k, outputs, found_rtk, self.precision, self.start_rtk, values_rtf)


def batch(tokenizer: Any, rows: Sequence[Sequence[int]], vocabulary: int, positions: int) -> Tensor:
    """[r, t] token ids, the same for the same arguments: random tokens together with the last ones of the vocabulary,
    TEXT, and data rows; each repeated or truncated to `positions`.
    """
    ids = [i for i in tokenizer(TEXT, add_special_tokens=False)["input_ids"] if i < vocabulary] if tokenizer else []
    random_t = torch.randint(0, vocabulary, (positions,), generator=torch.Generator().manual_seed(0))
    newest = list(range(max(vocabulary - NEWEST, 0), vocabulary))[: positions // 4]
    random_t[: len(newest)] = torch.tensor(newest, dtype=torch.long)
    texts = [text for text in (ids or [0], *rows) if len(text)]
    fitted = [(list(text) * (positions // len(text) + 1))[:positions] for text in texts]
    return torch.stack([random_t, *(torch.tensor(text, dtype=torch.long) for text in fitted)])


def some_outputs(outputs: int) -> Tensor:
    """Indices of the outputs to record: all, or OUTPUTS of them at random together with the last ones."""
    if outputs <= OUTPUTS:
        return torch.arange(outputs)
    others_k = torch.randperm(outputs - NEWEST, generator=torch.Generator().manual_seed(0))[: OUTPUTS - NEWEST]
    return torch.cat([others_k.sort().values, torch.arange(outputs - NEWEST, outputs)])


@torch.no_grad()
def logits(model: Any, ids_rt: Tensor, start: tuple[int, ...] = (), device: torch.device | None = None) -> Tensor:
    """[r, t, v] float32 logits of each row, preceded by the tokens `start`; [r, v] with one answer per row."""
    rows = []
    for ids_t in ids_rt:
        ids_1t = torch.cat([torch.tensor(start, dtype=ids_t.dtype), ids_t])[None].to(device or model.device)
        out: Tensor = model(input_ids=ids_1t, use_cache=False).logits[0].float().cpu()
        rows.append(out[-len(ids_t) :] if out.ndim == 2 else out)
    return torch.stack(rows)


@torch.no_grad()
def predicted_values(model: Any, ids_rt: Tensor, device: torch.device | None = None) -> Tensor | None:
    """[r, t, f]: what a model with numbers predicts behind each position, see `Values.features`; every NUMBER_EVERY-th
    token is a number. None for other models.
    """
    base: Any = causal_lm(model)
    settings = numeric.settings_of(base.config)
    if settings is None:
        return None
    rows, positions = ids_rt.shape
    ids_rt, values_rt = ids_rt.clone(), torch.zeros(rows, positions, dtype=torch.float64)
    ids_rt[:, ::NUMBER_EVERY] = settings.token_id
    values_rt = 3 * torch.randn(rows, positions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values_rt = values_rt.sinh().masked_fill(ids_rt != settings.token_id, 0.0)
    found = []
    for ids_t, values_t in zip(ids_rt.to(device or base.device), values_rt.to(device or base.device), strict=True):
        inputs = {"input_ids": ids_t[None], "values": values_t[None], "use_cache": False}
        predicted = numeric.predictions(model, inputs, torch.full_like(ids_t[None], settings.token_id))
        found.append(predicted.values.features.float().cpu())
    return torch.stack(found)

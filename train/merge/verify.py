"""Whether a merged folder is what it should be: file by file, loaded afresh, and by its answers.

Shape suffixes: r rows of the probe, t positions, v vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer

from train.merge.writer import digest
from train.models.answers import Answers, batch
from zerotune.common.errors import UserError
from zerotune.models.folder import read_json, weight_files
from zerotune.models.precision import DTYPES

# Largest root mean square of the logits' differences, relative to their spread. Rounding the weights to these kinds was
# seen to cost 3e-6, 3e-3 and 5e-2 at most (docs/merge.md); one wrong tensor costs about 1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}

# The same where the other side was computed in training, on another device and with other products. docs/merge.md.
RECORDED = {torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
OTHER_BASE = 1.0  # trained on a quantised base, merged into the original: their difference is the quantisation's
# Training must have moved the answers this far (in the same unit) before it is told from rounding how far they went.
TOLD_FROM_ROUNDING = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
WHOLE_WAY = (0.5, 1.5)  # 1 is right; 0 is an update that was lost, 2 one that was applied twice


@dataclass(frozen=True)
class Recorded:
    """How far a model's answers are from those that the trained model gave during training.

    relative: as in Comparison. allowed: its limit. precision: of the training. moved: how far training moved the
    answers, in the same unit; None where its start was not recorded. share: of this way, how much the model has gone;
    None where the way is too short to be told from rounding, or the base is another one.
    """

    relative: float
    allowed: float
    precision: str
    moved: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Comparison:
    """How far two models' answers are apart.

    max_difference: largest absolute difference of a logit. relative: root mean square of the differences over the
    standard deviation of the expected logits (or the root mean square of a single output). mean_kl: mean of
    KL(expected || found) over positions, in nats.
    """

    max_difference: float
    relative: float
    mean_kl: float


def compare(expected_rtv: Tensor, found_rtv: Tensor) -> Comparison:
    """Of logits of the same shape."""
    expected, found = expected_rtv.double(), found_rtv.double()
    difference = (found - expected).abs()
    # Logits count by what sets them apart from each other; the one output of a regression counts as it is.
    centre = expected.mean(-1, keepdim=True) if expected.shape[-1] > 1 else 0.0
    spread = (expected - centre).square().mean().sqrt()
    log_p, log_q = F.log_softmax(expected, -1), F.log_softmax(found, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    relative = difference.square().mean().sqrt() / spread.clamp_min(1e-12)
    return Comparison(float(difference.max()), float(relative), float(kl))


def check_files(folder: Path, digests: Mapping[str, str]) -> tuple[int, int]:
    """(tensors, parameters) of the folder's weights.

    Raises UserError for a tensor that is empty, not finite, or not the one that was computed (digests; empty: unknown).
    """
    seen: set[str] = set()
    parameters = 0
    for file in weight_files(folder):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118  (not a dict)
                tensor = handle.get_tensor(name)
                if tensor.numel() == 0:
                    raise UserError(f"{file.name}: {name} is empty")
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise UserError(f"{file.name}: {name} holds values that are not finite")
                if digests and digests.get(name) != digest(tensor):
                    raise UserError(f"{file.name}: {name} is not what was written (a faulty disk, or another writer)")
                seen.add(name)
                parameters += tensor.numel()
    lost = sorted(set(digests) - seen)
    if lost:
        raise UserError(f"{folder.name}: {lost[0]} is missing from its files ({len(lost)} tensors)")
    return len(seen), parameters


def reload(folder: Path, model_class: Any, dtype: torch.dtype, code: bool) -> Any:
    """The folder's model, loaded as anybody would. Raises UserError where a key is missing, left over or misshapen."""
    try:
        model, found = model_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=code,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise UserError(f"{folder.name}: cannot be loaded ({str(error).strip().splitlines()[-1]})") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in found[kind])
        if names:
            raise UserError(f"{folder.name}: {names[0]} ({len(names)} such) is among the {kind.replace('_', ' ')}")
    entry, exit_ = model.get_input_embeddings(), model.get_output_embeddings()
    asked = bool(read_json(folder / "config.json").get("tie_word_embeddings"))
    if exit_ is not None and entry is not None and asked != (entry.weight is exit_.weight):
        raise UserError(f"{folder.name}: the embeddings are {'not ' * asked}tied, against its config.json")
    return model


def check_answers(expected_rtv: Tensor, found_rtv: Tensor, *kinds: torch.dtype) -> Comparison:
    """Compare the merged model's answers with the expected ones; outputs that a prompt's tokens added are left aside.

    kinds: of the weights and of the arithmetic, which bound how close the answers can be.
    Raises UserError where the answers are not finite or further apart than rounding explains.
    """
    found_rtv = found_rtv[..., : expected_rtv.shape[-1]]
    if found_rtv.shape != expected_rtv.shape or not torch.isfinite(found_rtv).all():
        raise UserError("the merged model's answers have another shape than the trained model's, or are not finite")
    comparison = compare(expected_rtv, found_rtv)
    coarsest = max(kinds, key=TOLERANCE.__getitem__)
    limit = TOLERANCE[coarsest]
    if not comparison.relative <= limit:
        raise UserError(
            "the merged model answers differently from the trained one: logits differ by "
            f"{comparison.max_difference:.3g} at most, {comparison.relative:.2g} of their spread "
            f"(allowed in {str(coarsest).removeprefix('torch.')}: {limit:g})"
        )
    return comparison


def check_recorded(
    recorded: Answers, found_rtv: Tensor, what: str, *kinds: torch.dtype, other_base: bool = False
) -> Recorded:
    """Compare a model's answers to the recorded batch with the recorded ones.

    Args:
        recorded: With the trained model's answers.
        found_rtv: All logits of the model to be checked.
        what: It, in a message.
        kinds: Of its weights and of its arithmetic; the training's own is added.
        other_base: Whether its base is the original of a base that was quantised for training.

    Raises:
        UserError: Further apart than rounding explains, or training's update is not there once.
    """
    found_rtk, expected_rtk, start_rtk = recorded.chosen(found_rtv), recorded.found_rtk, recorded.start_rtk
    if found_rtk.shape != expected_rtk.shape or not torch.isfinite(found_rtk).all():
        raise UserError(f"{what} gives answers of another shape than the trained model, or such that are not finite")
    coarsest = max((*kinds, DTYPES[recorded.precision]), key=RECORDED.__getitem__)
    relative = compare(expected_rtk, found_rtk).relative
    allowed = OTHER_BASE if other_base else RECORDED[coarsest]
    moved = share = None
    if start_rtk is not None:
        moved = compare(expected_rtk, start_rtk).relative
        if moved > TOLD_FROM_ROUNDING[coarsest] and not other_base:
            way = (expected_rtk - start_rtk).double().flatten()
            share = float((found_rtk - start_rtk).double().flatten() @ way / (way @ way))
    result = Recorded(relative, allowed, recorded.precision, moved, share)
    if not relative <= allowed:
        raise UserError(
            f"{what} answers differently from the trained one, whose answers were recorded in training: logits differ "
            f"by {relative:.2g} of their spread (allowed: {allowed:g})"
        )
    if share is not None and not WHOLE_WAY[0] < share < WHOLE_WAY[1]:
        raise UserError(
            f"{what} has gone {share:.2f} of the way that training moved the answers, which were recorded in training; "
            f"allowed is {WHOLE_WAY[0]:g} to {WHOLE_WAY[1]:g}: part of the update is lost, or applied twice"
        )
    return result


def check_tokenizer_of(folder: Path, recorded: Answers, code: bool) -> None:
    """Raise UserError unless the folder's tokenizer reads the recorded text as the one in training did."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=code)
    rows, positions = recorded.ids_rt.shape
    if rows > 1 and not torch.equal(batch(tokenizer, [], len(tokenizer), positions)[1], recorded.ids_rt[1]):
        raise UserError(
            f"{folder.name}: its tokenizer makes other tokens of a text than the one in training did: the model would "
            "be asked in another way than it was trained; is RUN/tokenizer the one that was trained with?"
        )


def leak(found_rtv: Tensor, kept: int) -> float:
    """The largest probability that outputs beyond the first `kept` take at any position."""
    return float(found_rtv.softmax(-1)[..., kept:].sum(-1).max())

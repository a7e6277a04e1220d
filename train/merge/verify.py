"""Verifies a merged folder: its files, that it loads, and its answers.

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
from train.models.recorded_answers import Answers, batch
from zerotune.common.errors import UserError
from zerotune.models.folder import read_json, weight_files
from zerotune.models.precision import DTYPES

# Limits of `Comparison.relative` by dtype. Rounding the weights was measured to cost at most 3e-6, 3e-3 and 5e-2
# (docs/merge.md); one wrong tensor costs about 1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}

# The same for answers recorded in training, which may use another device and other kernels (docs/merge.md).
RECORDED = {torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
OTHER_BASE = 1.0  # trained on a quantised base, merged into the original: quantisation causes the difference
# `Recorded.share` is measured only if training has moved the answers this far; below, it would be mostly rounding.
MEASURABLE_MOVE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
# Factor of both limits for predicted values: a pointer's choices are steep in its scores. In bfloat16 their difference
# was 0.5 (SmolLM2-135M) to 7 times (tiny models) that of the logits.
VALUES = {torch.float32: 2.0, torch.float16: 4.0, torch.bfloat16: 4.0}
LEAST_DEVIATION = 0.1  # of a feature of predicted values, some of which are constant before training
ALLOWED_SHARE = (0.5, 1.5)  # 1 is right; at 0 the update is lost, at 2 it is applied twice


@dataclass(frozen=True)
class Recorded:
    """Comparison of a model's answers with those recorded in training.

    relative: as in Comparison. allowed: its limit. precision: of the training. moved: distance from the answers before
    the first step to the trained ones, in the same unit, if recorded. share: how much of the update the answers
    contain, 1 if all; None if `moved` is too small to measure it, or the base is another one.
    """

    relative: float
    allowed: float
    precision: str
    moved: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The difference of two models' answers.

    max_difference: largest absolute difference of a logit. relative: root mean square of the differences over the
    standard deviation of the expected logits (or the root mean square of a single output). mean_kl: mean of
    KL(expected || found) over positions, in nats.
    """

    max_difference: float
    relative: float
    mean_kl: float


def compare(expected_rtv: Tensor, found_rtv: Tensor) -> Comparison:
    """Compare logits of the same shape."""
    expected, found = expected_rtv.double(), found_rtv.double()
    difference = (found - expected).abs()
    # Adding a constant to all logits changes nothing; the single output of a regression is not centred.
    centre = expected.mean(-1, keepdim=True) if expected.shape[-1] > 1 else 0.0
    deviation = (expected - centre).square().mean().sqrt()
    log_p, log_q = F.log_softmax(expected, -1), F.log_softmax(found, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    relative = difference.square().mean().sqrt() / deviation.clamp_min(1e-12)
    return Comparison(float(difference.max()), float(relative), float(kl))


def check_files(folder: Path, digests: Mapping[str, str]) -> tuple[int, int]:
    """(tensors, parameters) of the folder's weights.

    digests: of the merged tensors by name; empty if unknown.
    Raises UserError for a tensor that is empty, not finite, or not the merged one.
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
                    raise UserError(f"{file.name}: {name} has values that are not finite")
                if digests and digests.get(name) != digest(tensor):
                    raise UserError(f"{file.name}: {name} was changed after writing (a faulty disk, or another writer)")
                seen.add(name)
                parameters += tensor.numel()
    lost = sorted(set(digests) - seen)
    if lost:
        raise UserError(f"{folder.name}: {lost[0]} is missing from its files ({len(lost)} tensors)")
    return len(seen), parameters


def reload(folder: Path, model_class: Any, dtype: torch.dtype, code: bool) -> Any:
    """Load the folder's model as users do. Raises UserError if a key is missing, unexpected or of another shape."""
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
    tied = bool(read_json(folder / "config.json").get("tie_word_embeddings"))
    if exit_ is not None and entry is not None and tied != (entry.weight is exit_.weight):
        raise UserError(f"{folder.name}: the embeddings are {'not ' * tied}tied, contrary to its config.json")
    return model


def check_answers(expected_rtv: Tensor, found_rtv: Tensor, *kinds: torch.dtype) -> Comparison:
    """Compare the merged model's answers with the expected ones; outputs of a prompt's new tokens are ignored.

    kinds: dtypes of the weights and of the computation, which set the limit.
    Raises UserError if the answers are not finite, or differ by more than rounding explains.
    """
    found_rtv = found_rtv[..., : expected_rtv.shape[-1]]
    if found_rtv.shape != expected_rtv.shape or not torch.isfinite(found_rtv).all():
        raise UserError("the merged model's answers are not finite, or differ in shape from the trained model's")
    comparison = compare(expected_rtv, found_rtv)
    coarsest = max(kinds, key=TOLERANCE.__getitem__)
    limit = TOLERANCE[coarsest]
    if not comparison.relative <= limit:
        raise UserError(
            "the merged model answers differently from the trained one: logits differ by at most "
            f"{comparison.max_difference:.3g}, {comparison.relative:.2g} standard deviations "
            f"(allowed in {str(coarsest).removeprefix('torch.')}: {limit:g})"
        )
    return comparison


def check_recorded(
    recorded: Answers, found_rtv: Tensor, what: str, *kinds: torch.dtype, other_base: bool = False
) -> Recorded:
    """Compare a model's answers with those recorded in training.

    Args:
        recorded: The trained model's answers.
        found_rtv: All logits of the model to check, for the recorded batch.
        what: The model's name in messages.
        kinds: Dtypes of its weights and of the computation; that of the training is added.
        other_base: Whether its base is the original, and training used the quantised base.

    Raises:
        UserError: The answers differ by more than rounding explains, or do not contain the update exactly once.
    """
    found_rtk, expected_rtk, start_rtk = recorded.chosen(found_rtv), recorded.found_rtk, recorded.start_rtk
    if found_rtk.shape != expected_rtk.shape or not torch.isfinite(found_rtk).all():
        raise UserError(f"{what} gives answers that are not finite, or of another shape than the trained model's")
    coarsest = max((*kinds, DTYPES[recorded.precision]), key=RECORDED.__getitem__)
    relative = compare(expected_rtk, found_rtk).relative
    allowed = OTHER_BASE if other_base else RECORDED[coarsest]
    moved = share = None
    if start_rtk is not None:
        moved = compare(expected_rtk, start_rtk).relative
        if moved > MEASURABLE_MOVE[coarsest] and not other_base:
            update = (expected_rtk - start_rtk).double().flatten()
            share = float((found_rtk - start_rtk).double().flatten() @ update / (update @ update))
    result = Recorded(relative, allowed, recorded.precision, moved, share)
    if not relative <= allowed:
        raise UserError(
            f"{what} answers differently from the trained one, whose answers were recorded in training: logits differ "
            f"by {relative:.2g} standard deviations (allowed: {allowed:g})"
        )
    if share is not None and not ALLOWED_SHARE[0] < share < ALLOWED_SHARE[1]:
        raise UserError(
            f"{what} contains {share:.2f} times the update of training, by the answers recorded in training (allowed: "
            f"{ALLOWED_SHARE[0]:g} to {ALLOWED_SHARE[1]:g}): part of the update is lost, or applied twice"
        )
    return result


def check_values(
    expected_rtf: Tensor, found_rtf: Tensor, limits: Mapping[torch.dtype, float], *kinds: torch.dtype
) -> float:
    """The largest difference of a feature of predicted values (see `Values.features`), as the root mean square over its
    standard deviation, or LEAST_DEVIATION. Other arguments as above.

    Raises UserError if it exceeds what rounding explains, or the features are not finite.
    """
    limit = max(VALUES[kind] * limits[kind] for kind in kinds)
    if found_rtf.shape != expected_rtf.shape:
        raise UserError("the merged model predicts values by other settings of `numeric` than the trained model")
    expected_nf, found_nf = (x.double().flatten(0, 1) for x in (expected_rtf, found_rtf))
    deviation_f = expected_nf.std(0).clamp_min(LEAST_DEVIATION)
    relative = float(((found_nf - expected_nf).square().mean(0).sqrt() / deviation_f).max())
    if not relative <= limit:
        raise UserError(
            "the merged model predicts other values of numbers than the trained one: their distributions differ by "
            f"{relative:.2g} standard deviations (allowed: {limit:g})"
        )
    return relative


def check_tokenizer_of(folder: Path, recorded: Answers, code: bool) -> None:
    """Raise UserError unless the folder's tokenizer gives the same tokens as in training."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=code)
    rows, positions = recorded.ids_rt.shape
    if rows > 1 and not torch.equal(batch(tokenizer, [], len(tokenizer), positions)[1], recorded.ids_rt[1]):
        raise UserError(
            f"{folder.name}: its tokenizer gives other tokens than in training, so the model would read other input "
            "than it was trained on; was RUN/tokenizer changed since training?"
        )


def leak(found_rtv: Tensor, kept: int) -> float:
    """The largest total probability of the outputs beyond the first `kept` at any position."""
    return float(found_rtv.softmax(-1)[..., kept:].sum(-1).max())

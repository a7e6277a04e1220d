"""The report of a merge: what was merged, and how close the answers are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.merge.verify import Comparison, Recorded


@dataclass(frozen=True)
class MergeReport:
    """One merge.

    checkpoint, step: the merged checkpoint. kind: the tuning. weights: dtype of the merged weights. tied: whether
    input and output embeddings are one matrix. compared_in: dtype of the comparison. comparison: with the trained
    model, rebuilt from the checkpoint. recorded: comparison with the answers recorded in training, if there are any.
    values: of a model with numbers, the difference of predicted values (see `verify.check_values`).
    divergence: for a quantised base, mean KL in nats from the trained model to the one merged into the original and
    into the dequantized weights. dequantized_from: quantisation of the base's own files. prompt_tokens: ids of the
    prompt's tokens. prompt_leak: their largest total probability at any position, if not masked. seconds: total time.
    """

    out: Path
    checkpoint: Path
    step: int
    kind: str
    weights: str
    tied: bool
    tensors: int
    parameters: int
    compared_in: str
    comparison: Comparison
    recorded: Recorded | None = None
    values: float | None = None
    divergence: Mapping[str, float] = field(default_factory=dict)
    quantized_base: str | None = None
    dequantized_from: str | None = None
    prompt_tokens: tuple[int, ...] = ()
    prompt_leak: float = 0.0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For run.json: plain values, without the paths of this machine."""
        content = dataclasses.asdict(self)
        del content["out"]
        return content | {"checkpoint": self.checkpoint.name}

    def lines(self) -> list[str]:
        compared = self.comparison
        lines = [
            f"{self.out}: {self.parameters:,} parameters in {self.weights}, {self.tensors} tensors, embeddings "
            f"{'' if self.tied else 'not '}tied; from {self.checkpoint} ({self.seconds:.0f} s)",
            f"reloaded and compared in {self.compared_in} with the trained model, rebuilt: logits differ by at most "
            f"{compared.max_difference:.2g}, {compared.relative:.2g} standard deviations; "
            f"KL {compared.mean_kl:.2g} nats",
            self._against_training(),
        ]
        if self.values is not None:
            lines.append(f"predicted values of numbers differ by at most {self.values:.2g} standard deviations")
        if self.divergence:
            shown = ", ".join(f"{name} {value:.3g} nats" for name, value in self.divergence.items())
            lines.append(f"KL from the trained quantised model, by base: {shown}; merged into {self.quantized_base}")
        if self.dequantized_from:
            lines.append(
                f"the base's weights are quantised ({self.dequantized_from}): they were dequantised for training and "
                f"for the merge, so the result is an ordinary model in {self.weights}"
            )
        if self.prompt_tokens:
            lines.append(
                f"the prompt is {len(self.prompt_tokens)} tokens that precede every text; if not masked, their "
                f"probability is at most {self.prompt_leak:.2g}"
            )
        return lines

    def _against_training(self) -> str:
        recorded = self.recorded
        if recorded is None:
            return (
                "the checkpoint has no answers recorded in training (an earlier version wrote it): compared only with "
                "a model rebuilt from the checkpoint"
            )
        share = "" if recorded.share is None else f"; they contain {recorded.share:.3f} times the update of training"
        return (
            f"compared with the answers recorded in training ({recorded.precision}): logits differ by "
            f"{recorded.relative:.2g} standard deviations (allowed: {recorded.allowed:g}){share}"
        )

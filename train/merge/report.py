"""What a merge did and how well its result answers."""

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

    checkpoint, step: what was merged. kind: the tuning. weights: storage of the merged weights. tied: whether input
    and output embeddings are one matrix. compared_in: arithmetic of the comparison. comparison: merged against trained
    model, rebuilt from the checkpoint. recorded: against the answers kept in training; None where there are none.
    divergence: for a quantised base, mean KL in nats from the model that was trained to the one merged into the
    original and into the dequantized weights. dequantized_from: how the base's own files are
    quantised. prompt_tokens: ids that stand before every text. prompt_leak: the largest probability that they take
    anywhere, where they are not masked. seconds: of the whole.
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
    divergence: Mapping[str, float] = field(default_factory=dict)
    quantized_base: str | None = None
    dequantized_from: str | None = None
    prompt_tokens: tuple[int, ...] = ()
    prompt_leak: float = 0.0
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """For run.json: plain values, without the paths of this machine."""
        facts = dataclasses.asdict(self)
        del facts["out"]
        return facts | {"checkpoint": self.checkpoint.name}

    def lines(self) -> list[str]:
        """For people."""
        close = self.comparison
        lines = [
            f"{self.out}: {self.parameters:,} parameters in {self.weights}, {self.tensors} tensors, embeddings "
            f"{'' if self.tied else 'not '}tied; from {self.checkpoint} ({self.seconds:.0f} s)",
            f"loaded again and compared in {self.compared_in} with the trained model as rebuilt: logits differ by "
            f"{close.max_difference:.2g} at most, {close.relative:.2g} of their spread; KL {close.mean_kl:.2g} nats",
            self._against_training(),
        ]
        if self.divergence:
            shown = ", ".join(f"{name} {value:.3g} nats" for name, value in self.divergence.items())
            lines.append(
                f"KL from the quantised model that was trained, by base: {shown}; merged into {self.quantized_base}"
            )
        if self.dequantized_from:
            lines.append(
                f"the base's weights are quantised ({self.dequantized_from}): dequantised for training and for the "
                f"merge, so the result is an ordinary model in {self.weights}"
            )
        if self.prompt_tokens:
            lines.append(
                f"the prompt is {len(self.prompt_tokens)} tokens that precede every text; left unmasked they would "
                f"take at most {self.prompt_leak:.2g} of the probability"
            )
        return lines

    def _against_training(self) -> str:
        kept = self.recorded
        if kept is None:
            return (
                "the checkpoint holds no answers recorded in training (an earlier version wrote it): compared with a "
                "model rebuilt from the checkpoint alone"
            )
        way = "" if kept.share is None else f"; it has gone {kept.share:.3f} of the way that training moved them"
        return (
            f"compared with the answers recorded in training ({kept.precision}): logits differ by {kept.relative:.2g} "
            f"of their spread (allowed: {kept.allowed:g}){way}"
        )

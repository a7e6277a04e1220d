"""The sizes of a new model: from one dial, `model.depth`, or by name."""

from __future__ import annotations

from dataclasses import dataclass

from train.config import ModelConfig

HEAD_WIDTH = 64
MULTIPLE = 16  # of a feed-forward layer's width: what matrix units like


@dataclass(frozen=True)
class Sizes:
    """As in `ModelConfig`, none of them left open."""

    width: int
    layers: int
    heads: int
    feed_forward: int


def sizes_of(model: ModelConfig) -> Sizes:
    """The sizes of a new model."""
    assert model.spec is not None
    width = model.width or HEAD_WIDTH * model.depth
    return Sizes(
        width=width,
        layers=model.layers or model.spec.layers(model.depth),
        heads=model.heads or _heads(width),
        feed_forward=model.feed_forward or -(-8 * width // (3 * MULTIPLE)) * MULTIPLE,
    )


def layer_weights(model: ModelConfig) -> int:
    """The number of weights in the layers of a new model: without embeddings, output layer and last norm."""
    assert model.spec is not None
    sizes = sizes_of(model)
    return sizes.layers * model.spec.weights(sizes.width, sizes.feed_forward)


def _heads(width: int) -> int:
    """The most heads of at least 64, if there are any, that divide the width; rotary embeddings need even ones."""
    most = max(width // HEAD_WIDTH, 1)
    return next((count for count in range(most, 0, -1) if not width % (2 * count)), 1)

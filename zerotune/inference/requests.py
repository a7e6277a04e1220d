"""Requests to a model and its answers. Tasks exchange only these, and never use the model itself.

Ids are those of the vocabulary; for a checkpoint that reads numbers as values, also `number_tokens.number_id`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Score:
    """Compute the log-probability of `continuation_ids` after `prefix_ids`; neither may be empty.

    bytes: length of the continuation in UTF-8, returned with the answer.
    images: files of the images in the prefix, in their order.
    unknown_id: the unknown token (<unk>), if the continuation has any; its log-probabilities are also summed apart.
    """

    prefix_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    bytes: int = 0
    images: tuple[str, ...] = ()
    unknown_id: int | None = None

    @property
    def length(self) -> int:
        """Token positions of prefix and continuation."""
        return len(self.prefix_ids) + len(self.continuation_ids)


@dataclass(frozen=True)
class Generate:
    """Continue `prefix_ids` until one of `stop_ids`, one of `stop_texts` or `max_new_tokens`.

    temperature: 0 is greedy. Otherwise each token is sampled by a function of (seed, prefix, position), so that neither
    the batch nor the number of processes changes the answer. causal: of a model that reads numbers as values, the cause
    is drawn at each position, by the same function, and decides on token and number. images: as in `Score`.
    """

    prefix_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    stop_texts: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    images: tuple[str, ...] = ()
    top_k: int = 0
    top_p: float = 1.0
    causal: bool | None = None

    @property
    def length(self) -> int:
        """Maximum token positions of prefix and answer."""
        return len(self.prefix_ids) + self.max_new_tokens


@dataclass(frozen=True)
class Tag:
    """Classify each token of `prefix_ids`, with a token-classification head."""

    prefix_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Token positions."""
        return len(self.prefix_ids)


@dataclass(frozen=True)
class Classify:
    """Classify `prefix_ids` as a whole, with a sequence-classification head.

    second: start of the second sentence, for models that use token_type_ids; 0 if there is none.
    """

    prefix_ids: tuple[int, ...]
    second: int = 0

    @property
    def length(self) -> int:
        """Token positions."""
        return len(self.prefix_ids)


@dataclass(frozen=True)
class Measure:
    """Predict where numbers come among the tokens of `prefix_ids` from `first` on, and their values.

    numbers, values: where each number begins, and its value. inside: further tokens of its digits, which do not count.
    """

    prefix_ids: tuple[int, ...]
    first: int
    numbers: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    inside: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Token positions."""
        return len(self.prefix_ids)


Request = Score | Generate | Tag | Classify | Measure


@dataclass(frozen=True)
class Scored:
    """Answer to `Score`.

    log_prob: natural logarithm, summed over the `tokens` of the continuation. bytes: as in the request.
    greedy: whether each token of the continuation is the most probable one at its position.
    unknown, unknown_log_prob: how many of the tokens are `Score.unknown_id` or numbers with values, of which it says
    only that one comes, and the sum over these.
    """

    log_prob: float
    tokens: int
    bytes: int = 0
    greedy: bool = False
    unknown: int = 0
    unknown_log_prob: float = 0.0


@dataclass(frozen=True)
class Generated:
    """Answer to `Generate`.

    text: up to the stop text, without special tokens. finished: it ended with a stop token or stop text, not at the
    length limit. reasoning: removed from `text` by `reasoning.py` before tasks see it; `written` then keeps the whole
    output. only_reasoning: the output ended within the reasoning, and `text` is empty. intervals: both ends of the
    central 90 % interval of each number that a model with values wrote, one after the other.
    """

    text: str
    tokens: int = 0
    finished: bool = True
    reasoning: str = ""
    written: str = ""
    only_reasoning: bool = False
    intervals: tuple[float, ...] = ()

    @property
    def turn(self) -> str:
        """The complete output, with its reasoning."""
        return self.written or self.text


@dataclass(frozen=True)
class Tagged:
    """Answer to `Tag`: index of the most probable class of each token."""

    classes: tuple[int, ...]


@dataclass(frozen=True)
class Classified:
    """Answer to `Classify`: a logit for each class, or the value of a head with one output."""

    logits: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """Answer to `Measure`.

    as_values: whether the model reads numbers as values; else medians and all behind are empty. values: as in the
    request. texts: scored tokens where no number comes; mistaken: at how many of them the most probable token begins
    one.
    Of each number: ranks, that of the best token that begins one, from 1; log_probs, that any such token comes;
    medians; low_50 to high_90, ends of central intervals; value_losses, -log densities of its value.
    training_values: mean and median of the values that the model was trained on; empty if it does not tell them.
    """

    as_values: bool
    values: tuple[float, ...]
    texts: int
    mistaken: int
    ranks: tuple[float, ...]
    log_probs: tuple[float, ...]
    medians: tuple[float, ...] = ()
    low_50: tuple[float, ...] = ()
    high_50: tuple[float, ...] = ()
    low_90: tuple[float, ...] = ()
    high_90: tuple[float, ...] = ()
    value_losses: tuple[float, ...] = ()
    training_values: tuple[float, ...] = ()


Answer = Scored | Generated | Tagged | Classified | Measured


Head = Literal["language", "vision", "tokens", "sequence"]

"""What is asked of a model, and what comes back. An asker never sees the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Score:
    """How probable is `continuation_ids` after `prefix_ids`? Neither may be empty.

    bytes: the UTF-8 bytes that the continuation stands for, where the asker needs them back.
    images: files that the prefix shows, in the order of their places in it.
    """

    prefix_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    bytes: int = 0
    images: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Token positions that it occupies in the end."""
        return len(self.prefix_ids) + len(self.continuation_ids)


@dataclass(frozen=True)
class Generate:
    """Continue `prefix_ids` until one of `stop_ids`, one of `stop_texts` or `max_new_tokens`.

    temperature: 0 is greedy; above, tokens are drawn, each by a function of (seed, prefix, its place), so that neither
    the batch nor the number of processes changes what is drawn. images: as in `Score`.
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

    @property
    def slots(self) -> int:
        """Token positions that it occupies in the end."""
        return len(self.prefix_ids) + self.max_new_tokens


@dataclass(frozen=True)
class Tag:
    """Which class has each token of `prefix_ids`? For checkpoints with a token-classification head."""

    prefix_ids: tuple[int, ...]

    @property
    def slots(self) -> int:
        """Token positions that it occupies."""
        return len(self.prefix_ids)


@dataclass(frozen=True)
class Classify:
    """Which class has `prefix_ids` as a whole? For checkpoints with a sequence-classification head.

    second: where the second of two sentences begins, for models that want to know (token_type_ids); 0: nowhere.
    """

    prefix_ids: tuple[int, ...]
    second: int = 0

    @property
    def slots(self) -> int:
        """Token positions that it occupies."""
        return len(self.prefix_ids)


Request = Score | Generate | Tag | Classify


@dataclass(frozen=True)
class Scored:
    """log_prob: natural logarithm, summed over the continuation's `tokens`. bytes: as asked.

    greedy: whether each token of the continuation is the most probable one in its place.
    """

    log_prob: float
    tokens: int
    bytes: int = 0
    greedy: bool = False


@dataclass(frozen=True)
class Generated:
    """text: without the stop token and other special tokens, and up to the stop text. finished: whether a stop came
    before the limit.

    What tasks see is without reasoning (`reasoning.py`). reasoning: what was set aside; then `written` is all of it
    as the model wrote it, for who lets it go on. only_reasoning: it did not come to an answer, and `text` is empty.
    """

    text: str
    tokens: int = 0
    finished: bool = True
    reasoning: str = ""
    written: str = ""
    only_reasoning: bool = False

    @property
    def turn(self) -> str:
        """The turn as the model wrote it."""
        return self.written or self.text


@dataclass(frozen=True)
class Tagged:
    """The number of the most probable class of each token."""

    classes: tuple[int, ...]


@dataclass(frozen=True)
class Classified:
    """The head's outputs: a logit for each class, or the value of a head with one output."""

    logits: tuple[float, ...]


Answer = Scored | Generated | Tagged | Classified


Head = Literal["language", "vision", "tokens", "sequence"]

"""Encodes labelled, tagged and preference rows as tokens with labels at label positions.

Runs in worker processes: this file must not import torch.

Shape suffix: t tokens of one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from train.config import Config
from train.data.templates import ChatTemplate, full_text
from train.registry import OBJECTIVES
from zerotune.common.errors import UserError
from zerotune.data.fields import RowError
from zerotune.data.labelled import Label, Labelled, class_name, class_number, label_prompt, value_of
from zerotune.data.number_tokens import NumberTokens
from zerotune.data.preference import Preference, Side
from zerotune.data.tagged import Tagged
from zerotune.data.word_windows import Words, glues_words

FIRST, FURTHER = 1, 2  # label positions that are trained and evaluated; that are only trained
SHOWN_LABELS = 20


@dataclass(frozen=True)
class LabelSpec:
    """How an objective reads rows.

    formats: row formats that it learns from. labels_as: words that a language model writes, classes, or values.
    labels: the names of the classes by their numbers; without any, labels are used as they are.
    sub_words: the tokens of a word at which its class is learned.
    asks: whether rows are prompts that the model answers in training; their own answer may be missing.
    numbers: whether each number of a text is a token with a value.
    """

    formats: tuple[str, ...] = OBJECTIVES["causal_lm"].formats
    labels_as: Literal["words", "classes", "values"] = "words"
    labels: tuple[str, ...] = ()
    sub_words: Literal["first", "all"] = "first"
    asks: bool = False
    numbers: bool = False

    @classmethod
    def of(cls, config: Config) -> LabelSpec:
        """How the objective of a recipe reads rows."""
        spec, head = config.spec, config.head
        return cls(
            formats=spec.formats,
            labels_as=spec.labels_as,
            labels=tuple(head.labels) if "head.labels" in spec.keys else (),
            sub_words=head.sub_words if "head.sub_words" in spec.keys else "first",
            asks=spec.asks,
            numbers=spec.numbers,
        )

    @property
    def has_labels(self) -> bool:
        """Whether rows have labels, not only tokens to predict."""
        return self.labels_as != "words"

    @property
    def is_of_pairs(self) -> bool:
        """Whether a row is two documents, of which one was preferred."""
        return self.formats == ("preference",)


TO_PREDICT = LabelSpec()  # of a language model


class LabelledWindow(NamedTuple):
    """ids_t: tokens. label_mask_t: FIRST or FURTHER at label positions, else 0. values: the label of each position."""

    ids_t: NDArray[np.int32]
    label_mask_t: NDArray[np.uint8]
    values: tuple[str | float, ...]


class LabelledExample(NamedTuple):
    """A row's tokens. cut: whether it is longer than the limit. second: where its second sentence begins, or 0.
    left_out: what the chat template leaves out.
    """

    windows: Sequence[LabelledWindow]
    cut: bool = False
    second: int = 0
    left_out: frozenset[str] = frozenset()


class Settings(Protocol):
    """The part of `train.data.tokenize.Settings` that the label encoder uses."""

    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def pad(self) -> int | None: ...
    @property
    def template(self) -> ChatTemplate | None: ...
    @property
    def max_length(self) -> int: ...
    @property
    def label_spec(self) -> LabelSpec: ...
    @property
    def numbers_pairs(self) -> bool: ...


class LabelEncoder:
    """Encodes rows. tokenizer: without truncation and padding."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self.tokenizer, self.settings, self.label_spec = tokenizer, settings, settings.label_spec
        self.number_tokens = NumberTokens(tokenizer)

    def __call__(self, example: Labelled | Tagged | Preference) -> LabelledExample:
        """The row as tokens.

        Raises:
            RowError: Nothing can be learned from it.
            UserError: Tags are numbers without names (head.labels).
        """
        if isinstance(example, Tagged):
            return self._tagged(example)
        if isinstance(example, Preference):
            return self._pair(example)
        return self._as_words(example) if self.label_spec.labels_as == "words" else self._classified(example)

    def texts(self, row: Labelled) -> tuple[str, str]:
        """(prompt, the label's words), as in evaluation."""
        if not (isinstance(row.label, str) or self.label_spec.labels):
            raise RowError("label is a number: a language model needs the label's words; give them with head.labels")
        return label_prompt(row.sentences), self._class(row.label)

    def _as_words(self, row: Labelled) -> LabelledExample:
        """The sentence and the label's words; only the label and the end are learned."""
        prompt, label = self.texts(row)
        values: tuple[float, ...] = ()
        if self.label_spec.numbers:
            shown, ((border, _),) = self.number_tokens(prompt + label, [(len(prompt), len(prompt + label))])
            prompt, label, values = shown.text[:border], shown.text[border:], shown.values
        start = [] if self.settings.bos is None else [self.settings.bos]
        end = [] if self.settings.eos is None else [self.settings.eos]
        before = len(start) + len(self._plain(prompt.rstrip()))
        ids = [*start, *self._plain(prompt + label), *end]
        if len(ids) > self.settings.max_length:
            raise RowError(
                f"nothing left to learn after truncation: {len(ids)} tokens, the label is the last of them, and "
                f"data.max_length_tokens is {self.settings.max_length}"
            )
        label_mask_t = np.zeros(len(ids), np.uint8)
        label_mask_t[max(before, 1) :] = FIRST
        return LabelledExample([LabelledWindow(np.array(ids, np.int32), label_mask_t, values)])

    def _classified(self, row: Labelled) -> LabelledExample:
        """A sentence, or two, with the tokenizer's special tokens; the last token is the label position."""
        first, second_text = (*row.sentences, None)[:2]
        encoding = self._truncating.encode(first, second_text)
        ids_t = np.array(self._unpadded(encoding.ids), np.int32)
        if not len(ids_t):
            raise RowError("nothing to learn: the tokenizer returns no tokens for this text")
        label_mask_t = np.zeros(len(ids_t), np.uint8)
        label_mask_t[-1] = FIRST
        value = value_of(row.label) if self.label_spec.labels_as == "values" else self._class(row.label)
        second = encoding.type_ids.index(1) if self.settings.numbers_pairs and 1 in encoding.type_ids else 0
        return LabelledExample([LabelledWindow(ids_t, label_mask_t, (value,))], bool(encoding.overflowing), second)

    def _tagged(self, row: Tagged) -> LabelledExample:
        """The words; overlapping windows if they exceed the limit. Each word's class is learned in one window."""
        tags = [self._class(tag, is_tag=True) for tag in row.tags]
        words = Words.encoded(self.tokenizer, row.words, self._glues)
        size = self.settings.max_length
        windows = words.windows(size)
        classes: list[dict[int, tuple[int, str]]] = [{} for _ in windows]  # position -> FIRST or FURTHER, class
        starts = words.starts(size)
        for word, place in enumerate(words.places(size)):
            if place is None:
                continue
            window, position = place
            classes[window][position] = (FIRST, tags[word])
            if self.label_spec.sub_words == "all":
                first = starts[window] + position - len(words.before)
                room = len(windows[window]) - len(words.before) - len(words.after)
                for token in range(first + 1, min(starts[window] + room, len(words.ids))):
                    if words.owners[token] != word:
                        break
                    classes[window][position + token - first] = (FURTHER, self._continued(tags[word]))
        made = [_window(ids, own) for ids, own in zip(windows, classes, strict=True) if own]
        if not made:
            raise RowError("nothing to learn: the tokenizer returns no tokens for these words")
        return LabelledExample(made, cut=len(windows) > 1)

    def _pair(self, row: Preference) -> LabelledExample:
        """Both conversations, concatenated; the last token of each is a label position, with label 1 for the chosen."""
        left: set[str] = set()
        sides = [self._side(side, left) for side in (row.chosen, row.rejected)]
        longest, limit = max(map(len, sides)), self.settings.max_length
        if longest > limit:
            raise RowError(f"longer than data.max_length_tokens: {longest} tokens, the limit is {limit}")
        if sides[0] == sides[1]:
            raise RowError("nothing to learn: chosen and rejected are the same tokens")
        ids_t = np.array([*sides[0], *sides[1]], np.int32)
        label_mask_t = np.zeros(len(ids_t), np.uint8)
        label_mask_t[[len(sides[0]) - 1, -1]] = FIRST
        return LabelledExample([LabelledWindow(ids_t, label_mask_t, (1.0, 0.0))], left_out=frozenset(left))

    def _side(self, side: Side, left: set[str]) -> list[int]:
        if isinstance(side, str):
            ids = list(self.tokenizer.encode(side).ids)
            end = self.settings.eos
            return self._unpadded(ids if end is None or ids[-1:] == [end] else [*ids, end])
        if self.settings.template is None:
            raise RowError("messages need a chat template: set data.chat_template")
        return self._unpadded(self._plain(full_text(self.settings.template, side, left)))

    def _unpadded(self, ids: list[int]) -> list[int]:
        """Remove padding tokens at the end. Many models pad with their end token, and transformers' heads read the
        last token that is not padding: the label must be there.
        """
        while ids and ids[-1] == self.settings.pad:
            ids = ids[:-1]
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _class(self, label: Label, is_tag: bool = False) -> str:
        """The name of a class; a number is an index into `head.labels`, if given."""
        names = self.label_spec.labels
        if isinstance(label, float):
            raise RowError(f"unknown label: {label!r} is not the name or the number of a class")
        if is_tag and not names and not isinstance(label, str):
            raise UserError("tags are numbers; give their names in their order: head.labels: [O, B-..., I-...]")
        if not names:
            return class_name(label)
        number = class_number(label, names)
        if number is not None:
            return names[number]
        known = ", ".join(names[:SHOWN_LABELS]) + (", ..." if len(names) > SHOWN_LABELS else "")
        raise RowError(f"unknown {'tag' if is_tag else 'label'}: {label!r}; head.labels has {known}")

    def _continued(self, tag: str) -> str:
        """The class of a word's further sub-words: I- after B-."""
        inside = f"I{tag[1:]}"
        return inside if tag.startswith("B-") and inside in (self.label_spec.labels or (inside,)) else tag

    @cached_property
    def _truncating(self) -> Tokenizer:
        made: Tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        made.enable_truncation(self.settings.max_length)
        return made

    @cached_property
    def _glues(self) -> bool:
        return glues_words(self.tokenizer)


def _window(ids: Sequence[int], classes: Mapping[int, tuple[int, str]]) -> LabelledWindow:
    label_mask_t = np.zeros(len(ids), np.uint8)
    for position, (value, _) in classes.items():
        label_mask_t[position] = value
    return LabelledWindow(
        np.array(ids, np.int32), label_mask_t, tuple(classes[position][1] for position in sorted(classes))
    )

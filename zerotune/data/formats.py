"""The row formats: which columns a row has, and what it becomes, for training and evaluation alike.

To add a format, add a value to FORMATS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

from zerotune.data.conversations import Conversation, read_chat
from zerotune.data.fields import Fields, RowError
from zerotune.data.labelled import Labelled, read_labelled
from zerotune.data.preference import Continuation, Preference, different, read_asked, read_preference
from zerotune.data.questions import read_instruction, read_question
from zerotune.data.raw_row import column_name
from zerotune.data.tagged import Tagged, read_tagged

SHOWN_LEFT_OUT = 20
Example = str | Conversation | Continuation | Labelled | Tagged | Preference


@dataclass(frozen=True)
class Format:
    """One kind of row.

    required, optional: its fields. alternatives: fields of which one is enough.
    read: what the row says; a text for a corpus. Raises RowError.
    has_labels: whether rows hold labels or preferences, rather than texts or conversations.
    like: the format that objectives know it by, where they do not name it: one whose rows become the same.
    needs: what a row must have, in words, where that is more than `required` or one of `alternatives`.
    """

    required: tuple[str, ...]
    read: Callable[[Fields], Example]
    optional: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    has_labels: bool = False
    like: str = ""
    needs: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that this format knows."""
        return self.required + self.alternatives + self.optional

    @cached_property
    def leading(self) -> tuple[str, ...]:
        """The fields by which a row of this format is recognised."""
        return self.alternatives or self.required[:1]

    @property
    def needed(self) -> str:
        """What a row must have, in words."""
        return self.needs or " and ".join(self.required) or " or ".join(self.alternatives)


FORMATS: dict[str, Format] = {  # where the columns decide, a row is of the first format that they fit
    "chat": Format((), read_chat, ("system", "tools", "functions"), alternatives=("messages", "conversations")),
    "qa": Format(("question", "answer"), lambda fields: read_question(fields, "question", "answer"), ("system",)),
    "pr": Format(("prompt", "response"), lambda fields: read_question(fields, "prompt", "response"), ("system",)),
    "io": Format(("instruction", "output"), read_instruction, ("input", "system", "history")),
    "text": Format(("text",), lambda fields: fields.text("text")),
    "labelled": Format(
        ("label",),
        read_labelled,
        ("sentence2",),
        alternatives=("sentence", "text", "sentence1"),
        has_labels=True,
        needs="label, and sentence or text or both sentence1 and sentence2",
    ),
    "tagged": Format(("tokens", "tags"), read_tagged, has_labels=True),
    "preference": Format(
        ("chosen", "rejected"),
        lambda fields: read_asked(fields) if fields.asks else different(read_preference(fields)),
        ("prompt", "conversations", "system", "tools", "functions"),
        has_labels=True,
    ),
}


def text_formats() -> tuple[str, ...]:
    """The formats of texts and conversations: what a language model can learn from, and be asked."""
    return tuple(name for name, form in FORMATS.items() if not form.has_labels)


def known_as(name: str) -> str:
    """The format whose rows become the same: itself, or the one that it is like."""
    return FORMATS[name].like or name


def is_learned(name: str, formats: Collection[str]) -> bool:
    """Whether an objective that learns from `formats` learns from this format."""
    return name in formats or known_as(name) in formats


def read_recognised(fields: Fields) -> str | Conversation:
    """A text or a conversation, of the first format whose leading field says something, or is there at all.

    A row without any leading field is of the first format of which it has another required one. Raises RowError.
    """
    forms = [FORMATS[name] for name in text_formats()]
    for is_there, names in ((fields.has, "leading"), (fields.holds, "leading"), (fields.has, "required")):
        for form in forms:
            if any(map(is_there, getattr(form, names))):
                example = form.read(fields)
                assert isinstance(example, (str, Conversation))
                return example
    known = "; ".join(form.needed for form in forms)
    raise RowError(f"fits no known format ({known})", missing=True)


def parts_left_out(fields: Fields, example: Example) -> tuple[str, ...]:
    """The parts of a row that are not used, once it is read: columns, and parts of messages."""
    return (*(f"column {column_name(name)}" for name in fields.unread()), *_left_out(example))


def _left_out(example: Example) -> tuple[str, ...]:
    if isinstance(example, Conversation):
        return example.left_out
    if isinstance(example, Preference):
        return tuple({*_left_out(example.chosen), *_left_out(example.rejected)})
    return ()


def describe_left_out(counts: Counter[str], filtered: Collection[str]) -> list[str]:
    """One line on parts of rows that are not used, if there are any. filtered: columns that chose the rows."""
    chosen_by = {f"column {column_name(name)}" for name in filtered}
    left = [(name, count) for name, count in counts.most_common() if name not in chosen_by]
    if not left:
        return []
    shown = ", ".join(f"{name} ({count:,})" for name, count in left[:SHOWN_LEFT_OUT])
    more = f", and {len(left) - SHOWN_LEFT_OUT} more kinds" if len(left) > SHOWN_LEFT_OUT else ""
    return [f"parts of rows that are not used (in how many rows): {shown}{more}"]

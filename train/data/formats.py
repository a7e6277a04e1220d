"""What a row may look like, and what it becomes. Add a format by adding a value to FORMATS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from train.data.labelled import Labelled, Tagged, read_labelled, read_tagged
from train.data.preference import Continuation, Preference, read_asked, read_preference
from zerotune.data.conversations import Conversation, read_chat, read_instruction, turn
from zerotune.data.fields import Fields

Example = str | Conversation | Continuation | Labelled | Tagged | Preference


@dataclass(frozen=True)
class Format:
    """A kind of row.

    required, optional: its fields. alternatives: fields of which one is enough.
    read: what the row says; a text for a corpus.
    """

    required: tuple[str, ...]
    read: Callable[[Fields], Example]
    optional: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that this format knows."""
        return self.required + self.alternatives + self.optional


FORMATS: Mapping[str, Format] = {
    "text": Format(("text",), lambda fields: fields.text("text")),
    "qa": Format(("question", "answer"), lambda f: turn(f, f.text("question"), f.answer("answer")), ("system",)),
    "pr": Format(("prompt", "response"), lambda f: turn(f, f.text("prompt"), f.answer("response")), ("system",)),
    "io": Format(("instruction", "output"), read_instruction, ("input", "system", "history")),
    "chat": Format((), read_chat, ("system", "tools", "functions"), alternatives=("messages", "conversations")),
    "labelled": Format(("label",), read_labelled, ("sentence2",), alternatives=("sentence", "text", "sentence1")),
    "tagged": Format(("tokens", "tags"), read_tagged),
    "preference": Format(
        ("chosen", "rejected"),
        lambda f: read_asked(f) if f.asks else read_preference(f),
        ("prompt", "conversations", "system", "tools", "functions"),
    ),
}

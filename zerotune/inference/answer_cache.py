"""Answers on disk as soon as they are there, so that an evaluation that was killed goes on where it was.

OUT/journal holds a file for each start of a process, one JSON object a line, only ever appended to. A line is found
again by a key: sha256 over all that an answer depends on, which is the model (digests of weights, configuration and
tokenizer, head, precision) and the request (its tokens, its settings, the bytes of its images). The chat template, the
few-shot examples and the version of a task show in the tokens. Neither the number of processes nor the batches are in
the key: they change no answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import secrets
from array import array
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import IO, Any

from zerotune.common.errors import UserError
from zerotune.common.files import cannot_write, sha256_file
from zerotune.common.masking import mask_all
from zerotune.inference.requests import Answer, Classified, Generated, Request, Scored, Tagged

NOTHING: Mapping[str, Answer] = {}
KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Scored, Generated, Tagged, Classified)}


class Journal:
    """This process's part of the journal.

    Args:
        folder: Where its file is made with the first answer; without one, answers are only remembered.
        rank: For the file's name.
        answers: What the journal held at the start, the same on all ranks.
        begun: The day of the evaluation's first start, the same on all ranks; today, where it is not given.
    """

    def __init__(
        self,
        folder: Path | None = None,
        rank: int = 0,
        answers: Mapping[str, Answer] = NOTHING,
        begun: date | None = None,
    ) -> None:
        self.begun = begun or datetime.now(UTC).date()
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._path = folder / f"{now}-{rank:03}-{secrets.token_hex(4)}.jsonl" if folder else None
        self._answers = dict(answers)
        self._before = frozenset(answers)
        self._handle: IO[str] | None = None

    def known(self, model: str, requests: Iterable[Request]) -> dict[Request, Answer]:
        """The answers that `model` (see `identity`) has given already, in this evaluation or one before."""
        keys = {request: _key(model, request) for request in requests}
        return {request: self._answers[key] for request, key in keys.items() if key in self._answers}

    def from_before(self, model: str, requests: Iterable[Request]) -> int:
        """How many of the requests an evaluation before this one has answered."""
        return sum(_key(model, request) in self._before for request in requests) if self._before else 0

    def write(self, model: str, request: Request, answer: Answer) -> None:
        """Append an answer; after a kill it is there. Raises CannotWriteError."""
        said = dataclasses.asdict(answer)
        if self._path is None or mask_all(said) != said:  # an answer with a secret in it is asked again instead
            return
        line = {"key": _key(model, request), "kind": type(answer).__name__, "answer": said}
        try:
            if self._handle is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = self._path.open("x", encoding="utf-8", buffering=1)  # a line is written as a whole
            self._handle.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def learn(self, model: str, answers: Mapping[Request, Answer]) -> None:
        """Answers of all ranks, so that all ranks know the same."""
        self._answers |= {_key(model, request): answer for request, answer in answers.items()}


def read(folder: Path) -> dict[str, Answer]:
    """All answers of a journal. A line that is not whole (of a process that was killed) is passed over."""
    answers: dict[str, Answer] = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}; use --resume never") from error
        answers |= dict(filter(None, map(_entry, lines)))
    return answers


def first_day(folder: Path) -> date | None:
    """The day of the journal's first file, by its name; None where there is none."""
    names = sorted(path.name for path in folder.glob("*T*.jsonl"))
    with contextlib.suppress(ValueError, IndexError):
        return datetime.strptime(names[0].partition("T")[0], "%Y%m%d").date()
    return None


def identity(digests: Mapping[str, str], settings: Sequence[str]) -> str:
    """A model as it answers. digests: of all its files that matter; settings: head, precision and the like."""
    return json.dumps([sorted(digests.items()), list(settings)])


def _entry(line: str) -> tuple[str, Answer] | None:
    try:
        found = json.loads(line)
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in found["answer"].items()}
        return str(found["key"]), KINDS[found["kind"]](**fields)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _key(model: str, request: Request) -> str:
    digest = hashlib.sha256(f"{model}\n{type(request).__name__}\n".encode())
    for entry in dataclasses.fields(request):
        value = getattr(request, entry.name)
        if entry.name == "images":
            value = [_image(path) for path in value]
        if value and isinstance(value, tuple) and isinstance(value[0], int):
            digest.update(f"{entry.name}:{len(value)}:".encode() + array("q", value).tobytes())
        else:
            digest.update(f"{entry.name}={json.dumps(value)}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=4096)
def _image(path: str) -> str:
    return sha256_file(Path(path))

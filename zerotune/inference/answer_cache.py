"""Writes each answer to disk at once, so that an interrupted evaluation resumes where it stopped.

OUT/journal holds one append-only JSON Lines file for each start of a process. The key of a line is the sha256 of
everything that determines the answer: the model (digests of weights, configuration and tokenizer; head; precision) and
the request (tokens, settings, bytes of its images). The tokens cover the chat template, the few-shot examples and the
task's version. The key leaves out the number of processes and the batching, which change no answer.
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
from zerotune.common.mask_secrets import mask_all
from zerotune.inference.requests import Answer, Classified, Generated, Measured, Request, Scored, Tagged

NO_ANSWERS: Mapping[str, Answer] = {}
KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Scored, Generated, Tagged, Classified, Measured)}


class AnswerCache:
    """The answers of one evaluation; each process appends its own to a file.

    Args:
        folder: Holds the file, which is created with the first answer; None keeps answers in memory only.
        rank: Part of the file's name.
        answers: Answers read from earlier starts, identical on all ranks.
        start_date: Day of the evaluation's first start, identical on all ranks; default: today.
    """

    def __init__(
        self,
        folder: Path | None = None,
        rank: int = 0,
        answers: Mapping[str, Answer] = NO_ANSWERS,
        start_date: date | None = None,
    ) -> None:
        self.start_date = start_date or datetime.now(UTC).date()
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._path = folder / f"{now}-{rank:03}-{secrets.token_hex(4)}.jsonl" if folder else None
        self._answers = dict(answers)
        self._earlier = frozenset(answers)
        self._handle: IO[str] | None = None

    def lookup(self, model: str, requests: Iterable[Request]) -> dict[Request, Answer]:
        """The cached answers of `model` (see `model_key`), from this start or an earlier one."""
        keys = {request: _key(model, request) for request in requests}
        return {request: self._answers[key] for request, key in keys.items() if key in self._answers}

    def count_reused(self, model: str, requests: Iterable[Request]) -> int:
        """How many of the requests were answered by an earlier start."""
        return sum(_key(model, request) in self._earlier for request in requests) if self._earlier else 0

    def write(self, model: str, request: Request, answer: Answer) -> None:
        """Append an answer to the file; it survives a kill. Raises CannotWriteError."""
        fields = dataclasses.asdict(answer)
        if self._path is None or mask_all(fields) != fields:  # an answer that contains a secret is never stored
            return
        line = {"key": _key(model, request), "kind": type(answer).__name__, "answer": fields}
        try:
            if self._handle is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = self._path.open("x", encoding="utf-8", buffering=1)  # flushes whole lines
            self._handle.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def add(self, model: str, answers: Mapping[Request, Answer]) -> None:
        """Add the answers of all ranks, so that every rank has the same cache."""
        self._answers |= {_key(model, request): answer for request, answer in answers.items()}


def read_answers(folder: Path) -> dict[str, Answer]:
    """All cached answers in `folder`, by key. An incomplete line (of a killed process) is skipped."""
    answers: dict[str, Answer] = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}; use --resume never") from error
        answers |= dict(filter(None, map(_parse_line, lines)))
    return answers


def start_date(folder: Path) -> date | None:
    """The day in the name of the oldest file; None without files."""
    names = sorted(path.name for path in folder.glob("*T*.jsonl"))
    with contextlib.suppress(ValueError, IndexError):
        return datetime.strptime(names[0].partition("T")[0], "%Y%m%d").date()
    return None


def model_key(digests: Mapping[str, str], settings: Sequence[str]) -> str:
    """The model's part of a key. digests: of its files; settings: head, precision and the like."""
    return json.dumps([sorted(digests.items()), list(settings)])


def _parse_line(line: str) -> tuple[str, Answer] | None:
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
        if value is None:  # a field that older caches do not know
            continue
        if entry.name == "images":
            value = [_image_digest(path) for path in value]
        if value and isinstance(value, tuple) and isinstance(value[0], int):
            digest.update(f"{entry.name}:{len(value)}:".encode() + array("q", value).tobytes())
        else:
            digest.update(f"{entry.name}={json.dumps(value)}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=4096)
def _image_digest(path: str) -> str:
    return sha256_file(Path(path))

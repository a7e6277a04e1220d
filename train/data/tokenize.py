"""Checked rows to token ids and a mask of learned tokens. Runs in worker processes: this file must not import torch.

Shape suffixes: n rows of a chunk, k tokens of all its rows one after another, t tokens of one row.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from train.data.end_tokens import ending_spans, last_tokens
from train.data.label_encoder import TO_PREDICT, LabelEncoder, LabelSpec
from train.data.rows import joined
from train.data.sources import NumberedRow
from train.data.templates import OTHER_PROMPT, ChatTemplate, continuation_text, render
from zerotune.common.errors import UserError
from zerotune.data.chat_template_file import OPENED_THOUGHTS
from zerotune.data.conversations import Conversation, with_system
from zerotune.data.fields import Fields, RowError
from zerotune.data.fit_messages import Span
from zerotune.data.formats import FORMATS, Example, known_as, parts_left_out
from zerotune.data.labelled import Labelled
from zerotune.data.number_tokens import NumberTokens
from zerotune.data.numbers_in_text import RULES_VERSION
from zerotune.data.preference import Continuation, Preference
from zerotune.data.raw_row import BadRow, Row
from zerotune.data.tagged import Tagged


@dataclass(frozen=True)
class Settings:
    """All settings that determine the tokens of a row; sent to the workers once.

    tokenizer: its JSON, without truncation and padding. marks: ids of added (special) tokens.
    bos, eos: tokens at the start and end of a corpus text; None for none.
    numbers_pairs: whether the tokenizer distinguishes two sentences (token_type_ids).
    number_token: that stands for each number; None if numbers are ordinary text.
    """

    tokenizer: str
    marks: frozenset[int]
    bos: int | None
    eos: int | None
    template: ChatTemplate | None
    format: str
    columns: Mapping[str, str]
    system_prompt: str | None
    max_length: int
    label_spec: LabelSpec = TO_PREDICT
    numbers_pairs: bool = False
    pad: int | None = None
    number_token: int | None = None

    def identity(self) -> dict[str, Any]:
        """The settings as short JSON; equal settings give equal tokens."""
        corpus = self.is_corpus
        spec = {key: value for key, value in vars(self.label_spec).items() if key != "numbers"}
        labelled = (
            {**spec, "numbers_pairs": self.numbers_pairs, "pad": self.pad} if FORMATS[self.format].has_labels else None
        )
        return {
            "tokenizer": hashlib.sha256(self.tokenizer.encode()).hexdigest(),
            "bos": self.bos if corpus or labelled else None,
            "eos": self.eos if corpus or labelled else None,
            "template": None if corpus or self.template is None else self.template.identity,
            "special_tokens": None if corpus or self.template is None else dict(self.template.special_tokens),
            "format": self.format,
            "columns": dict(self.columns),
            "system_prompt": None if corpus else self.system_prompt,
            "max_length": self.max_length,
            "golden": labelled,  # the key in existing caches
            **(
                {"asks": True} if self.label_spec.asks and not corpus else {}
            ),  # absent if false: older tables stay valid
            **({"numbers": RULES_VERSION} if self.label_spec.numbers else {}),
        }

    @property
    def is_corpus(self) -> bool:
        """Whether rows are texts."""
        return known_as(self.format) == "text"

    @property
    def is_labelled(self) -> bool:
        """Whether rows have labels, and are not conversations or texts."""
        return FORMATS[self.format].has_labels and not (self.label_spec.asks and known_as(self.format) == "preference")


@dataclass
class Chunk:
    """Some rows as tokens, in order.

    sharing_n: the number in its file of a row that shares its line with others, else 0 (`Row.number`).
    full_n, prompt_n: hashes of the row's normalised content, and of the part before its last answer (0: none); the
    windows of a long corpus text repeat them.
    rows: number of rows that were read. bad: rows that cannot be used, with the number of their file; `unreadable` of
    them failed before tokenisation, `missing` of these lack a field, and the first of these have these `columns`.
    cut: rows longer than the limit. endless: rows whose last answer does not end with a special token.
    values_g, values_n: labels of all label positions, or values of all numbers, and their count per row; indices into
    `labels`, if there are any. second_n: where a row's second sentence begins (0: there is none).
    loose: entities that begin with I- or E-. left_out: parts of usable rows that are not used, and in how many rows.
    ends: special tokens at the end of answers and texts.
    asked_otherwise: rows whose last answer follows another prompt than at inference.
    """

    ids_k: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    learned_k: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    lengths_n: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    file_n: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    line_n: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    sharing_n: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    number_n: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    full_n: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    prompt_n: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    values_g: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))
    values_n: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    second_n: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    labels: list[str] = field(default_factory=list)
    rows: int = 0
    cut: int = 0
    endless: int = 0
    loose: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    ends: set[int] = field(default_factory=set)
    asked_otherwise: int = 0
    bad: list[tuple[int, BadRow]] = field(default_factory=list)
    unreadable: int = 0
    missing: int = 0
    columns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Piece:
    """One row of tokens. position: index of its source row in the chunk."""

    position: int
    ids_t: NDArray[np.int32]
    learned_t: NDArray[np.uint8]
    values: tuple[str | float, ...] = ()
    second: int = 0


Usable = tuple[NumberedRow, Row, Example]


@lru_cache(maxsize=1)
def _tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_str(text)


def read_row(
    row: Row,
    kind: str,
    columns: Mapping[str, str],
    system: str | None,
    asks: bool = False,
    left: Counter[str] | None = None,
) -> Example:
    """Read a row of the format `kind`; a conversation without a system message gets `system`. Raises RowError.

    asks: see `LabelSpec`. left: counts the parts of the row that no field of the format uses.
    """
    fields = Fields(row.value, columns, asks)
    example = FORMATS[kind].read(fields)
    if left is not None:
        several = isinstance(example, Conversation) and example.also_right
        for part in (*parts_left_out(fields, example), *(("answers after the first",) if several else ())):
            left[part] += 1  # `update` would cost a tenth of the time of the row, mostly for nothing
    if isinstance(example, Conversation) and system:
        return replace(example, messages=with_system(example.messages, system))
    return example


class Encoder:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokenizer = _tokenizer(settings.tokenizer)

    @cached_property
    def _label_encoder(self) -> LabelEncoder:
        return LabelEncoder(self.tokenizer, self.settings)

    @cached_property
    def _number_tokens(self) -> NumberTokens:
        return NumberTokens(self.tokenizer)

    def chunk(self, rows: Sequence[NumberedRow], only_check: bool = False) -> Chunk:
        """The rows as tokens; rows that cannot be used are in `bad`.

        Raises:
            UserError: Tags are numbers without names (head.labels).
        """
        out = Chunk(rows=len(rows))
        usable: list[Usable] = []
        for row in rows:
            if isinstance(row.item, BadRow):
                out.bad.append((row.file, row.item))
                continue
            try:
                usable.append((row, row.item, self._read(row.item, out.left_out)))
            except RowError as error:
                _refuse(out, row, row.item, error)
        out.unreadable = len(out.bad)
        if only_check:
            return out
        if self.settings.is_labelled:
            pieces = list(self._labelled_rows(usable, out))
        else:
            is_corpus = self.settings.is_corpus
            pieces = list(self._documents(usable, out) if is_corpus else self._conversations(usable, out))
        return _filled(out, usable, pieces)

    def text(self, row: Row) -> str:
        """The text of a row of a language model that becomes tokens. Raises RowError."""
        example = self._read(row, Counter())
        if isinstance(example, Labelled):
            return self._with_numbers("".join(self._label_encoder.texts(example)))[0]
        assert isinstance(example, (str, Conversation, Continuation))
        return self._with_numbers(example)[0] if isinstance(example, str) else self._rendered(example, set())[0]

    def _with_numbers(self, text: str, spans: Sequence[Span] = ()) -> tuple[str, list[Span], tuple[float, ...]]:
        """(text with its numbers as tokens, the same spans in it, their values), if the objective reads numbers."""
        if not self.settings.label_spec.numbers:
            return text, list(spans), ()
        shown, moved = self._number_tokens(text, spans)
        return shown.text, moved, shown.values

    def _read(self, row: Row, left: Counter[str]) -> Example:
        settings = self.settings
        return read_row(row, settings.format, settings.columns, settings.system_prompt, settings.label_spec.asks, left)

    def _documents(self, usable: Sequence[Usable], out: Chunk) -> Iterator[_Piece]:
        """Each text with its end token; if it is longer than the limit, the rest is in further rows.

        A row repeats the last token of the row before: the first token of a row cannot be predicted, and so every
        token after the first is learned exactly once.
        """
        settings, limit = self.settings, self.settings.max_length
        texts: list[tuple[int, str, tuple[float, ...]]] = []
        for position, (row, read, text) in enumerate(usable):
            try:
                shown, _, values = self._with_numbers(str(text))
                texts.append((position, shown, values))
            except RowError as error:
                _refuse(out, row, read, error)
        encodings = self.tokenizer.encode_batch_fast([text for _, text, _ in texts], add_special_tokens=False)
        for (position, _, values), encoding in zip(texts, encodings, strict=True):
            row, read, _ = usable[position]
            ids = list(encoding.ids)
            if settings.bos is not None and ids[:1] != [settings.bos]:
                ids.insert(0, settings.bos)
            if settings.eos is not None and ids[-1:] != [settings.eos]:
                ids.append(settings.eos)
            if len(ids) < 2:
                _refuse(out, row, read, RowError("nothing to learn: a single token"))
                continue
            out.cut += len(ids) > limit
            out.ends |= set() if settings.eos is None else {settings.eos}
            ids_t = np.array(ids, np.int32)
            for start in range(0, len(ids) - 1, limit - 1):
                window_t = ids_t[start : start + limit]
                learned_t = np.ones(len(window_t), np.uint8)
                learned_t[0] = 0
                inside = self._number_tokens.window(ids_t, values, start, start + limit) if values else ()
                yield _Piece(position, window_t, learned_t, inside)

    def _conversations(self, usable: Sequence[Usable], out: Chunk) -> Iterator[_Piece]:
        limit = self.settings.max_length
        rendered: list[tuple[int, str, list[Span], tuple[float, ...]]] = []
        for position, (row, read, example) in enumerate(usable):
            assert isinstance(example, (Conversation, Continuation))
            try:
                left: set[str] = set()
                rendered.append((position, *self._rendered(example, left)))
                out.left_out.update(left - {OTHER_PROMPT})
                out.asked_otherwise += OTHER_PROMPT in left
            except RowError as error:
                _refuse(out, row, read, error)
        encodings = self.tokenizer.encode_batch([text for _, text, _, _ in rendered], add_special_tokens=False)
        for (position, text, spans, values), encoding in zip(rendered, encodings, strict=True):
            row, read, example = usable[position]
            ids, offsets = self._split_at_prompts(text, spans, encoding)
            ids_t = np.array(ids, np.int32)
            bounds = _bounds(offsets)
            learned_t = _overlapping(bounds, spans)
            learned_t[:1] = 0  # the first token cannot be predicted
            assert isinstance(example, (Conversation, Continuation))
            reason = _why_unusable(learned_t, limit) if example.is_answered else _why_no_prompt(ids_t, limit)
            if reason:
                _refuse(out, row, read, RowError(reason))
                continue
            out.endless += example.is_answered and int(ids_t[np.flatnonzero(learned_t)[-1]]) not in self.settings.marks
            out.cut += len(ids_t) > limit
            out.ends |= self._ends(example, ids_t[:limit], bounds[0], spans)
            inside = self._number_tokens.window(ids_t, values, 0, limit) if values else ()
            yield _Piece(position, ids_t[:limit], learned_t[:limit], inside)
        if rendered and not out.ends:
            out.ends |= self._ends_of_an_answer(usable[rendered[0][0]][2])

    def _split_at_prompts(self, text: str, spans: Sequence[Span], encoding: Encoding) -> tuple[list[int], list[Span]]:
        """Tokens and their offsets. If a prompt opens reasoning (`<think>` and a line feed), no token crosses its end:
        at inference the prompt is tokenised alone.
        """
        assert self.settings.template is not None
        if not self.settings.template.trains_apart:
            return encoding.ids, encoding.offsets
        start_t, end_t = _bounds(encoding.offsets)
        starts = [
            start
            for start, _ in spans
            if ((start_t < start) & (start < end_t)).any() and OPENED_THOUGHTS.search(text, 0, start)
        ]
        if not starts:
            return encoding.ids, encoding.offsets
        ids, offsets = list[int](), list[Span]()
        for begin, end in pairwise([0, *starts, len(text)]):
            piece = self.tokenizer.encode(text[begin:end], add_special_tokens=False)
            ids += piece.ids
            offsets += [(begin + a, begin + b) for a, b in piece.offsets]
        return ids, offsets

    def _ends_of_an_answer(self, example: Example) -> set[int]:
        """The tokens that would end an answer to a row without one."""
        if not isinstance(example, Conversation) or example.is_answered:
            return set()
        answer = {"role": "assistant", "content": "?"}
        try:
            text, spans, _ = self._rendered(replace(example, messages=[*example.messages, answer]), set())
        except RowError:
            return set()
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return self._ends(example, np.array(encoding.ids, np.int32), _bounds(encoding.offsets)[0], spans)

    def _ends(
        self,
        example: Conversation | Continuation,
        ids_t: NDArray[np.int32],
        starts_t: NDArray[np.int64],
        spans: Sequence[Span],
    ) -> set[int]:
        return last_tokens(ids_t, starts_t, [end for _, end in ending_spans(example, spans)]) & self.settings.marks

    def _rendered(
        self, example: Conversation | Continuation, left: set[str]
    ) -> tuple[str, list[Span], tuple[float, ...]]:
        """(text, learned spans, values of its numbers). left: collects the parts that the template omits."""
        template = self.settings.template
        assert template is not None
        if isinstance(example, Continuation):
            return self._with_numbers(*continuation_text(template, example, self.settings.bos is not None))
        return self._with_numbers(*render(template, example, left))

    def _labelled_rows(self, usable: Sequence[Usable], out: Chunk) -> Iterator[_Piece]:
        for position, (row, read, example) in enumerate(usable):
            assert isinstance(example, (Labelled, Tagged, Preference))
            try:
                labelled = self._label_encoder(example)
            except RowError as error:
                _refuse(out, row, read, error)
                continue
            except UserError as error:
                raise UserError(f"{read.place}: {error}") from None
            out.cut += labelled.cut
            if self.settings.label_spec.labels_as == "words" and self.settings.eos is not None:
                out.ends.add(self.settings.eos)
            out.loose += example.loose if isinstance(example, Tagged) else 0
            out.left_out.update(labelled.left_out)
            for ids_t, label_mask_t, values in labelled.windows:
                yield _Piece(position, ids_t, label_mask_t, values, labelled.second)


def _why_unusable(learned_t: NDArray[np.uint8], limit: int) -> str:
    """Why nothing can be learned from a row; empty if something can."""
    if not learned_t.any():
        return "nothing to learn: the answers are empty once rendered"
    if learned_t[:limit].any():
        return ""
    first = int(np.flatnonzero(learned_t)[0]) + 1
    return (
        f"nothing left to learn after truncation: the first answer begins at token {first}, data.max_length_tokens is "
        f"{limit}"
    )


def _why_no_prompt(ids_t: NDArray[np.int32], limit: int) -> str:
    """Why a row without an answer cannot be used; empty if it can. A truncated prompt has another meaning."""
    if len(ids_t) <= limit:
        return ""
    return f"longer than data.max_length_tokens: the prompt has {len(ids_t)} tokens, the limit is {limit}"


def _refuse(out: Chunk, row: NumberedRow, read: Row, error: RowError) -> None:
    out.bad.append((row.file, read.refused(str(error))))
    if error.missing:
        out.missing += 1
        out.columns = joined(out.columns, read.value)


def _overlapping(bounds: tuple[NDArray[np.int64], NDArray[np.int64]], spans: Sequence[Span]) -> NDArray[np.uint8]:
    """1 for each token with a character of a span, else 0."""
    start_t, end_t = bounds
    learned_t = np.zeros(len(end_t), np.uint8)
    for start, end in spans:
        learned_t |= (np.maximum(start_t, start) < np.minimum(end_t, end)).astype(np.uint8)
    return learned_t


def _bounds(offsets: Sequence[Span]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(start, end) of each token in the text.

    Tokenizers that trim offsets exclude white space: a token is taken to begin where the one before it ended, unless
    both share a character (a byte-level tokenizer can divide a character into several tokens).
    """
    bounds_t2 = np.array(offsets, np.int64).reshape(-1, 2)
    end_t = bounds_t2[:, 1]
    return np.minimum(bounds_t2[:, 0], np.concatenate([[0], end_t])[: len(end_t)]), end_t


def _filled(out: Chunk, usable: Sequence[Usable], pieces: Sequence[_Piece]) -> Chunk:
    out.bad.sort(key=lambda entry: (entry[0], entry[1].line))
    if not pieces:
        return out
    hashes = {position: _hashes(usable[position][2]) for position in {piece.position for piece in pieces}}
    out.ids_k = np.concatenate([piece.ids_t for piece in pieces])
    out.learned_k = np.concatenate([piece.learned_t for piece in pieces])
    out.lengths_n = np.array([len(piece.ids_t) for piece in pieces], np.int32)
    out.file_n = np.array([usable[piece.position][0].file for piece in pieces], np.int32)
    out.line_n = np.array([usable[piece.position][1].line for piece in pieces], np.int64)
    out.sharing_n = np.array([usable[piece.position][1].number for piece in pieces], np.int64)
    out.number_n = np.array([usable[piece.position][0].number for piece in pieces], np.int64)
    out.full_n = np.array([hashes[piece.position][0] for piece in pieces], np.uint64)
    out.prompt_n = np.array([hashes[piece.position][1] for piece in pieces], np.uint64)
    out.second_n = np.array([piece.second for piece in pieces], np.int32)
    out.values_n = np.array([len(piece.values) for piece in pieces], np.int32)
    values = [value for piece in pieces for value in piece.values]
    out.labels = list(dict.fromkeys(value for value in values if isinstance(value, str)))
    numbers = {name: float(number) for number, name in enumerate(out.labels)}
    out.values_g = np.array([numbers[value] if isinstance(value, str) else value for value in values], np.float64)
    return out


def _hashes(example: Example) -> tuple[int, int]:
    """(hash of the whole row, hash of its prompt)."""
    if isinstance(example, str):
        return content_hash([example]), 0
    if isinstance(example, Labelled):
        return content_hash([*example.sentences, str(example.label)]), content_hash(example.sentences)
    if isinstance(example, Tagged):
        return content_hash([*example.words, *map(str, example.tags)]), content_hash(example.words)
    if isinstance(example, Preference):
        return content_hash([str(example.chosen), str(example.rejected)]), 0
    if isinstance(example, Continuation):
        return content_hash([example.prompt, example.answer]), content_hash([example.prompt])
    turns = [(message["role"], _content(message)) for message in example.messages if message["role"] != "system"]
    last = max(k for k, (role, _) in enumerate(turns) if role == "assistant") if example.is_answered else len(turns)
    return content_hash([text for _, text in turns]), content_hash([text for _, text in turns[:last]])


def _content(message: Mapping[str, Any]) -> str:
    content = str(message["content"])
    if len(message) == 2:
        return content
    return content + "".join(str(message[key]) for key in ("reasoning_content", "tool_calls") if key in message)


def content_hash(texts: Sequence[str]) -> int:
    """A 64-bit hash of texts that ignores compatibility forms, case and white space; 0 for empty texts."""
    normal = "".join("".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)
    return int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest(), "big") if normal else 0

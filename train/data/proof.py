"""Proves the template: compares trained rows with the requests of evaluation for the same content."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from train.config import DataConfig, SourceConfig
from train.data.held_out import is_first
from train.data.label_encoder import LabelSpec
from train.data.sources import find, is_local
from train.data.token_dataset import Part
from train.data.tokenize import read_row
from zerotune.common.console import counted
from zerotune.data.chat_template_file import default_template, tool_template
from zerotune.data.conversations import Conversation, Message, said_in
from zerotune.data.fields import RowError
from zerotune.data.formats import Example
from zerotune.data.labelled import Labelled, label_prompt
from zerotune.data.number_tokens import NumberTokens, with_spellings
from zerotune.data.preference import Preference, Side
from zerotune.data.raw_row import Row
from zerotune.data.tagged import Tagged
from zerotune.data.text_files import begins_slowly
from zerotune.inference.prompt import Ids, Prompter

LAUNCH_ROWS, LAUNCH_SOURCES = 8, 4  # that are compared in each run
SHOWN_ROWS, SHOWN_TOKENS = 3, 12  # rows that differ, and tokens of each from the first difference on


@dataclass
class Proof:
    """Rows of one source that were compared with the request of evaluation for the same content.

    wrong: those with other tokens, or an answer that is not learned from its start to a token that ends generation.
    earlier: further ones, whose earlier turns alone have other tokens: some templates write reasoning only in the last
    turn, and training versions of them in every turn.
    tools, systems, thoughts: rows with tools, a system message, reasoning. different: the first wrong rows, and how.
    """

    source: str
    rows: int = 0
    wrong: int = 0
    earlier: int = 0
    tools: int = 0
    systems: int = 0
    thoughts: int = 0
    different: list[str] = field(default_factory=list)

    def add(self, example: Example, place: str, problem: str) -> None:
        """Count a row. problem: how it differs; empty if it does not."""
        self.rows += 1
        self.wrong += bool(problem)
        if problem and len(self.different) < SHOWN_ROWS:
            self.different.append(f"{place}: {problem}")
        if isinstance(example, Conversation):
            self.tools += bool(example.tools)
            self.systems += example.messages[0]["role"] == "system"
            self.thoughts += any(map(_has_thought, example.messages))


class Inference:
    """What a checkpoint of a run makes of rows: its tokenizer has the run's template.

    ends: tokens that end the answers of the training rows, which become those of its generation settings.
    """

    def __init__(
        self, data: DataConfig, label_spec: LabelSpec, tokenizer: Any, day: date, ends: Collection[int], name: str
    ) -> None:
        self.data, self.label_spec, self.tokenizer = data, label_spec, tokenizer
        template = tokenizer.chat_template
        self.prompter = Prompter(
            tokenizer, default_template(template), False, None, 1, 0, sorted(ends), name, day=day,
            tool_template=tool_template(template), system_prompt=data.system_prompt or "",
            reads_numbers=label_spec.numbers,
        )  # fmt: skip

    def tokens(self, part: Part, number: int) -> tuple[list[int], list[bool]]:
        """(token ids of a row, whether each is learned); numbers as values have ids of their own (`number_id`).

        number: of the row in the table.
        """
        ids_t, learned_t = part.table.tokens(number)
        ids = ids_t.tolist()
        if self.label_spec.numbers:
            values = part.table.label_values(number)
            ids = list(NumberTokens(self.tokenizer.backend_tokenizer).with_values(ids, values))
        return ids, (learned_t != 0).tolist()

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return with_spellings(
            ids, self.tokenizer, lambda known: self.tokenizer.decode(known, clean_up_tokenization_spaces=False)
        )

    def proof(self, key: str, source: SourceConfig, rows: Sequence[tuple[Part, int]]) -> Proof:
        """Compare rows of a source, given by their part and number in its table. Rows that may be truncated are left
        out, and so are those without a request in evaluation.
        """
        proof = Proof(key)
        wanted = {int(part.table.column("number_n")[number]): (part, number) for part, number in rows}
        for at, example in self._examples(key, source, wanted):
            part, number = wanted[at]
            ids, is_learned = self.tokens(part, number)
            if len(ids) < self.data.max_length_tokens or self.label_spec.is_of_pairs:
                try:
                    asked = self._asked(example)
                    problem = self._problem(ids, is_learned, *asked) if asked else None
                    if problem and asked and self._is_same_turn(example, ids, is_learned, asked[0]):
                        problem = self._end_problem(ids, is_learned)
                        proof.earlier += not problem
                except Exception as error:  # a template can raise any
                    problem = str(error) or type(error).__name__
                if problem is not None:
                    proof.add(example, part.place(number), problem)
        return proof

    def _examples(self, key: str, source: SourceConfig, numbers: Collection[int]) -> Iterator[tuple[int, Example]]:
        """(number, content) of the rows with these numbers."""
        for row in find(source, key, self.data.streaming).rows():
            if row.number > max(numbers, default=-1):
                return
            if row.number in numbers and isinstance(row.item, Row):
                try:
                    reading = (source.format, source.columns, self.data.system_prompt, self.label_spec.asks)
                    yield row.number, read_row(row.item, *reading)
                except RowError:
                    continue

    def _asked(self, example: Example) -> tuple[Ids, bool] | None:
        """(tokens of the request of evaluation, whether a learned answer follows them in the row); None if unknown."""
        prompter = self.prompter
        if isinstance(example, str):
            return prompter.document(example).ids, False
        if isinstance(example, Conversation):
            if not example.is_answered:
                return prompter.chat_prompt(example.messages, example.tools), False
            if not example.messages[-1].get("learned", True):
                return None
            return prompter.chat_prompt(example.messages[:-1], example.tools), True
        if isinstance(example, Preference):
            return (*self._side(example.chosen), *self._side(example.rejected)), False
        if isinstance(example, Tagged):
            return tuple(prompter.words(example.words).windows(self.data.max_length_tokens)[0]), False
        if isinstance(example, Labelled):
            if self.label_spec.has_labels:
                return prompter.classifier_input(example.sentences)[0], False
            return prompter.choices(label_prompt(example.sentences), [str(example.label)])[0], True
        return None

    def _side(self, side: Side) -> Ids:
        if isinstance(side, str):
            return self.prompter.reward_input(side)
        return self.prompter.reward_input(side.messages, side.tools)

    def _problem(self, ids: Sequence[int], is_learned: Sequence[bool], asked: Ids, is_answered: bool) -> str:
        """How a row differs from its request; empty if it does not. A text may have an end token more."""
        start = len(asked)
        is_whole = is_answered or ids[start:] in ([], [self.tokenizer.eos_token_id])
        if tuple(ids[:start]) != asked or not is_whole:
            pairs = zip(ids, asked, strict=False)
            place = next((k for k, (one, other) in enumerate(pairs) if one != other), min(len(ids), start))
            one, other = (self.text(own[place : place + SHOWN_TOKENS]) for own in (ids, asked))
            return f"token {place + 1}: trained {one!r}, asked {other!r}"
        if not is_answered:
            return ""
        if not any(is_learned[start:]) or is_learned[start - 1] or not is_learned[start]:
            return f"learning does not begin after the prompt, at token {start + 1}"
        return self._end_problem(ids, is_learned)

    def _end_problem(self, ids: Sequence[int], is_learned: Sequence[bool]) -> str:
        last = max(place for place, learned in enumerate(is_learned) if learned)
        if ids[last] not in self.prompter.stop_ids:
            return f"the last learned token, {self.text([ids[last]])!r}, does not end generation"
        return ""

    def _is_same_turn(self, example: Example, ids: Sequence[int], is_learned: Sequence[bool], asked: Ids) -> bool:
        """Whether the tokens of the last message before the answer, and all after it, are those of the request."""
        if not isinstance(example, Conversation) or not any(is_learned):
            return False
        if not any(message["role"] == "assistant" for message in example.messages[:-1]):
            return False
        last = max(place for place, learned in enumerate(is_learned) if learned)
        start = max((place + 1 for place in range(last) if not is_learned[place]), default=0)
        pairs = zip(reversed(ids[:start]), reversed(asked), strict=False)
        common = next((k for k, (one, other) in enumerate(pairs) if one != other), min(start, len(asked)))
        return said_in(example.messages[-2]).strip() in self.text(asked[len(asked) - common :])


def _has_thought(message: Message) -> bool:
    return bool(message.get("reasoning_content")) or "</think>" in message["content"]


def first_windows(parts: Sequence[Part], most: int, spread: bool = False) -> list[tuple[Part, int]]:
    """(part, number in its table) of the first windows of some source rows: the first ones, or spread over all."""
    firsts = [np.flatnonzero(is_first(part.column("number_n"))) for part in parts]
    total = sum(map(len, firsts))
    chosen = np.unique(np.linspace(0, max(total - 1, 0), min(most, total)).round().astype(np.int64))
    chosen = chosen if spread else np.arange(min(most, total))
    index_n = np.concatenate([np.empty(0, np.int64), *firsts])
    part_n = np.repeat(np.arange(len(parts)), [len(own) for own in firsts])
    return [(parts[part_n[k]], parts[part_n[k]].where(int(index_n[k]))) for k in chosen.tolist()]


def about_requests(inference: Inference, sources: Sequence[SourceConfig], parts: Sequence[Part]) -> list[str]:
    """Lines for the user about the first rows of the first sources, compared with requests of evaluation. Sources that
    take long to open are left out. sources: of the recipe's data.train.
    """
    compared, earlier, lines = 0, 0, []
    for part in parts[:LAUNCH_SOURCES]:
        key, source = f"data.train[{part.source}]", sources[part.source]
        if not is_local(source, key) or begins_slowly(Path(part.names[0])):
            continue
        proof = inference.proof(key, source, first_windows([part], LAUNCH_ROWS))
        compared += proof.rows
        earlier += proof.earlier
        if proof.wrong:
            lines.append(
                f"WARNING: {key}: {proof.wrong} of the first {counted(proof.rows, 'row')} differ from what evaluation "
                f"asks; `zerotune check` compares more: {proof.different[0]}"
            )
    if compared and not lines:
        apart = f", apart from earlier turns in {counted(earlier, 'row')}" if earlier else ""
        lines.append(f"the first rows ({compared}) have the tokens that evaluation asks{apart}, and learn to stop")
    return lines

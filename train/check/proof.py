"""Proves the chat template: what stands before a learned answer is what the checkpoint is asked with in evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from train.check.findings import SHOWN, Finding, Proof
from train.check.load import Loaded, SourceRows
from train.data.sources import find
from train.data.tokenize import read_row
from zerotune.common.errors import UserError
from zerotune.data.chat_template_file import default_template, tool_template
from zerotune.data.conversations import Conversation
from zerotune.data.fields import RowError
from zerotune.data.raw_row import Row
from zerotune.inference.prompt import Prompter

MOST_ROWS = 200  # of a source
SHOWN_TOKENS = 12  # around the first difference


def proofs(loaded: Loaded) -> list[Proof]:
    """For each source of conversations that a language model learns from."""
    if loaded.setup.template is None or loaded.label_spec.has_labels or loaded.label_spec.numbers:
        return []
    prompter = _prompter(loaded)
    return [proof for rows in loaded.sources if (proof := _proof(rows, loaded, prompter)).rows]


def findings(proved: list[Proof]) -> Iterator[Finding]:
    """Rows whose answer is learned after another prompt, or without its end."""
    for proof in proved:
        count = proof.rows - min(proof.same, proof.stops)
        yield Finding("template", proof.source, count, proof.rows, proof.different)


def _prompter(loaded: Loaded) -> Prompter:
    """Of a checkpoint of this run: its tokenizer keeps the template."""
    template = loaded.tokenizer.chat_template
    return Prompter(
        loaded.tokenizer, default_template(template), False, None, 1, 0, (), loaded.config.model.name,
        day=loaded.setup.day, tool_template=tool_template(template),
        system_prompt=loaded.config.data.system_prompt or "",
    )  # fmt: skip


def _proof(rows: SourceRows, loaded: Loaded, prompter: Prompter) -> Proof:
    places = {int(number): row for row, number in enumerate(rows.column("number_n")[:MOST_ROWS].tolist())}
    same = stops = tools = systems = thoughts = count = 0
    different = list[str]()
    for number, example in _conversations(rows, loaded, set(places)):
        part, place = rows.find(places[number])
        ids_t, learned_t = part.table.tokens(place)
        if len(ids_t) >= rows.spec.settings.max_length:
            continue  # it may be truncated, and have no end
        try:
            asked = prompter.chat_prompt(example.messages[:-1], example.tools)
        except UserError as error:
            different.append(f"{rows.place(places[number])}: {error}")
            count += 1
            continue
        count += 1
        start, ids = len(asked), ids_t.tolist()
        begins = start < len(ids) and bool(learned_t[start]) and not learned_t[start - 1]
        is_same = tuple(ids[:start]) == asked and begins
        same += is_same
        stops += ids[int(np.flatnonzero(learned_t)[-1])] in prompter.stop_ids
        tools += bool(example.tools)
        systems += example.messages[0]["role"] == "system"
        thoughts += any("reasoning_content" in message for message in example.messages)
        if not is_same:
            different.append(f"{rows.place(places[number])}: {_difference(ids, list(asked), loaded)}")
    return Proof(rows.name, count, same, stops, tools, systems, thoughts, different[:SHOWN])


def _conversations(rows: SourceRows, loaded: Loaded, numbers: set[int]) -> Iterator[tuple[int, Conversation]]:
    """(number, conversation) of the rows with these numbers that end with an answer."""
    spec, data = rows.spec, loaded.config.data
    for row in find(spec.config, spec.key, data.streaming).rows():
        if row.number > max(numbers, default=-1):
            return
        if row.number not in numbers or not isinstance(row.item, Row):
            continue
        try:
            example = read_row(row.item, spec.config.format, spec.config.columns, data.system_prompt, loaded.label_spec.asks)
        except RowError:
            continue
        if isinstance(example, Conversation) and example.is_answered and example.messages[-1].get("learned", True):
            yield row.number, example


def _difference(trained: list[int], asked: list[int], loaded: Loaded) -> str:
    place = next((k for k, pair in enumerate(zip(trained, asked, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"learning does not begin after the prompt, at token {len(asked) + 1}"
    one, other = (loaded.tokenizer.decode(ids[place : place + SHOWN_TOKENS]) for ids in (trained, asked))
    return f"token {place + 1}: trained {one!r}, asked {other!r}"

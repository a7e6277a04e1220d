"""Prompts of rows, and the prompts of each rollout."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from train.data.token_dataset import Encoded
from train.objectives.ppo.conversations import MessagesByRow, messages_before
from train.objectives.ppo.trajectories import Messages
from train.objectives.prompt_and_answer import count_answers, last_answer
from zerotune.common.errors import UserError

STREAM = 4  # of random numbers: the order of prompts
NO_MESSAGES: MessagesByRow = MappingProxyType({})


@dataclass(frozen=True)
class Prompt:
    """ids: its tokens. row: `file:line`. stop_texts: what ends a response besides end tokens.

    messages: see `Trajectory`.
    """

    ids: tuple[int, ...]
    row: str
    stop_texts: tuple[str, ...] = ()
    messages: Messages = ()


def row_prompts(
    rows: Encoded, corpora: Container[int], corpus_tokens: int, row_tokens: int, messages: MessagesByRow = NO_MESSAGES
) -> Iterator[Prompt | None]:
    """The prompt of each row: what stands before its last answer; of a corpus text its first `corpus_tokens` tokens.
    None for a text that is not longer than that.

    corpora: indices of the sources that are corpora. row_tokens: the length at which texts are continued in a new row;
    such a continuation has no prompt and is skipped.
    messages: of rows that are conversations, for a reward model that reads them.
    """
    continued: set[str] = set()
    for index in range(len(rows)):
        ids, labels = rows.tokens(index)
        start, end = last_answer(labels)
        has_answer, source = start < end, int(rows.sources_n[index])
        row, is_corpus = rows.row_id(index), source in corpora
        is_continuation = is_corpus and row in continued
        if is_corpus and len(ids) >= row_tokens:
            continued.add(row)
        if not is_continuation:
            size = corpus_tokens if is_corpus else start
            before = messages.get((source, row), ()) if messages and not is_corpus else ()
            if before and has_answer:
                before = messages_before(before, count_answers(labels) - 1)
            is_prompt = size < len(ids) or not has_answer
            yield Prompt(tuple(int(x) for x in ids[:size]), row, (), before) if is_prompt else None


def fitting_prompts(
    prompts: Iterator[Prompt | None], name: str, response_tokens: int, context: int
) -> tuple[list[Prompt], list[str]]:
    """(the prompts that leave room for a response, messages about skipped rows).

    name: of the rows, for messages. Raises UserError if no prompt is left.
    """
    found, skipped, too_long = [], 0, 0
    for prompt in prompts:
        if prompt is not None and len(prompt.ids) + response_tokens <= context:
            found.append(prompt)
        else:
            skipped, too_long = skipped + 1, too_long + (prompt is not None)
    if not found:
        raise UserError(
            f"{name}: no row has a prompt with room for a response: {too_long:,} prompts + ppo.response_tokens "
            f"({response_tokens}) exceed the context of {context:,} tokens, {skipped - too_long:,} rows have no prompt "
            "or are no longer than ppo.prompt_tokens; lower these keys, or use other rows"
        )
    line = f"{skipped:,} rows of {name} are skipped: no prompt, or prompt + ppo.response_tokens exceeds the context"
    return found, [line] if skipped else []


def rollout_prompts(prompts: Sequence[Prompt], number: int, per_epoch: int, size: int, seed: int) -> list[Prompt]:
    """The `size` prompts of rollout `number`. Each epoch has its own order; its last rollout is filled up from the
    start of that order.
    """
    epoch, place = divmod(number, per_epoch)
    order = np.random.default_rng([seed, epoch, STREAM]).permutation(len(prompts))
    filled = np.resize(order, per_epoch * size)
    return [prompts[k] for k in filled[place * size : (place + 1) * size]]

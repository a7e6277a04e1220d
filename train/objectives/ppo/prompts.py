"""What is asked: the prompts that rows hold, and those of each rollout."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from train.data.token_dataset import Encoded
from train.objectives.ppo.conversations import Said, before_answer
from train.objectives.ppo.trajectories import Messages
from train.objectives.prompt_and_answer import answer_at, answers_in
from zerotune.common.errors import UserError

STREAM = 4  # of chance: the order of prompts
NOTHING_SAID: Said = {}


@dataclass(frozen=True)
class Prompt:
    """ids: its tokens. row: where it comes from. stop_texts: what ends an answer beside its end token. messages: see
    `Episode`.
    """

    ids: tuple[int, ...]
    row: str
    stop_texts: tuple[str, ...] = ()
    messages: Messages = ()


def asked_by(
    rows: Encoded, corpora: Container[int], corpus_tokens: int, row_tokens: int, said: Said = NOTHING_SAID
) -> Iterator[Prompt | None]:
    """What each row asks; of a corpus text its first tokens, where it goes on behind them. None where it asks nothing.

    corpora: numbers of the sources whose rows are texts.
    row_tokens: where a longer text was cut; what goes on in further rows asks nothing anew, and is passed over.
    said: rows as conversations, where their messages are wanted.
    """
    cut: set[str] = set()
    for index in range(len(rows)):
        ids, labels = rows.tokens(index)
        start, end = answer_at(labels)
        is_answered, source = start < end, int(rows.sources_n[index])
        row, is_corpus = rows.row_id(index), source in corpora
        goes_on = is_corpus and row in cut
        if is_corpus and len(ids) >= row_tokens:
            cut.add(row)
        if not goes_on:
            size = corpus_tokens if is_corpus else start
            whole = said.get((source, row), ()) if said and not is_corpus else ()
            messages = before_answer(whole, answers_in(labels) - 1) if whole and is_answered else whole
            goes_on_behind = size < len(ids) or not is_answered
            yield Prompt(tuple(int(x) for x in ids[:size]), row, (), messages) if goes_on_behind else None


def with_room(
    prompts: Iterator[Prompt | None], name: str, answer_tokens: int, longest: int
) -> tuple[list[Prompt], list[str]]:
    """(those that leave room for an answer, what to tell about the others).

    name: what messages call the rows. longest: prompt and answer together. Raises UserError where none is left.
    """
    found, left_out, too_long = [], 0, 0
    for prompt in prompts:
        if prompt is not None and len(prompt.ids) + answer_tokens <= longest:
            found.append(prompt)
        else:
            left_out, too_long = left_out + 1, too_long + (prompt is not None)
    if not found:
        raise UserError(
            f"{name}: no row has a prompt with room for a response: {too_long:,} prompts + ppo.response_tokens "
            f"({answer_tokens}) exceed the context of {longest:,} tokens, {left_out - too_long:,} rows have no prompt "
            "or are no longer than ppo.prompt_tokens; lower these keys, or use other rows"
        )
    told = f"{left_out:,} rows of {name} are skipped: no prompt, or prompt + ppo.response_tokens exceeds the context"
    return found, [told] if left_out else []


def of_rollout(prompts: Sequence[Prompt], number: int, per_epoch: int, size: int, seed: int) -> list[Prompt]:
    """The `size` prompts of rollout `number`: all of them in an order of their own in each epoch, the last rollout
    filled from the beginning.
    """
    epoch, place = divmod(number, per_epoch)
    order = np.random.default_rng([seed, epoch, STREAM]).permutation(len(prompts))
    filled = np.resize(order, per_epoch * size)
    return [prompts[k] for k in filled[place * size : (place + 1) * size]]

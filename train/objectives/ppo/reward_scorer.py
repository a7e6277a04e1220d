"""A trained classifier as the judge of answers, which it reads as evaluation lets it read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import torch

from train.config_ppo import RewardConfig
from train.models.load import unsharded
from train.objectives.ppo.prompts import Prompt
from train.objectives.ppo.trajectories import Episode, Messages
from zerotune.common.errors import UserError
from zerotune.inference.batch_size import choose_budget
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.classifiers import SequenceClassifier
from zerotune.inference.requests import Classified, Classify
from zerotune.models.folder import resolve
from zerotune.models.precision import DTYPES


class Judge:
    """The logit of one class of a sequence classifier, or the one output of a reward model, for prompt and answer.

    With its own tokenizer, a classifier reads their text as in the task sequence_classification, and a reward model as
    in the task reward_model: a conversation through its own chat template, else the text with its end token. Of what is
    longer than its context it reads the end.

    day: what a chat template that reads the clock is told, where no run of ours trained the judge.
    limit: tokens of its context. in_part: how many it has read the end of. Raises UserError, which begins with `key`,
    where there is no such classifier or class.
    """

    def __init__(
        self,
        part: RewardConfig,
        key: str,
        tokenizer: Any,
        precision: str,
        device: torch.device,
        day: date | None = None,
    ) -> None:
        self.key, self.tokenizer = key, tokenizer  # the policy's
        folder = resolve(part.path, None, key)
        with _named(key):
            checkpoint = open_checkpoint(str(folder), key)
            checkpoint.require(["sequence"])
        self.prompter = checkpoint.prompter("tokenizer", 1, 0, checkpoint.template_date or day)
        names = self.prompter.labels
        if len(names) > 1 and part.label not in names:
            raise UserError(f"{key}: label: {part.label or 'none'} is not one of its classes: {', '.join(names)}")
        if len(names) == 1 and part.label not in ("", *names):
            raise UserError(f"{key}: label: {part.label} is not a class: the model has one output; remove the label")
        self.column = names.index(part.label) if len(names) > 1 else 0
        # An objective that learns values of sentences says so, and reads them as classes are read.
        self.is_reward_model = len(names) == 1 and checkpoint.config.problem_type != "regression"
        with _named(key), unsharded():  # every rank has its own
            model = checkpoint.load("sequence", precision, "none", device)
        assert isinstance(model, SequenceClassifier)
        self.model, model.refuses_nan = model, False
        self.budget = choose_budget(0, checkpoint.config, DTYPES[precision], device)
        self.limit = checkpoint.context_tokens
        self.in_part = 0

    @property
    def reads_messages(self) -> bool:
        """Whether a conversation is more to it than its text."""
        return self.is_reward_model and self.prompter.template is not None

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError, before any step, for a conversation that its chat template refuses."""
        for prompt in (prompt for prompt in prompts if prompt.messages and self.reads_messages):
            with _named(prompt.row):
                self._whole(prompt.messages, "")

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One number for each; none (NaN) where there is not one token to read."""
        whole = [self._read(episode) for episode in episodes]
        said = [k for k, ids in enumerate(whole) if ids]
        asked = [Classify(self.prompter.truncated(whole[k])) for k in said]
        self.in_part += sum(len(whole[k]) > len(part.prefix_ids) for k, part in zip(said, asked, strict=True))
        found = dict.fromkeys(range(len(whole)), math.nan)
        for place, answer in self.model.answers(asked, self.budget):
            assert isinstance(answer, Classified)
            found[said[place]] = answer.logits[self.column]
        return list(found.values())

    def _read(self, episode: Episode) -> tuple[int, ...]:
        if episode.messages and self.reads_messages:
            return self._whole(episode.messages, self._text(episode.answer))
        text = self._text([*episode.prompt, *episode.answer])
        return self.prompter.reward_input(text) if self.is_reward_model else self.prompter.classifier_input([text])[0]

    def _whole(self, messages: Messages, answer: str) -> tuple[int, ...]:
        said = [*map(dict, messages), {"role": "assistant", "content": answer}]
        return self.prompter.reward_input(said)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """What is wrong inside is told of `what`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error

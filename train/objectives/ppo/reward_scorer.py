"""A trained classifier or reward model as a component of the reward."""

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
from train.objectives.ppo.trajectories import Messages, Trajectory
from zerotune.common.errors import UserError
from zerotune.inference.batch_size import choose_budget
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.classifiers import SequenceClassifier
from zerotune.inference.requests import Classified, Classify
from zerotune.models.folder import resolve
from zerotune.models.precision import DTYPES


class RewardScorer:
    """Scores a prompt with its response by the logit of one class of a sequence classifier, or by the one output of a
    reward model.

    It reads them with its own tokenizer: a classifier like the evaluation task sequence_classification, a reward model
    like the task reward_model (a conversation through its own chat template, other text with its end token). Of a text
    that exceeds its context it reads the end.

    day: the date for chat templates that contain one, if the model does not store its own.
    limit: tokens of its context. truncated: how many texts exceeded it. Raises UserError, starting with `key`, if the
    model or the class does not exist.
    """

    def __init__(
        self,
        component: RewardConfig,
        key: str,
        tokenizer: Any,
        precision: str,
        device: torch.device,
        day: date | None = None,
    ) -> None:
        self.key, self.tokenizer = key, tokenizer  # the policy's
        folder = resolve(component.path, None, key)
        with _errors_start_with(key):
            checkpoint = open_checkpoint(str(folder), key)
            checkpoint.require(["sequence"])
        self.prompter = checkpoint.prompter("tokenizer", 1, 0, checkpoint.template_date or day)
        names, label = self.prompter.labels, component.label
        if len(names) > 1 and label not in names:
            raise UserError(f"{key}: label: {label or 'none'} is not one of its classes: {', '.join(names)}")
        if len(names) == 1 and label not in ("", *names):
            raise UserError(f"{key}: label: {label} is not a class: the model has one output; remove the label")
        self.column = names.index(label) if len(names) > 1 else 0
        # The objective regression sets problem_type; such a model reads texts as a classifier does.
        self.is_reward_model = len(names) == 1 and checkpoint.config.problem_type != "regression"
        with _errors_start_with(key), unsharded():  # every rank has its own
            model = checkpoint.load("sequence", precision, "none", device)
        assert isinstance(model, SequenceClassifier)
        self.model, model.refuses_nan = model, False
        self.budget = choose_budget(0, checkpoint.config, DTYPES[precision], device)
        self.limit = checkpoint.context_tokens
        self.truncated = 0

    @property
    def reads_messages(self) -> bool:
        """Whether it reads conversations as messages."""
        return self.is_reward_model and self.prompter.template is not None

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError for a conversation that its chat template rejects."""
        for prompt in (prompt for prompt in prompts if prompt.messages and self.reads_messages):
            with _errors_start_with(prompt.row):
                self._render(prompt.messages, "")

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[float]:
        """The score of each; NaN if there is no token to read."""
        ids = [self._read(trajectory) for trajectory in trajectories]
        readable = [k for k, one in enumerate(ids) if one]
        requests = [Classify(self.prompter.truncated(ids[k])) for k in readable]
        self.truncated += sum(
            len(ids[k]) > len(request.prefix_ids) for k, request in zip(readable, requests, strict=True)
        )
        scores = [math.nan] * len(ids)
        for place, answer in self.model.answers(requests, self.budget):
            assert isinstance(answer, Classified)
            scores[readable[place]] = answer.logits[self.column]
        return scores

    def _read(self, trajectory: Trajectory) -> tuple[int, ...]:
        if trajectory.messages and self.reads_messages:
            return self._render(trajectory.messages, self._text(trajectory.response))
        text = self._text([*trajectory.prompt, *trajectory.response])
        return self.prompter.reward_input(text) if self.is_reward_model else self.prompter.classifier_input([text])[0]

    def _render(self, messages: Messages, response: str) -> tuple[int, ...]:
        return self.prompter.reward_input([*map(dict, messages), {"role": "assistant", "content": response}])

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


@contextlib.contextmanager
def _errors_start_with(place: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error

"""A trained classifier as the judge of answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from eval.budget import choose
from eval.checkpoint import DTYPES, look
from eval.protocols import Classified, Classify
from train.config_ppo import RewardConfig
from train.errors import UserError
from train.models.folder import resolve
from train.models.load import unsharded
from train.objectives.ppo.episodes import Episode

log = logging.getLogger(__name__)


class Judge:
    """The logit of one class of a sequence classifier, or its one output, for prompt and answer as text.

    It reads them with its own tokenizer; where they are longer than its context, their beginning, as a WARNING tells
    once. Raises UserError, which begins with `key`, where there is no such classifier or class.
    """

    def __init__(self, part: RewardConfig, key: str, tokenizer: Any, precision: str, device: torch.device) -> None:
        self.key, self.tokenizer = key, tokenizer  # the policy's
        try:
            checkpoint = look(str(resolve(part.path, None, key)), key)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        checkpoint.require(["sequence"])
        self.prompter = checkpoint.prompter("tokenizer", 1, 0)
        names = self.prompter.labels
        if len(names) > 1 and part.label not in names:
            raise UserError(f"{key}: label: {part.label or 'none'} is not one of its classes: {', '.join(names)}")
        self.column = names.index(part.label) if len(names) > 1 else 0
        with unsharded():  # every rank has its own
            self.model = checkpoint.load("sequence", precision, "none", device)
        self.budget = choose(0, checkpoint.config, DTYPES[precision], device)
        self.limit = checkpoint.context_tokens
        self._told = False

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One number for each."""
        texts = [self.tokenizer.decode([*e.prompt, *e.answer], skip_special_tokens=True) for e in episodes]
        whole = [self.prompter.sequence([text])[0] for text in texts]
        self._tell(sum(self.limit is not None and len(ids) > self.limit for ids in whole))
        asked = [Classify(ids[: self.limit]) for ids in whole]
        found = dict(self.model.answers(asked, self.budget))
        answers = [found[k] for k in range(len(asked))]
        return [answer.logits[self.column] for answer in answers if isinstance(answer, Classified)]

    def _tell(self, cut: int) -> None:
        if cut and not self._told:
            self._told = True
            log.warning(
                "%s: %d prompts with their answers are longer than the %d tokens that it reads; it judges their "
                "beginning. Lower ppo.prompt_tokens or ppo.response_tokens, or take another model",
                self.key, cut, self.limit,
            )  # fmt: skip

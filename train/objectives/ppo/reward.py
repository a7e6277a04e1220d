"""What answers are worth: named parts, each a number for an episode, and their weighted sum.

Shape suffix: e episodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.budget import choose
from eval.checkpoint import DTYPES, choose_precision, look
from eval.protocols import Classified, Classify
from train.config_ppo import RewardConfig
from train.errors import UserError
from train.models.folder import resolve
from train.models.load import unsharded
from train.objectives.ppo.episodes import Episode, repetition
from train.objectives.ppo.task import TaskRows
from train.protocols import Ranks

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Score = Callable[[Sequence[Episode]], list[float]]


@dataclass(frozen=True)
class Rewarded:
    """total_e: the weighted sum. parts: each of them, before its weight."""

    total_e: Floats
    parts: Mapping[str, Floats]


class Reward:
    """All parts. Checks them when it is made, before any step.

    not_finite: values so far that were no numbers; they count as 0.
    """

    def __init__(self, parts: Sequence[RewardConfig], tokenizer: Any, task: TaskRows | None, ranks: Ranks) -> None:
        self.ranks = ranks
        self.weights = {part.name or part.kind: part.weight for part in parts}
        self.scores: dict[str, Score] = {part.name or part.kind: _score(part, tokenizer, task, ranks) for part in parts}
        self.not_finite = 0

    def __call__(self, episodes: Sequence[Episode]) -> Rewarded:
        """Known to every rank; each rank scores its share."""
        mine = range(self.ranks.index, len(episodes), self.ranks.count)
        own = [episodes[k] for k in mine]
        found = np.zeros((len(self.scores), len(episodes)))
        for number, score in enumerate(self.scores.values()):
            found[number, list(mine)] = score(own) if own else []
        bad = ~np.isfinite(found)
        joined = np.array(self.ranks.sum(np.where(bad, 0.0, found).ravel().tolist())).reshape(found.shape)
        self._tell(int(self.ranks.sum([float(bad.sum())])[0]))
        parts = dict(zip(self.scores, joined, strict=True))
        weighted = (self.weights[name] * part_e for name, part_e in parts.items())
        return Rewarded(sum(weighted, np.zeros(len(episodes))), parts)

    def _tell(self, bad: int) -> None:
        if bad and not self.not_finite and self.ranks.index == 0:
            log.warning("%d rewards are no finite numbers and count as 0; rollout/not_finite goes on counting", bad)
        self.not_finite += bad


def _score(part: RewardConfig, tokenizer: Any, task: TaskRows | None, ranks: Ranks) -> Score:
    if part.kind == "model":
        return _classifier(part, tokenizer, ranks)
    if part.kind == "task":
        assert task is not None
        return task.metric(part.metric, f"ppo.reward, part {part.name or part.kind}")
    simple: Mapping[str, Callable[[Episode], float]] = {
        "repetition": lambda episode: repetition(episode.answer),
        "length": lambda episode: float(len(episode.answer)),
        "unfinished": lambda episode: float(not episode.finished),
    }
    return lambda episodes: [simple[part.kind](episode) for episode in episodes]


def _classifier(part: RewardConfig, tokenizer: Any, ranks: Ranks) -> Score:
    """The logit of a class, or the one output, for prompt and answer as text, with the classifier's own tokenizer."""
    key = f"ppo.reward, part {part.name or part.kind}"
    try:
        checkpoint = look(str(resolve(part.path, None, key)), key)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    checkpoint.require(["sequence"])
    prompter = checkpoint.prompter("tokenizer", 1, 0)
    names = prompter.labels
    if len(names) > 1 and part.label not in names:
        raise UserError(f"{key}: label: {part.label or 'none'} is not one of its classes: {', '.join(names)}")
    column = names.index(part.label) if len(names) > 1 else 0
    precision = choose_precision("auto", ranks.device)
    with unsharded():  # every rank has its own
        model = checkpoint.load("sequence", precision, "none", ranks.device)
    budget = choose(0, checkpoint.config, DTYPES[precision], ranks.device)
    limit = checkpoint.context_tokens

    def scores(episodes: Sequence[Episode]) -> list[float]:
        texts = [tokenizer.decode([*e.prompt, *e.answer], skip_special_tokens=True) for e in episodes]
        asked = [Classify(prompter.sequence([text])[0][:limit]) for text in texts]
        found = dict(model.answers(asked, budget))
        answers = [found[k] for k in range(len(asked))]
        return [answer.logits[column] for answer in answers if isinstance(answer, Classified)]

    return scores

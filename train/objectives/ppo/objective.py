"""The objective: rollouts with the model it is given, then steps on what they taught.

Shape suffixes: e episodes, n tokens of all answers, b rows, t positions.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from train.config import Config
from train.data.batch import collate, epoch_steps, micro_batches, rank_batches
from train.data.encode import Corpus, Reading
from train.errors import UserError
from train.models import loss_head
from train.models.token_statistics import Statistics, add_value_head, require_plain_head, token_statistics
from train.objectives.ppo import advantages as worth
from train.objectives.ppo.episodes import Episodes, repetition
from train.objectives.ppo.loss import clip_share, losses
from train.objectives.ppo.phases import Phase, Phases
from train.objectives.ppo.reward import Reward
from train.objectives.ppo.rollout import play, requests
from train.objectives.ppo.signs import Signs
from train.objectives.prompts import answer_at
from train.objectives.supervised import Supervised
from train.protocols import Batch, Plan, Ranks, Sample, Tuning

Floats = NDArray[np.float64]
TRAINING, HELD_OUT = 0, 1  # keys of chance


@dataclass(frozen=True)
class Prompt:
    """ids: its tokens. row: file:line."""

    ids: tuple[int, ...]
    row: str


@dataclass(frozen=True)
class Experience:
    """A rollout, and what it teaches: values of each token of its answers."""

    episodes: Episodes
    tokens: Mapping[str, Floats]  # log_p, reference, value, advantage, target, weight


class PPO(Supervised):
    """Answers to prompts are drawn, rewarded, and made likelier or less likely."""

    model_class = AutoModelForCausalLM
    model_use = "CAUSAL_LM"
    judged_by = "reward"
    terms: tuple[str, ...] = ("policy", "value", "kl", "entropy", "supervised")
    lower_is_better: Mapping[str, bool] = {"reward": False, "kl": True, "finished": False, "repetition": True}

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        super().__init__(config, tuning, ranks, Reading())
        if config.tuning.kind == "prompt":
            raise UserError("tuning.kind: PPO cannot generate behind a tuned prompt yet; use lora or full")
        assert isinstance(self.corpus, Corpus)
        self.ppo, self.rows = config.ppo, self.corpus.train
        self.prompts = self._prompts(self.rows, config.data.train[0].path)
        held_out = self.corpus.validation
        self.held_out_prompts = self._prompts(held_out, "the validation data") if held_out else []
        self.phases = Phases(self.ppo, config.duration, len(self.prompts))
        self._require_between()
        self.reward = Reward(self.ppo.reward, self.tokenizer, ranks)
        self.reference: nn.Module | None = None  # a frozen copy, where no adapter can be switched off
        self.kl_weight = self.ppo.kl_weight
        self.signs = Signs(ranks.index == 0)
        self._found: dict[str, float] = {}  # of the last rollout, equal on all ranks
        self._clipped = [0.0, 0.0]  # tokens outside the clip range and all, since they were last told

    @property
    def plan(self) -> Plan:
        """Phases are what is counted."""
        own, phases = self.ppo, self.phases
        answers = own.rollout_prompts * own.samples_per_prompt
        length = float(np.mean([len(prompt.ids) for prompt in self.prompts])) + own.response_tokens
        rollouts = sum(phase.kind == "rollout" for phase in phases.all)
        return Plan(
            total_steps=phases.steps,
            epoch_ends=phases.epoch_ends,
            last_epoch_share=phases.last_share,
            tokens_per_step=answers * length / own.minibatches,
            rows_per_step=answers / own.minibatches,
            padding_share=0.0,
            attention_length=length / 2,
            head_share=own.response_tokens / length,
            lines=(
                f"{len(self.prompts):,} prompts, {len(self.held_out_prompts):,} held out",
                f"{rollouts:,} rollouts of {own.rollout_prompts} prompts, {own.samples_per_prompt} answers to each,"
                f" {own.epochs} passes in {own.minibatches} steps each: {phases.steps:,} steps",
            ),
        )

    def load_model(self) -> nn.Module:
        """The policy; beside it the reference, where all weights move."""
        model = self.load({})
        require_plain_head(model)
        _drop_nothing(model)
        own = model.generation_config.eos_token_id
        ends = [] if own is None else [own] if isinstance(own, int) else own
        self.stop_ids = tuple(sorted({*ends, *self.corpus.stop_ids}))
        model.generation_config.eos_token_id = list(self.stop_ids)
        loss_head.install(model)
        if self.config.tuning.kind == "full":
            reference = self.load({})
            _drop_nothing(reference)
            loss_head.install(reference)
            self.reference = reference.requires_grad_(False).eval().to(self.ranks.device)
        ready: nn.Module = model
        return ready

    def complete(self, model: nn.Module) -> nn.Module:
        """With a value head, where values are learned."""
        if self.ppo.advantage == "gae":
            add_value_head(model)
        return model

    def can_pause(self, step: int) -> bool:
        """Between two phases: the answers of a rollout are in no checkpoint."""
        return self.phases.is_between(step)

    def state(self) -> Mapping[str, float]:
        """The weight of the distance, which may have been adapted."""
        return {"kl_weight": self.kl_weight}

    def resume(self, state: Mapping[str, float]) -> None:
        """See state."""
        self.kl_weight = state.get("kl_weight", self.kl_weight)

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """A rollout's steps after each other, and the supervised ones between."""
        for phase in self.phases.from_step(start_step):
            if phase.kind == "supervised":
                yield from (self._supervised(phase.start + k) for k in range(phase.steps))
            else:
                yield from self._learn(self._experience(model, phase), phase)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sums of the terms, weights included."""
        if "supervised" in batch.counts:
            weight = self.ppo.supervised_weight or 1.0
            return {"supervised": weight * loss_head.token_loss(model, batch.inputs, batch.targets)}
        now = self._statistics(model, batch)
        self._clipped[0] += float(clip_share(now, batch.extras, self.ppo.clip))
        self._clipped[1] += float(len(now.log_p_n))
        return losses(now, batch.extras, self.ppo, self.kl_weight)

    def watched(self) -> Mapping[str, float]:
        """Of the last rollout, and the share of tokens outside the clip range."""
        outside, tokens = self.ranks.sum(self._clipped)
        self._clipped = [0.0, 0.0]
        found, self._found = self._found, {}
        return found | ({"ppo/clip_fraction": outside / tokens} if tokens else {})

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Reward of greedy answers to held-out prompts, each part of it, and their distance from the reference's."""
        prompts = self.held_out_prompts[: self.config.validation.max_rows or None]
        if not prompts:
            return {}
        episodes, reward_e, parts = self._played(model, prompts, (HELD_OUT,), greedy=True)
        tokens = self._scored(model, episodes)
        kl_n = worth.kl_of_tokens(tokens["log_p"], tokens["reference"], "k1")
        named = {f"reward_{name}": float(part_e.mean()) for name, part_e in parts.items()}
        return {
            "reward": float(reward_e.mean()),
            "reward_deviation": float(reward_e.std()),
            **named,
            "kl": float(worth.per_episode(kl_n, episodes.starts).mean()),
            **_shape_of(episodes),
        }

    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """The first held-out prompts, answered, with the reward."""
        prompts = self.held_out_prompts[: self.config.validation.samples]
        if not prompts:
            return []
        episodes, reward_e, _ = self._played(model, prompts, (HELD_OUT,), greedy=True)
        read = self.tokenizer.decode
        return [
            Sample(read(episode.prompt), f"{read(episode.answer, skip_special_tokens=True)}\n[reward {reward:.3f}]")
            for episode, reward in zip(episodes.episodes, reward_e, strict=True)
        ]

    def _prompts(self, rows: Any, name: str) -> list[Prompt]:
        """What each row asks; the first tokens of a corpus text that goes on behind them."""
        found = []
        for index in range(len(rows)):
            ids, labels = rows.tokens(index)
            start, _ = answer_at(labels)
            size = start if start > 1 else self.ppo.prompt_tokens
            if size < len(ids) and size + self.ppo.response_tokens <= self.longest:
                found.append(Prompt(tuple(int(x) for x in ids[:size]), rows.row_id(index)))
        left_out = len(rows) - len(found)
        if not found:
            raise UserError(f"{name}: no row has a prompt of {self.ppo.prompt_tokens} tokens and room for an answer")
        if left_out:
            self.corpus.lines.append(f"{left_out:,} rows of {name} have no prompt, or no room for an answer behind it")
        return found

    @property
    def longest(self) -> int:
        """Prompt and answer together."""
        config = self.empty_model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

    def _require_between(self) -> None:
        for key, every in (
            ("checkpoint.every_steps", self.config.checkpoint.every_steps),
            ("validation.every_steps", self.config.validation.every_steps),
        ):
            times = range(every, self.phases.steps + 1, every) if every else range(0)
            wrong = next((step for step in times if not self.can_pause(step)), None)
            if wrong is not None:
                raise UserError(
                    f"{key}: step {wrong} lies within a rollout's {self.ppo.epochs * self.ppo.minibatches} steps; "
                    "take a multiple of them, or leave it out for the end of each epoch"
                )

    def _asked(self, rollout: int) -> list[Prompt]:
        """The prompts of a rollout: all of them in an order of their own in each epoch."""
        epoch, place = divmod(rollout, self.phases.rollouts_per_epoch)
        order = np.random.default_rng([self.config.run.seed, epoch, 4]).permutation(len(self.prompts))
        size = self.ppo.rollout_prompts
        first = np.resize(order, self.phases.rollouts_per_epoch * size)  # the last rollout is filled from the beginning
        return [self.prompts[k] for k in first[place * size : (place + 1) * size]]

    def _played(
        self, model: nn.Module, prompts: Sequence[Prompt], key: Sequence[int], greedy: bool
    ) -> tuple[Episodes, Floats, Mapping[str, Floats]]:
        """(answers, reward_e, each part_e)."""
        asked = requests([p.ids for p in prompts], self.ppo, self.stop_ids, (self.config.run.seed, *key), greedy)
        rows = [prompt.row for prompt in prompts for _ in range(len(asked) // len(prompts))]
        episodes = Episodes(play(model, self.tokenizer, asked, rows, self.ranks))
        return episodes, *self.reward(episodes.episodes)

    @torch.no_grad()
    def _scored(self, model: nn.Module, episodes: Episodes) -> dict[str, Floats]:
        """log_p, entropy and value of every token of the answers, and log_p under the reference: on every rank."""
        found = np.zeros((4, int(episodes.starts[-1])))
        groups = micro_batches(np.arange(len(episodes)), episodes.lengths_n, self.shape, self.ranks.count)
        for group in groups[self.ranks.index :: self.ranks.count]:
            batch = collate(episodes, group, self.shape, filler=0).to(self.ranks.device)
            places = episodes.places(group)
            found[:3, places] = np.stack([x.double().cpu().numpy() for x in self._statistics(model, batch)])
            with self._as_reference(model) as reference:
                found[3, places] = self._statistics(reference, batch).log_p_n.double().cpu().numpy()
        joined = np.array(self.ranks.sum(found.ravel().tolist())).reshape(found.shape)
        return dict(zip(("log_p", "entropy", "value", "reference"), joined, strict=True))

    def _statistics(self, model: nn.Module, batch: Batch) -> Statistics:
        return token_statistics(model, batch.inputs, batch.targets, self.ppo.temperature)

    @contextlib.contextmanager
    def _as_reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model as it was before training."""
        if self.reference is not None:
            with self.ranks.whole_copy(self.reference):
                yield self.reference
            return
        adapted: Any = loss_head.unwrapped(model)
        with adapted.disable_adapter():
            yield model

    def _experience(self, model: nn.Module, phase: Phase) -> Experience:
        began = time.monotonic()
        model.eval()
        episodes, reward_e, parts = self._played(
            model, self._asked(phase.number), (TRAINING, phase.number), greedy=False
        )
        generated = time.monotonic()
        tokens = self._scored(model, episodes)
        model.train()
        starts = episodes.starts
        kl_n = worth.kl_of_tokens(tokens["log_p"], tokens["reference"], self.ppo.kl_estimator)
        kl_e = worth.per_episode(worth.kl_of_tokens(tokens["log_p"], tokens["reference"], "k1"), starts)
        in_reward = self.kl_weight if self.ppo.kl_in == "reward" else 0.0
        advantage_n, target_n = self._advantages(reward_e, in_reward * kl_n, tokens["value"], starts)
        weight_n = np.ones_like(kl_n)
        if self.ppo.level == "sequence":
            weight_n = 1 / worth.per_token(np.diff(starts).astype(np.float64), starts)
        self._tell(episodes, reward_e, parts, kl_e, tokens, target_n, (began, generated, time.monotonic()))
        if self.ppo.kl_target is not None:
            self.kl_weight = worth.adapted(self.kl_weight, float(kl_e.mean()), self.ppo.kl_target, len(episodes))
        return Experience(episodes, {**tokens, "advantage": advantage_n, "target": target_n, "weight": weight_n})

    def _advantages(
        self, reward_e: Floats, penalty_n: Floats, values_n: Floats, starts: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """(what each token is worth beyond what was expected, what its value should have been)."""
        own = self.ppo
        if own.advantage == "gae":
            rewards_n = worth.token_rewards(reward_e, penalty_n, starts)
            advantage_n = worth.gae(rewards_n, values_n, starts, own.gamma, own.gae_lambda)
            return (worth.whitened(advantage_n) if own.whiten else advantage_n), advantage_n + values_n
        compare = worth.rloo if own.advantage == "rloo" else worth.grpo
        return_e = reward_e - worth.per_episode(penalty_n, starts)
        advantage_n = worth.per_token(compare(return_e, own.samples_per_prompt), starts)
        return (worth.whitened(advantage_n) if own.whiten else advantage_n), np.zeros_like(values_n)

    def _learn(self, experience: Experience, phase: Phase) -> Iterator[Sequence[Batch]]:
        """The optimizer steps of a rollout."""
        count = len(experience.episodes)
        for epoch in range(self.ppo.epochs):
            order = np.random.default_rng([self.config.run.seed, phase.number, epoch, 5]).permutation(count)
            for number, part in enumerate(np.array_split(order, self.ppo.minibatches)):
                step = phase.start + epoch * self.ppo.minibatches + number
                beside = self._supervised(step) if self.ppo.supervised_weight else []
                yield [*self._batches(experience, part), *beside]

    def _batches(self, experience: Experience, part: NDArray[np.int64]) -> list[Batch]:
        episodes = experience.episodes
        groups = micro_batches(part, episodes.lengths_n, self.shape, self.ranks.count)
        batches = []
        for group in groups[self.ranks.index :: self.ranks.count]:
            batch, places = collate(episodes, group, self.shape, filler=int(part[0])), episodes.places(group)
            extras = {name: torch.from_numpy(values_n[places]) for name, values_n in experience.tokens.items()}
            count = float(extras["weight"].sum())
            counts = dict.fromkeys(("policy", "value", "kl", "entropy"), count)
            batches.append(replace(batch, counts=counts, extras=extras))
        return batches

    def _supervised(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step on the rows' own answers; a function of the step."""
        epoch, place = divmod(step, self._steps_per_epoch)
        steps = self._row_steps(epoch)
        batches = rank_batches(self.rows, steps[place % len(steps)], self.shape, self.ranks.index, self.ranks.count)
        return [replace(batch, counts={"supervised": batch.counts["loss"]}) for batch in batches]

    @cached_property
    def _steps_per_epoch(self) -> int:
        return len(self._row_steps(0))

    def _row_steps(self, epoch: int) -> list[NDArray[np.int64]]:
        weights = [source.weight for source in self.config.data.train]
        return epoch_steps(self.rows, weights, self.shape, self.config.run.seed, epoch)

    def _tell(
        self,
        episodes: Episodes,
        reward_e: Floats,
        parts: Mapping[str, Floats],
        kl_e: Floats,
        tokens: Mapping[str, Floats],
        target_n: Floats,
        times: tuple[float, float, float],
    ) -> None:
        """What is watched of a rollout."""
        began, generated, scored = times
        entropy = float(tokens["entropy"].mean())
        found = {
            "rollout/reward": float(reward_e.mean()),
            "rollout/reward_deviation": float(reward_e.std()),
            "rollout/reward_min": float(reward_e.min()),
            "rollout/reward_max": float(reward_e.max()),
            **{f"rollout/reward_{name}": float(part_e.mean()) for name, part_e in parts.items()},
            "rollout/kl": float(kl_e.mean()),
            "rollout/kl_weight": self.kl_weight,
            "rollout/entropy": entropy,
            "rollout/not_finite": float(self.reward.not_finite),
            "rollout/generated_tokens_per_second": int(episodes.starts[-1]) / max(generated - began, 1e-9),
            "rollout/scored_tokens_per_second": int(episodes.lengths_n.sum()) / max(scored - generated, 1e-9),
            **{f"rollout/{name}": value for name, value in _shape_of(episodes).items()},
        }
        if self.ppo.advantage == "gae":
            spread = float(target_n.var())
            unexplained = float((target_n - tokens["value"]).var())
            found["rollout/explained_variance"] = 1 - unexplained / spread if spread > 0 else 0.0
        self._found = found
        self.signs.look(found)


def _shape_of(episodes: Episodes) -> dict[str, float]:
    """Lengths and ends of the answers."""
    all_ = episodes.episodes
    return {
        "response_tokens": float(np.mean([len(episode.answer) for episode in all_])),
        "finished": float(np.mean([episode.finished for episode in all_])),
        "empty": float(np.mean([len(episode.answer) == 1 and episode.finished for episode in all_])),
        "repetition": float(np.mean([repetition(episode.answer) for episode in all_])),
    }


def _drop_nothing(model: nn.Module) -> None:
    """No dropout: probabilities before and after an update are compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]

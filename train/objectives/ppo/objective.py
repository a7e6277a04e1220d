"""The objective: rollouts of the policy, then optimizer steps on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from train.config import Config
from train.data.prepare import LabelSpec
from train.objectives.base_model import BaseModel
from train.objectives.ppo import advantages, metrics
from train.objectives.ppo.experience import TERMS, Experience
from train.objectives.ppo.health import Health
from train.objectives.ppo.logprobs import Scoring, disable_dropout
from train.objectives.ppo.loss import clip_share, losses
from train.objectives.ppo.phases import Phase, Phases
from train.objectives.ppo.prompt_reader import PromptReader
from train.objectives.ppo.prompts import Prompt, rollout_prompts
from train.objectives.ppo.reward import Reward, Rewards
from train.objectives.ppo.rollout import generation_requests, sample_responses
from train.objectives.ppo.sft_batches import SftBatches
from train.objectives.ppo.trajectories import Trajectories
from train.objectives.ppo.value_model import load_value_model
from train.objectives.row_data import RowData
from train.protocols import Batch, Objective, Plan, Ranks, Sample, Tuning
from zerotune.models import attention, loss_head
from zerotune.models.token_statistics import add_value_head, require_plain_head, token_loss
from zerotune.models.weights_digest import model_digest

TRAINING, HELD_OUT = 0, 1  # keys of random numbers


class PPO(Objective):
    """Samples responses to prompts, scores them, and updates the policy."""

    peft_task_type = "CAUSAL_LM"
    terms: tuple[str, ...] = (*TERMS, "supervised")

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        self.config, self.ppo, self.ranks = config, config.settings, ranks
        self.base = BaseModel(AutoModelForCausalLM, config, tuning, ranks)
        self.tokenizer, label_spec = self.base.tokenizer, LabelSpec.of(config)
        self.data = RowData(config, self.base, ranks, label_spec, attention.can_pack(self.base.empty))
        reader = PromptReader(config, self.base, self.data)
        self.stop_ids = reader.stop_ids
        self.reward = Reward(self.ppo.reward, self.tokenizer, reader.task, config.run.precision, ranks, self.data.day)
        self.prompts, self.held_out_prompts = reader.prompts(with_messages=self.reward.reads_messages)
        self.reward.require([*self.prompts, *self.held_out_prompts])
        self.phases = Phases(self.ppo, config.duration, len(self.prompts))
        self.phases.require_between("checkpoint.every_steps", config.checkpoint.every_steps)
        self.phases.require_between("validation.every_steps", config.validation.every_steps)
        prompt_tokens = float(np.mean([len(prompt.ids) for prompt in self.prompts]))
        self._plan = self.phases.plan(prompt_tokens, len(self.prompts), len(self.held_out_prompts))
        self.sft_batches = SftBatches(config, self.data.train, self.data.shape, ranks)
        self.data.lines.extend(self.sft_batches.lines)
        self.scoring = Scoring(self.data.shape, self.ppo, ranks)
        self.health = Health(logs=ranks.index == 0)
        self.kl_weight = self.ppo.kl_weight
        self._adapted_kl_weight = self.kl_weight  # takes effect after the last step of the rollout
        self._stopwatch, self._updates = metrics.Stopwatch(), metrics.Updates()
        self._rollout_metrics: Mapping[str, float] = {}  # of the last rollout, identical on all ranks
        self._extra_metrics: Mapping[str, float] = {}  # of the last step
        self._rollout_samples: list[Sample] = []  # of the last rollout
        self._held_out_samples: list[Sample] = []  # of the last validation
        self._state_before_rollout: Mapping[str, float] | None = None  # until the last step of the rollout

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def metadata(self) -> Mapping[str, Any]:
        digests = {**self.reward.digests, **self._value_digest}
        return {**self.data.metadata, "model": self.base.metadata, "digests": digests}

    @cached_property
    def _value_digest(self) -> Mapping[str, str]:
        return {"ppo.value_model": model_digest(self.ppo.value_model)} if self.ppo.value_model else {}

    def load_model(self) -> nn.Module:
        """The policy. Keeps a copy as the reference model if the tuning trains the base model."""
        model = self.base.load(self.data.shape.packed)
        require_plain_head(model)
        model.generation_config.eos_token_id = list(self.stop_ids)
        if self.config.tuning.spec.trains_base:
            self.scoring.keep_reference(_prepared(self.base.load(self.data.shape.packed)))
        return _prepared(model)

    def add_modules(self, model: nn.Module) -> nn.Module:
        """Adds the value head or value model that gae needs."""
        if self.ppo.advantage == "gae":
            add_value_head(model, self._value_body() if self.ppo.value_model else None)
        return model

    def can_checkpoint(self, step: int) -> bool:
        """Only between two phases: checkpoints do not contain the responses of a rollout."""
        return self.phases.is_between(step)

    def state(self) -> Mapping[str, float]:
        """Without the rollout in progress: the resumed run samples it again."""
        return self._state_before_rollout or self._state()

    def resume(self, state: Mapping[str, float]) -> None:
        """Restore what `state` returned."""
        self.kl_weight = state["kl_weight"]
        self.reward.resume(state)
        self.health.resume(state)

    def next_batch_is_slow(self, step: int) -> bool:
        """Before a rollout."""
        return step in self.phases.rollout_starts

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """The steps of all phases in order."""
        for phase in self.phases.from_step(start_step):
            if phase.kind == "supervised":
                yield from (self.sft_batches.batches(phase.start + k) for k in range(phase.steps))
            else:
                yield from self._rollout_steps(self._experience(model, phase), phase)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sums of the terms, multiplied by their coefficients."""
        self._updates.trained += batch.tokens
        if "supervised" in batch.counts:
            weight = self.ppo.supervised_weight or 1.0
            return {"supervised": weight * token_loss(model, batch.inputs, batch.targets)}
        now = self.scoring.statistics(model, batch)
        self._updates.clipped += float(clip_share(now, batch.extras, self.ppo.clip))
        self._updates.responses += len(now.log_p_n)
        return losses(now, batch.extras, self.ppo, self.kl_weight)

    def after_step(self, step: int) -> None:
        """After the last step of a rollout: adapt the KL coefficient."""
        self._extra_metrics = self._rollout_metrics if step - 1 in self.phases.rollout_starts else {}
        if step in self.phases.rollout_ends:
            self._extra_metrics = {**self._extra_metrics, **self._updates.metrics(self.ranks)}
            self.kl_weight, self._state_before_rollout = self._adapted_kl_weight, None

    def extra_metrics(self) -> Mapping[str, float]:
        """Of a rollout after its first step, of its updates after its last."""
        return self._extra_metrics

    def real_rows(self) -> Sequence[Sequence[int]]:
        """The first held-out row."""
        return self.data.first_row

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Rewards of greedy responses to held-out prompts, and their KL from the reference model."""
        prompts = self.held_out_prompts[: self.config.validation.max_rows or None]
        if not prompts:
            return {}
        trajectories, rewards = self._sample(model, prompts, (HELD_OUT,), greedy=True)
        self._held_out_samples = self._samples(trajectories, rewards, held_out=True)
        tokens = self.scoring.tokens(model, trajectories)
        kl_n = advantages.token_kl(tokens["log_p"], tokens["reference"], "k1")
        return {
            "reward": float(rewards.total_r.mean()),
            "reward_deviation": float(rewards.total_r.std()),
            **{f"reward_{name}": float(value_r.mean()) for name, value_r in rewards.components.items()},
            "kl": float(advantages.per_response(kl_n, trajectories.starts).mean()),
            **metrics.response_metrics(trajectories),
        }

    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """Of the last validation and of the last rollout."""
        return [*self._held_out_samples, *self._rollout_samples]

    def _value_body(self) -> nn.Module:
        prompts = [len(prompt.ids) for prompt in (*self.prompts, *self.held_out_prompts)]
        longest, device = max(prompts) + self.ppo.response_tokens, self.ranks.device
        body: nn.Module = load_value_model(self.config, self.tokenizer, longest, self.data.shape.packed, device)
        return body

    def _state(self) -> dict[str, float]:
        return {"kl_weight": self.kl_weight} | self.reward.state() | self.health.state()

    def _sample(
        self, model: nn.Module, prompts: Sequence[Prompt], key: Sequence[int], greedy: bool
    ) -> tuple[Trajectories, Rewards]:
        requests = generation_requests(prompts, self.ppo, self.stop_ids, (self.config.run.seed, *key), greedy)
        repeated = [prompt for prompt in prompts for _ in range(len(requests) // len(prompts))]
        with self._stopwatch.measured("generating"):
            trajectories = Trajectories(sample_responses(model, self.tokenizer, requests, repeated, self.ranks))
        with self._stopwatch.measured("rewarding"):
            rewards = self.reward(trajectories.trajectories)
        return trajectories, rewards

    def _experience(self, model: nn.Module, phase: Phase) -> Experience:
        """Collect the rollout of a phase."""
        self._state_before_rollout = self._state()
        model.eval()
        seed, size = self.config.run.seed, self.ppo.rollout_prompts
        prompts = rollout_prompts(self.prompts, phase.number, self.phases.rollouts_per_epoch, size, seed)
        trajectories, rewards = self._sample(model, prompts, (TRAINING, phase.number), greedy=False)
        with self._stopwatch.measured("scoring"):
            scored = self.scoring.tokens(model, trajectories)
        model.train()
        experience = Experience.of(trajectories, rewards.total_r, scored, self.ppo, self.kl_weight)
        self._record(experience, rewards)
        self._adapted_kl_weight = advantages.adapt_kl_coefficient(self.kl_weight, experience.kl_r, self.ppo)
        self._updates = metrics.Updates()
        return experience

    def _record(self, experience: Experience, rewards: Rewards) -> None:
        """Metrics, samples and warnings of a rollout."""
        found = metrics.rollout_metrics(experience, rewards.total_r, rewards.components, self._stopwatch.seconds)
        found["rollout/kl_weight"] = self.kl_weight
        found |= {f"rollout/{name}": value for name, value in self.reward.state().items()}
        if self.ppo.advantage == "gae":
            tokens = experience.tokens
            found["rollout/explained_variance"] = metrics.explained_variance(tokens["value"], tokens["target"])
        self._rollout_metrics = found
        self._rollout_samples = self._samples(experience.trajectories, rewards, held_out=False)
        self.health.check(found)

    def _rollout_steps(self, experience: Experience, phase: Phase) -> Iterator[Sequence[Batch]]:
        count = len(experience.trajectories)
        for epoch in range(self.ppo.epochs):
            order = np.random.default_rng([self.config.run.seed, phase.number, epoch, 5]).permutation(count)
            for number, part in enumerate(np.array_split(order, self.ppo.minibatches)):
                step = phase.start + epoch * self.ppo.minibatches + number
                supervised = self.sft_batches.batches(step) if self.ppo.supervised_weight else []
                yield [*experience.batches(part, self.data.shape, self.ranks), *supervised]

    def _samples(self, trajectories: Trajectories, rewards: Rewards, held_out: bool) -> list[Sample]:
        """One response to each of the first prompts."""
        each = 1 if held_out else self.ppo.samples_per_prompt
        chosen = list(zip(trajectories.trajectories, rewards.total_r, strict=True))[::each]
        decode = self.tokenizer.decode
        return [
            Sample(
                decode(one.prompt),
                decode(one.response, skip_special_tokens=True),
                reward=float(reward),
                held_out=held_out,
            )
            for one, reward in chosen[: self.config.validation.samples]
        ]


def _prepared(model: nn.Module) -> nn.Module:
    disable_dropout(model)
    loss_head.install(model)
    return model

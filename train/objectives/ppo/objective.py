"""The objective: rollouts with the model it is given, then steps on what they taught."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from train.config import Config, SourceConfig
from train.data.prepare import LabelSpec
from train.data.sources import Source, find
from train.data.token_dataset import Encoded
from train.objectives.base_model import BaseModel
from train.objectives.ppo import advantages, metrics
from train.objectives.ppo.conversations import Said, conversations
from train.objectives.ppo.experience import TERMS, Experience
from train.objectives.ppo.health import Signs
from train.objectives.ppo.logprobs import Scoring, drop_nothing
from train.objectives.ppo.loss import clip_share, losses
from train.objectives.ppo.phases import Phase, Phases
from train.objectives.ppo.prompts import Prompt, asked_by, of_rollout, with_room
from train.objectives.ppo.reward import Reward, Rewarded
from train.objectives.ppo.rollout import play, requests
from train.objectives.ppo.sft_batches import RowSteps, answered
from train.objectives.ppo.task import TaskRows
from train.objectives.ppo.trajectories import Episodes
from train.objectives.ppo.value_model import load_value_model
from train.objectives.row_data import RowData
from train.protocols import Batch, Objective, Plan, Ranks, Sample, Tuning
from zerotune.common.console import counted
from zerotune.common.errors import UserError
from zerotune.data.chat_template_file import default_template, tool_template
from zerotune.data.formats import known_as
from zerotune.inference.checkpoint import end_ids
from zerotune.inference.prompt import Prompter
from zerotune.models import attention, loss_head
from zerotune.models.folder import resolve
from zerotune.models.token_statistics import add_value_head, require_plain_head, token_loss
from zerotune.models.weights_digest import model_digest

TRAINING, HELD_OUT = 0, 1  # keys of chance


class PPO(Objective):
    """Sample responses to prompts, score them, update the policy."""

    peft_task_type = "CAUSAL_LM"
    best_metric = "reward"
    terms: tuple[str, ...] = (*TERMS, "supervised")
    lower_is_better: Mapping[str, bool] = {"reward": False, "finished": False, "repetition": True}

    def __init__(self, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.base = BaseModel(AutoModelForCausalLM, config, tuning, ranks)
        self.tokenizer, label_spec = self.base.tokenizer, LabelSpec(config.spec.formats, asks=True)
        self.data = RowData(config, self.base, ranks, label_spec, attention.can_pack(self.base.empty))
        self.ppo = config.ppo
        task = self._task() if self.ppo.task else None
        self.reward = Reward(self.ppo.reward, self.tokenizer, task, config.run.precision, ranks, self.data.day)
        train, held_out = self.data.train, self.data.corpus.validation
        said = self._said("train")
        self.prompts = self._prompts(train, task, said, config.data.train, config.data.train[0].path)
        said = self._said("validation") if config.data.validation else said
        sources = config.data.validation or config.data.train
        self.held_out_prompts = self._prompts(held_out, task, said, sources, "the validation data") if held_out else []
        self.reward.require([*self.prompts, *self.held_out_prompts])
        self.phases = Phases(self.ppo, config.duration, len(self.prompts))
        self._require_between()
        self.row_steps = self._row_steps(train)
        self.scoring = Scoring(self.data.shape, self.ppo, ranks)
        self.kl_weight = self.ppo.kl_weight
        self.signs = Signs(ranks.index == 0)
        self._rollout_metrics: Mapping[str, float] = {}  # of the last rollout, identical on all ranks
        self._drawn: list[Sample] = []  # some of its answers
        self._held_out: list[Sample] = []  # some of the last validation's
        self._stopwatch, self._updates = metrics.Stopwatch(), metrics.Updates()
        self._adapted_kl_weight = self.kl_weight  # the KL coefficient once this rollout is learned
        self._extra_metrics: Mapping[str, float] = {}  # of the last step
        self._before_rollout: Mapping[str, float] | None = None  # the state, while a rollout is drawn and learned

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
                f"{counted(len(self.prompts), 'prompt')}, {len(self.held_out_prompts):,} held out",
                f"{counted(rollouts, 'rollout')} of {counted(own.rollout_prompts, 'prompt')},"
                f" {counted(own.samples_per_prompt, 'answer')} to each, {counted(own.epochs, 'pass', 'passes')} in"
                f" {counted(own.minibatches, 'step')} each: {counted(phases.steps, 'step')}",
            ),
        )

    @property
    def metadata(self) -> Mapping[str, Any]:
        """With the digests of the reward and of the value model."""
        digests = {**self.reward.digests, **self._value_digest}
        return {**self.data.metadata, "model": self.base.metadata, "digests": digests}

    @cached_property
    def _value_digest(self) -> Mapping[str, str]:
        """Of the value model, which may move as the others may."""
        return {"ppo.value_model": model_digest(self.ppo.value_model)} if self.ppo.value_model else {}

    def load_model(self) -> nn.Module:
        """The policy; beside it the reference, where all weights move."""
        model = self.base.load(self.data.shape.packed)
        require_plain_head(model)
        model.generation_config.eos_token_id = list(self.stop_ids)
        if self.config.tuning.spec.trains_base:
            self.scoring.keep_reference(self._plain(self.base.load(self.data.shape.packed)))
        return self._plain(model)

    def add_modules(self, model: nn.Module) -> nn.Module:
        """With a value head, or a value model, where values are learned."""
        if self.ppo.advantage == "gae":
            add_value_head(model, self._value_body() if self.ppo.value_model else None)
        return model

    def can_checkpoint(self, step: int) -> bool:
        """Between two phases: the answers of a rollout are in no checkpoint."""
        return self.phases.is_between(step)

    def state(self) -> Mapping[str, float]:
        """Of the rollouts that were learned: one that was only drawn is drawn again by the resumed run."""
        return self._before_rollout or self._state()

    def resume(self, state: Mapping[str, float]) -> None:
        """See state."""
        self.kl_weight = state["kl_weight"]
        self.reward.resume(state)
        self.signs.resume(state)

    def next_batch_is_slow(self, step: int) -> bool:
        """Where a rollout begins."""
        return step in self.phases.rollout_starts

    def steps(self, model: nn.Module, start_step: int) -> Iterator[Sequence[Batch]]:
        """A rollout's steps after each other, and the supervised ones between."""
        for phase in self.phases.from_step(start_step):
            if phase.kind == "supervised":
                yield from (self.row_steps.batches(phase.start + k) for k in range(phase.steps))
            else:
                yield from self._learn(self._experience(model, phase), phase)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Sums of the terms, weights included."""
        self._updates.trained += batch.tokens
        if "supervised" in batch.counts:
            weight = self.ppo.supervised_weight or 1.0
            return {"supervised": weight * token_loss(model, batch.inputs, batch.targets)}
        now = self.scoring.statistics(model, batch)
        self._updates.outside += float(clip_share(now, batch.extras, self.ppo.clip))
        self._updates.answered += len(now.log_p_n)
        return losses(now, batch.extras, self.ppo, self.kl_weight)

    def after_step(self, step: int) -> None:
        """With the last step of a rollout the KL coefficient moves, and the rollout counts as learned."""
        self._extra_metrics = self._rollout_metrics if step - 1 in self.phases.rollout_starts else {}
        if step in self.phases.rollout_ends:
            self._extra_metrics = {**self._extra_metrics, **self._updates.metrics(self.ranks)}
            self.kl_weight, self._before_rollout = self._adapted_kl_weight, None

    def extra_metrics(self) -> Mapping[str, float]:
        """Those of a rollout after its first step, those of its updates after its last."""
        return self._extra_metrics

    def real_rows(self) -> Sequence[Sequence[int]]:
        """The first held-out one."""
        return self.data.first_row

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Reward of greedy answers to held-out prompts, each part of it, and their distance from the reference's."""
        prompts = self.held_out_prompts[: self.config.validation.max_rows or None]
        if not prompts:
            return {}
        episodes, rewarded = self._played(model, prompts, (HELD_OUT,), greedy=True)
        self._held_out = self._shown(episodes, rewarded, held_out=True)
        tokens = self.scoring.tokens(model, episodes)
        kl_n = advantages.kl_of_tokens(tokens["log_p"], tokens["reference"], "k1")
        return {
            "reward": float(rewarded.total_e.mean()),
            "reward_deviation": float(rewarded.total_e.std()),
            **{f"reward_{name}": float(part_e.mean()) for name, part_e in rewarded.parts.items()},
            "kl": float(advantages.per_episode(kl_n, episodes.starts).mean()),
            **metrics.of_answers(episodes),
        }

    def samples(self, model: nn.Module) -> Sequence[Sample]:
        """Of the validation before: the first held-out prompts, answered greedily. And answers of the last rollout."""
        return [*self._held_out, *self._drawn]

    @property
    def longest(self) -> int:
        """Prompt and answer together, behind a tuned prompt where there is one."""
        config = self.base.empty.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**31) - self.config.tuning.extra_positions

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer: the checkpoint's own end tokens, and the chat template's."""
        folder = resolve(self.config.model.path, self.config.model.revision, code=self.config.model.trust_remote_code)
        ends = end_ids(folder, self.base.empty.config)
        return tuple(sorted({*ends, *self.data.corpus.stop_ids}))

    def _plain(self, model: nn.Module) -> nn.Module:
        drop_nothing(model)
        loss_head.install(model)
        return model

    def _value_body(self) -> nn.Module:
        prompts = [len(prompt.ids) for prompt in (*self.prompts, *self.held_out_prompts)]
        longest, place = max(prompts) + self.ppo.response_tokens, self.ranks.device
        body: nn.Module = load_value_model(self.config, self.tokenizer, longest, self.data.shape.packed, place)
        return body

    def _task(self) -> TaskRows:
        tokenizer = self.tokenizer
        sources = [*self._sources("train"), *self._sources("validation")]
        prompter = Prompter(
            tokenizer,
            default_template(tokenizer.chat_template),
            False,
            self.longest,
            self.ppo.response_tokens,
            0,
            self.stop_ids,
            self.config.model.path,
            day=self.data.day,
            tool_template=tool_template(tokenizer.chat_template),
        )
        return TaskRows(self.ppo.task, sources, prompter, skip=self.config.data.on_bad_row == "skip")

    def _sources(self, name: str) -> list[Source]:
        given = getattr(self.config.data, name)
        return [find(source, f"data.{name}[{index}]") for index, source in enumerate(given)]

    def _said(self, name: str) -> Said:
        """What the rows say, where a reward model wants to know it."""
        is_asked = self.reward.reads_messages and not self.ppo.task
        return conversations(self._sources(name), self.config.data.system_prompt) if is_asked else {}

    def _prompts(
        self, rows: Encoded, task: TaskRows | None, said: Said, sources: Sequence[SourceConfig], name: str
    ) -> list[Prompt]:
        own, longest = self.ppo.prompt_tokens, self.config.data.max_length_tokens
        corpora = [number for number, source in enumerate(sources) if known_as(source.format) == "text"]
        asked = task.prompts(rows) if task else asked_by(rows, corpora, own, longest, said)
        found, told = with_room(asked, name, self.ppo.response_tokens, self.longest)
        self.data.lines.extend(told)
        return found

    def _row_steps(self, rows: Encoded) -> RowSteps:
        """Over the rows with an answer: told, where supervised steps pass over others."""
        config, own = self.config, answered(rows)
        steps = RowSteps(
            own, [source.weight for source in config.data.train], self.data.shape, config.run.seed, self.ranks
        )
        key = "supervised_weight" if self.ppo.supervised_weight else "supervised_every"
        if not getattr(self.ppo, key):
            return steps
        if steps.is_empty:
            raise UserError(
                f"ppo.{key}: no row of data.train has an answer to learn; add rows that have one, or set it to 0"
            )
        if len(own) < len(rows):
            self.data.lines.append(
                f"{len(rows) - len(own):,} of {len(rows):,} training rows have no answer: used as prompts, skipped in "
                f"supervised steps (ppo.{key})"
            )
        return steps

    def _require_between(self) -> None:
        for key, every in (
            ("checkpoint.every_steps", self.config.checkpoint.every_steps),
            ("validation.every_steps", self.config.validation.every_steps),
        ):
            times = range(every, self.phases.steps + 1, every) if every else range(0)
            wrong = next((step for step in times if not self.can_checkpoint(step)), None)
            if wrong is not None:
                raise UserError(
                    f"{key}: step {wrong} is within a rollout of {self.ppo.epochs * self.ppo.minibatches} steps; "
                    "set a multiple of that, or remove the key for the end of each epoch"
                )

    def _played(
        self, model: nn.Module, prompts: Sequence[Prompt], key: Sequence[int], greedy: bool
    ) -> tuple[Episodes, Rewarded]:
        asked = requests(prompts, self.ppo, self.stop_ids, (self.config.run.seed, *key), greedy)
        each = [prompt for prompt in prompts for _ in range(len(asked) // len(prompts))]
        with self._stopwatch.measured("generating"):
            episodes = Episodes(play(model, self.tokenizer, asked, each, self.ranks))
        with self._stopwatch.measured("rewarding"):
            rewarded = self.reward(episodes.episodes)
        return episodes, rewarded

    def _experience(self, model: nn.Module, phase: Phase) -> Experience:
        self._before_rollout = self._state()
        model.eval()
        seed, size = self.config.run.seed, self.ppo.rollout_prompts
        prompts = of_rollout(self.prompts, phase.number, self.phases.rollouts_per_epoch, size, seed)
        episodes, rewarded = self._played(model, prompts, (TRAINING, phase.number), greedy=False)
        with self._stopwatch.measured("scoring"):
            scored = self.scoring.tokens(model, episodes)
        model.train()
        experience = Experience.of(episodes, rewarded.total_e, scored, self.ppo, self.kl_weight)
        self._tell(experience, rewarded)
        self._adapted_kl_weight = advantages.adapt_kl_coefficient(self.kl_weight, experience.kl_e, self.ppo)
        self._updates = metrics.Updates()
        return experience

    def _state(self) -> dict[str, float]:
        return {"kl_weight": self.kl_weight} | self.reward.state() | self.signs.state()

    def _learn(self, experience: Experience, phase: Phase) -> Iterator[Sequence[Batch]]:
        """The optimizer steps of a rollout."""
        count = len(experience.episodes)
        for epoch in range(self.ppo.epochs):
            order = np.random.default_rng([self.config.run.seed, phase.number, epoch, 5]).permutation(count)
            for number, part in enumerate(np.array_split(order, self.ppo.minibatches)):
                step = phase.start + epoch * self.ppo.minibatches + number
                beside = self.row_steps.batches(step) if self.ppo.supervised_weight else []
                yield [*experience.batches(part, self.data.shape, self.ranks), *beside]

    def _shown(self, episodes: Episodes, rewarded: Rewarded, held_out: bool) -> list[Sample]:
        """To the first prompts, one answer to each."""
        step = 1 if held_out else self.ppo.samples_per_prompt
        chosen = list(zip(episodes.episodes, rewarded.total_e, strict=True))[::step]
        read = self.tokenizer.decode
        return [
            Sample(read(e.prompt), read(e.answer, skip_special_tokens=True), reward=float(reward), held_out=held_out)
            for e, reward in chosen[: self.config.validation.samples]
        ]

    def _tell(self, experience: Experience, rewarded: Rewarded) -> None:
        found = metrics.of_rollout(experience, rewarded.total_e, rewarded.parts, self._stopwatch.seconds)
        found["rollout/kl_weight"] = self.kl_weight
        found |= {f"rollout/{name}": value for name, value in self.reward.state().items()}
        if self.ppo.advantage == "gae":
            tokens = experience.tokens
            found["rollout/explained_variance"] = metrics.explained_variance(tokens["value"], tokens["target"])
        self._rollout_metrics, self._drawn = found, self._shown(experience.episodes, rewarded, held_out=False)
        self.signs.look(found)

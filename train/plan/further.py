"""What objectives hold beside the model that is tuned: modules of their own, PPO's further models and responses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from train.config import Config
from train.models.load import skeleton
from train.plan.layout import Layout
from train.plan.states import at_update
from train.plan.weights import Weight, precision_of, with_config_file
from train.tuning.describe import base_of
from zerotune.common.errors import UserError
from zerotune.inference.batch_size import MOST_ON_GPU, SHARE_OF_FREE, bytes_of_token
from zerotune.models import numeric
from zerotune.models.precision import DTYPES
from zerotune.models.token_statistics import VALUE_HEAD, add_value_head


@dataclass(frozen=True)
class Rollout:
    """position: bytes of one in the cache of keys and values. length: tokens of a prompt with its response, at most.

    responses: over all ranks. steps: optimizer steps in one pass over them.
    """

    position: int
    length: int
    responses: int
    steps: int

    @property
    def step_tokens(self) -> int:
        """Of an optimizer step, at most."""
        return -(-self.responses // self.steps) * self.length


@dataclass(frozen=True)
class Further:
    """held: bytes of models that each GPU holds whole, by part. has_reference: whether a frozen copy of the model is
    among them, which ZeRO-3 shards. body: makes a second network that is trained. unknown: what is not in any number.
    """

    held: dict[str, int] = field(default_factory=dict)
    has_reference: bool = False
    body: Callable[[], nn.Module] | None = None
    rollout: Rollout | None = None
    unknown: tuple[str, ...] = ()

    def always(self, weights: Sequence[Weight], layout: Layout) -> dict[str, int]:
        """Bytes on each GPU at all times, by part."""
        if not self.has_reference:
            return self.held
        frozen = [dataclasses.replace(w, group=None) for w in weights if VALUE_HEAD not in w.name.split(".")]
        kind = layout.kind if layout.stage == 3 else "ddp"  # elsewhere every GPU has a whole copy
        states = at_update(frozen, dataclasses.replace(layout, kind=kind), lambda _: 0)
        return {**self.held, "reference model": states.weights}

    def while_sampling(self, weights: Sequence[Weight], layout: Layout, free: int) -> dict[str, int]:
        """Bytes beside the states, while responses are sampled. free: what is left; the batches adapt to it."""
        if self.rollout is None:
            return {}
        is_gathered = layout.stage == 3 or layout.kind == "fsdp"
        whole = sum(w.bytes_in(layout.item) for w in weights) if is_gathered and layout.ranks > 1 else 0
        wanted = -(-self.rollout.responses // layout.ranks) * self.rollout.length
        room = int(max(free - whole, 0) * SHARE_OF_FREE / 2) // self.rollout.position
        cached = min(wanted, MOST_ON_GPU["cached"], room)
        return {"gathered weights": whole, "generation cache": cached * self.rollout.position}


def ppo(config: Config, model: nn.Module) -> Further:
    """Adds what gives the values to the policy, on the meta device."""
    own, held, unknown = config.settings, dict[str, int](), []
    for key, path in own.models.items():
        if key.startswith("ppo.reward"):
            try:
                held["reward models"] = held.get("reward models", 0) + _scorer(config, key, path)
            except UserError as error:
                unknown.append(f"the weights of a reward model ({error})")
    body = partial(_value_body, config) if own.advantage == "gae" and own.value_model else None
    if own.advantage == "gae":
        add_value_head(model, body() if body else None)
    base = base_of(model)
    has_texts = all(source.format == "text" for source in config.data.train) and not own.task
    rollout = Rollout(
        position=bytes_of_token(base.config.get_text_config(), next(base.parameters()).dtype)[1],
        length=own.prompt_tokens + own.response_tokens if has_texts else config.data.max_length_tokens,
        responses=own.rollout_prompts * own.samples_per_prompt,
        steps=own.minibatches,
    )
    return Further(held, config.tuning.spec.trains_base, body, rollout, tuple(unknown))


def numbers(config: Config, model: nn.Module) -> Further:
    """Adds the modules of `numeric`, on the meta device."""
    own = config.settings
    numeric.add(model, numeric.Settings(0, own.value_space, own.token_loss, own.threshold, own.copy))
    return Further(unknown=("what the modules and the losses of numeric values keep for the backward pass",))


def _value_body(config: Config) -> nn.Module:
    chosen = dataclasses.replace(config.model, path=config.settings.value_model, revision=None, init="random")
    body: nn.Module = skeleton(AutoModel, with_config_file(chosen, "ppo.value_model"))
    return body


def _scorer(config: Config, key: str, path: str) -> int:
    chosen = dataclasses.replace(config.model, path=path, revision=None, init="random", family=None)
    found = skeleton(AutoModelForSequenceClassification, with_config_file(chosen, key))
    size: int = sum(p.numel() for p in found.parameters()) * DTYPES[precision_of(config)].itemsize
    return size

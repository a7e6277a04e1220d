"""The objectives, tunings and families by name, with the facts that a recipe's checks need. Nothing heavy is imported.

To add one, write its class and add a line here: docs/architecture.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from zerotune.data.formats import text_formats

Problems = Iterator[tuple[str, str]]  # (key to blame, message)


def imported(place: str) -> Any:
    """What `module:name` names, imported now."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class ObjectiveSpec:
    """What is known of an objective without importing it.

    place: `module:class` of a `train.protocols.Objective`.
    formats: the row formats that it learns from.
    keys: the keys, or sections, of the recipe that only the objectives which name them use.
    asks: whether it answers the rows' prompts itself, so that rows need no answer of their own.
    from_scratch: whether a new model can learn it (model.family).
    checks: `module:function` that gives (key, message) of everything wrong with its keys, without importing torch.
    """

    place: str
    formats: tuple[str, ...]
    keys: tuple[str, ...] = ()
    asks: bool = False
    from_scratch: bool = False
    checks: str = ""

    def problems(self, config: Any) -> Problems:
        """(key, message) of everything wrong with its own keys in a `train.config.Config`."""
        return iter(imported(self.checks)(config) if self.checks else ())


@dataclass(frozen=True)
class TuningSpec:
    """What is known of a tuning without importing it.

    place: `module:class` of a `train.protocols.Tuning`.
    merger: `module:class` of a `train.merge.weights.Merger`.
    trains_base: whether weights of the model itself move: they are kept in float32, and PPO needs a copy of the model
        for its reference.
    replaces_base: whether all of them do, so that a merge needs nothing of the base model.
    can_quantize: whether the base may be quantised.
    can_pack: whether several rows may share one sequence.
    extra_positions: of a `TuningConfig`: how many positions it puts in front of every row; a merge makes tokens of
        them.
    """

    place: str
    merger: str
    trains_base: bool = False
    replaces_base: bool = False
    can_quantize: bool = False
    can_pack: bool = True
    extra_positions: Callable[[Any], int] = lambda config: 0


@dataclass(frozen=True)
class FamilySpec:
    """What is known of a family of models from scratch without importing it.

    place: `module:function` that makes a configuration of transformers; see `train.models.family_configs`.
    keys: those of the recipe's `model` that not every family uses.
    matrices: the names of its layers that an adapter may change.
    layers: how many it has by default at a depth.
    """

    place: str
    keys: tuple[str, ...]
    matrices: tuple[str, ...]
    layers: Callable[[int], int]


OBJECTIVES: dict[str, ObjectiveSpec] = {
    "causal_lm": ObjectiveSpec(
        "train.objectives.causal_lm:CausalLM",
        formats=(*text_formats(), "labelled"),
        keys=("head.labels",),
        from_scratch=True,
    ),
    "token_classification": ObjectiveSpec(
        "train.objectives.token_classification:TokenClassification",
        formats=("tagged",),
        keys=("head.labels", "head.class_weights", "head.sub_words", "head.dropout"),
    ),
    "sequence_classification": ObjectiveSpec(
        "train.objectives.sequence_classification:SequenceClassification",
        formats=("labelled",),
        keys=("head.labels", "head.class_weights", "head.dropout"),
    ),
    "regression": ObjectiveSpec(
        "train.objectives.sequence_classification:Regression", formats=("labelled",), keys=("head.dropout",)
    ),
    "reward_model": ObjectiveSpec(
        "train.objectives.reward_model:RewardModel", formats=("preference",), keys=("head.dropout",)
    ),
    "ppo": ObjectiveSpec(
        "train.objectives.ppo.objective:PPO",
        formats=(*text_formats(), "labelled", "preference"),
        keys=("ppo",),
        asks=True,
        checks="train.recipe_checks_ppo:problems",
    ),
}

TUNINGS: dict[str, TuningSpec] = {
    "full": TuningSpec(
        "train.tuning.full:Full", merger="train.merge.weights:Full", trains_base=True, replaces_base=True
    ),
    "lora": TuningSpec("train.tuning.lora:Lora", merger="train.merge.weights:Adapter", can_quantize=True),
    "prompt": TuningSpec(
        "train.tuning.prompt:Prompt",
        merger="train.merge.prompt_tokens:Extended",
        can_pack=False,
        extra_positions=lambda config: config.prompt.virtual_tokens,
    ),
}

RECURRENT: dict[str, Any] = {
    "keys": ("bptt_tokens",), "matrices": ("input", "recurrent"), "layers": lambda depth: min(depth, 2),
}  # fmt: skip
FAMILIES: dict[str, FamilySpec] = {
    "rnn": FamilySpec("train.models.family_configs:rnn", **RECURRENT),
    "lstm": FamilySpec("train.models.family_configs:lstm", **RECURRENT),
    "transformer": FamilySpec(
        "train.models.family_configs:transformer",
        keys=("heads", "feed_forward"),
        matrices=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        layers=lambda depth: depth,
    ),
}


def own_keys() -> dict[str, list[str]]:
    """Key or section of the recipe -> the objectives that use it, for all that not every objective uses."""
    keys = dict.fromkeys(key for spec in OBJECTIVES.values() for key in spec.keys)
    return {key: [name for name, spec in OBJECTIVES.items() if key in spec.keys] for key in keys}

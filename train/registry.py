"""The objectives, tunings, optimizers and families by name, with what a recipe's checks need to know.

Nothing heavy is imported.

To add one, write its class or function and add a line here: docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Literal

from zerotune.data.formats import text_formats

Problems = Iterator[tuple[str, str]]  # (key to blame, message)


@dataclass(frozen=True)
class ObjectiveSpec:
    """Properties of an objective that are needed before its class is imported.

    place: `module:class` of a `train.protocols.Objective`.
    formats: the row formats that it supports.
    labels_as: what a label of a row becomes: words that a language model writes, a class, or a value.
    metrics: for each validation metric that can choose the best checkpoint, whether lower is better. The first one
        chooses by default (validation.metric auto).
    section: `module:dataclass` of its section of the recipe, which has the objective's name; "" without settings. The
        module must not import `train.config`, which is made of it. A property `models` of the dataclass (key -> folder
        or hub name) names further models to check.
    keys: further keys of the recipe that only some objectives use, this one among them.
    places: keys of its section that are locations, so that they may change when a run resumes -> ending of the values
        that are locations, "" for all.
    has_columns: `train.config.Config` -> whether the rows must have the columns of their format.
    asks: whether it samples answers to the rows' prompts, so that rows need no answer.
    from_scratch: whether a new model can be trained for it (model.family).
    numbers: whether each number of a text is a token with a value.
    terms: the parts of the training loss (train/NAME), which add up to validation/loss. A run may lack some.
    checks: `module:function` that yields (key, message) of all errors in its keys, without importing torch.
    model_class: `module:class` of the model, one of transformers' Auto classes or alike.
    planned: `module:function` of the recipe and the tuned model on the meta device: adds the objective's modules, and
        returns a `train.plan.further.Further`, so that `train.plan` counts them.
    """

    place: str
    formats: tuple[str, ...]
    metrics: Mapping[str, bool]
    labels_as: Literal["words", "classes", "values"] = "words"
    section: str = ""
    keys: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    has_columns: Callable[[Any], bool] = lambda config: True
    asks: bool = False
    from_scratch: bool = False
    numbers: bool = False
    terms: tuple[str, ...] = ("loss",)
    checks: str = ""
    model_class: str = "transformers:AutoModelForCausalLM"
    planned: str = ""

    def problems(self, config: Any) -> Problems:
        """(key, message) of all errors in its keys of a `train.config.Config`."""
        return iter(resolve_name(self.checks)(config) if self.checks else ())

    def metric(self, wanted: str) -> str:
        """The metric that chooses the best checkpoint, for a value of validation.metric."""
        return next(iter(self.metrics)) if wanted == "auto" else wanted


@dataclass(frozen=True)
class TuningSpec:
    """Properties of a tuning that are needed before its class is imported.

    place: `module:class` of a `train.protocols.Tuning`.
    merger: `module:class` of a `train.merge.weights.Merger`.
    trains_base: whether weights of the base model are trained. They are kept in float32, and PPO keeps a copy as the
        reference model.
    replaces_base: whether all of them are trained, so that a merge does not read the base model.
    can_quantize: whether the base model may be quantised.
    can_pack: whether several rows may share one sequence.
    extra_positions: `TuningConfig` -> number of positions in front of every row; a merge turns them into tokens.
    undecayed: names of modules whose matrices have no weight decay.
    """

    place: str
    merger: str
    trains_base: bool = False
    replaces_base: bool = False
    can_quantize: bool = False
    can_pack: bool = True
    extra_positions: Callable[[Any], int] = lambda config: 0
    undecayed: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimizerSpec:
    """Properties of an optimizer that are needed before it is imported.

    place: `module:function` of parameter groups and `train.config.OptimConfig` that makes a `torch.optim.Optimizer`.
    unused: keys of the recipe's `optim` that it does not use.
    unfit: kind of sharding (zero, fsdp) -> why the optimizer cannot be used with it.
    state_bytes: `module:function` of the shapes of parameters: bytes of their states. Without it, `train.plan` assumes
        those of AdamW.
    """

    place: str
    unused: tuple[str, ...] = ()
    unfit: Mapping[str, str] = field(default_factory=dict)
    state_bytes: str = ""


@dataclass(frozen=True)
class FamilySpec:
    """Properties of a family of new models that are needed before it is imported.

    place: `module:function` that makes a configuration of transformers; see `train.models.family_configs`.
    keys: keys of the recipe's `model` that only some families use, this one among them.
    matrices: names of the layers that an adapter can change.
    layers: depth -> default number of layers.
    weights: (width, inner width of feed-forward layers) -> number of weights of one layer.
    has_attention: prompt tuning (PEFT) needs it.
    """

    place: str
    keys: tuple[str, ...]
    matrices: tuple[str, ...]
    layers: Callable[[int], int]
    weights: Callable[[int, int], int]
    has_attention: bool = True


SEQUENCES = "transformers:AutoModelForSequenceClassification"
OBJECTIVES: dict[str, ObjectiveSpec] = {
    "causal_lm": ObjectiveSpec(
        "train.objectives.causal_lm:CausalLM",
        formats=(*text_formats(), "labelled"),
        metrics={"loss": True, "perplexity": True, "exact_match": False},
        section="train.config_causal_lm:CausalLMConfig",
        keys=("head.labels",),
        from_scratch=True,
        checks="train.recipe_checks_causal_lm:problems",
    ),
    "numeric": ObjectiveSpec(
        "train.objectives.numeric:NumericLM",
        formats=(*text_formats(), "labelled"),
        metrics={
            "loss": True,
            "perplexity": True,
            "value_loss": True,
            "number_recall": False,
            "number_precision": False,
            "within_1_percent": False,
        },
        section="train.config_numeric:NumericConfig",
        keys=("head.labels",),
        from_scratch=True,
        numbers=True,
        terms=("loss", "one_vs_rest", "value"),
        checks="train.recipe_checks_numeric:problems",
        model_class="zerotune.models.numeric:AutoNumericLM",
        planned="train.plan.further:numbers",
    ),
    "token_classification": ObjectiveSpec(
        "train.objectives.token_classification:TokenClassification",
        formats=("tagged",),
        metrics={"f1": False, "loss": True, "precision": False, "recall": False, "token_accuracy": False},
        labels_as="classes",
        keys=("head.labels", "head.class_weights", "head.sub_words", "head.dropout"),
        model_class="transformers:AutoModelForTokenClassification",
    ),
    "sequence_classification": ObjectiveSpec(
        "train.objectives.sequence_classification:SequenceClassification",
        formats=("labelled",),
        metrics={"accuracy": False, "loss": True, "macro_f1": False, "mcc": False},
        labels_as="classes",
        keys=("head.labels", "head.class_weights", "head.dropout"),
        model_class=SEQUENCES,
    ),
    "regression": ObjectiveSpec(
        "train.objectives.sequence_classification:Regression",
        formats=("labelled",),
        metrics={"pearson": False, "loss": True, "rmse": True},
        labels_as="values",
        keys=("head.dropout",),
        model_class=SEQUENCES,
    ),
    "reward_model": ObjectiveSpec(
        "train.objectives.reward_model:RewardModel",
        formats=("preference",),
        metrics={"accuracy": False, "loss": True, "margin": False},
        labels_as="values",
        keys=("head.dropout",),
        model_class=SEQUENCES,
    ),
    "ppo": ObjectiveSpec(
        "train.objectives.ppo.objective:PPO",
        formats=(*text_formats(), "labelled", "preference"),
        metrics={"reward": False, "finished": False, "repetition": True},
        section="train.config_ppo:PpoConfig",
        places={"ppo.value_model": "", "ppo.task": ".yaml"},
        has_columns=lambda config: not config.ppo.task,  # the task reads the rows itself
        asks=True,
        checks="train.recipe_checks_ppo:problems",
        planned="train.plan.further:ppo",
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
        undecayed=("prompt_encoder",),  # PEFT's name
    ),
}

# ZeRO gives an optimizer flat slices of the parameters: AdamW is unaffected, and 8-bit AdamW differs only in where its
# blocks of 256 begin.
FAILS_ON_SHARDS = {"fsdp": "it fails on the shards of FSDP2"}
FLATTENED = "ZeRO flattens the matrices that it factors, so its updates would depend on the ranks"
OPTIMIZERS: dict[str, OptimizerSpec] = {
    "adamw": OptimizerSpec("train.engine.optimizer:adamw", state_bytes="train.engine.optimizer_state:adamw"),
    "adamw_8bit": OptimizerSpec(
        "train.engine.optimizer:adamw_8bit",
        unfit=FAILS_ON_SHARDS,
        state_bytes="train.engine.optimizer_state:adamw_8bit",
    ),
    "adafactor": OptimizerSpec(
        "train.engine.optimizer:adafactor",
        unused=("beta1", "beta2", "epsilon"),
        unfit={"zero": FLATTENED, **FAILS_ON_SHARDS},
        state_bytes="train.engine.optimizer_state:adafactor",
    ),
}

EMBEDDINGS = ("embed_tokens", "lm_head")
RECURRENT: dict[str, Any] = {
    "keys": ("bptt_tokens",),
    "matrices": ("input", "recurrent", *EMBEDDINGS),
    "layers": lambda depth: min(depth, 2),
    "has_attention": False,
}
FAMILIES: dict[str, FamilySpec] = {
    "rnn": FamilySpec("train.models.family_configs:rnn", weights=lambda width, _: (2 * width + 1) * width, **RECURRENT),
    "lstm": FamilySpec(
        "train.models.family_configs:lstm", weights=lambda width, _: 4 * (2 * width + 1) * width, **RECURRENT
    ),
    "transformer": FamilySpec(
        "train.models.family_configs:transformer",
        keys=("heads", "feed_forward"),
        matrices=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", *EMBEDDINGS),
        layers=lambda depth: depth,
        weights=lambda width, inner: (4 * width + 3 * inner + 2) * width,
    ),
}


def own_keys() -> dict[str, list[str]]:
    """Key or section of the recipe that only some objectives use -> these objectives."""
    users: dict[str, list[str]] = {}
    for name, spec in OBJECTIVES.items():
        for key in (*spec.keys, *([name] if spec.section else [])):
            users.setdefault(key, []).append(name)
    return users

"""Numbers as values in any causal language model: a `<NUM>` token whose value is read at the input and predicted beside
the token (docs/decisions/0026).

`add` gives a model of transformers one more module, `numeric`, with all new parameters; its own keep their names:

- the value of a number is added to its embedding, as sign(v) ln(1 + |v|) along a learned direction;
- abduction maps each hidden state to independent Cauchy variables, the latent cause: a location and a scale;
- action maps the cause to a score for each token, by the output layer, and to a value;
- a pointer chooses between this value and earlier numbers of the text.

Sums are in float32 at least. A path that predicts tokens by softmax uses the location alone.

Shape suffixes: b rows, t positions, n positions with a target, m positions whose target is a number, d width, v
vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from zerotune.common.errors import UserError
from zerotune.data.number_tokens import FIRST_NUMBER
from zerotune.data.numbers_in_text import NUM
from zerotune.models import cauchy, loss_head, middle_states, number_rows
from zerotune.models.head_source import gives_logits_unchanged
from zerotune.models.loss_head import IGNORED, LossHead, causal_lm, chunk_rows, output_layer, predicting
from zerotune.models.pointer import Copies, Offers, Pointer, offers
from zerotune.models.precision import exact
from zerotune.models.value_distributions import Values

VERSION = 2  # of what the parameters mean
KEY = "numeric"  # of the parameters, and of the settings in config.json
START_SCALE = 1.0  # of the cause, at every position


@dataclass(frozen=True)
class Settings:
    """How a model reads and predicts numbers; a part of its config.json.

    token_id: of `<NUM>`. value_space: in which a value is Cauchy, itself or asinh of it. token_loss: what the scores
    of tokens mean. threshold: for one_vs_rest, the score above which a token comes next. copy: whether a value may be
    that of an earlier number. key_layer: the number of layers below the hidden states of the pointer's keys; None: the
    last hidden states. level_50, level_90: shares of the probability between the ends of the central 50 % and
    90 % intervals: those that hold so many of held-out values (calibrated regression, arXiv:1807.00263).
    training_mean, training_median: of the values that training predicted; None if unknown.
    """

    token_id: int
    value_space: Literal["linear", "asinh"] = "asinh"
    token_loss: Literal["softmax", "one_vs_rest"] = "softmax"
    threshold: float = 0.0
    copy: bool = True
    key_layer: int | None = None
    level_50: float = 0.5
    level_90: float = 0.9
    training_mean: float | None = None
    training_median: float | None = None
    version: int = VERSION

    def is_number(self, ids: Tensor) -> Tensor:
        """Where `<NUM>` stands."""
        return ids == self.token_id

    @property
    def interval_shares(self) -> list[float]:
        """Shares below the ends of the central intervals: low and high of 50 %, low and high of 90 %."""
        return [0.5 + side * level / 2 for level in (self.level_50, self.level_90) for side in (-1, 1)]

    @property
    def training_values(self) -> tuple[float, ...]:
        """(mean, median) of the values that training predicted; empty if unknown."""
        if self.training_mean is None or self.training_median is None:
            return ()
        return self.training_mean, self.training_median

    def in_space(self, values: Tensor) -> Tensor:
        """Values in the value space."""
        return values.asinh() if self.value_space == "asinh" else values


def settings_of(config: Any) -> Settings | None:
    """The settings in a model's configuration; None for a model without numbers."""
    found = getattr(config, KEY, None)
    if found and found.get("version") != VERSION:
        raise UserError("config.json: an older version of this program wrote this model of numbers; train it again")
    return Settings(**found) if found else None


class Direction(nn.Module):
    """Adds values to embeddings. Where the value is 0, and before training, nothing changes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, embeddings_btd: Tensor, values_bt: Tensor) -> Tensor:
        """values_bt: in float64; 0 at text."""
        weight_d = exact(self.weight)
        size_bt1 = (values_bt.sign() * values_bt.abs().log1p())[..., None].to(weight_d.dtype)
        return embeddings_btd + (size_bt1 * weight_d).to(embeddings_btd.dtype)


class Location(nn.Module):
    """The location of the cause: the hidden state and a linear map of it, which starts at 0.

    The map is divided by the root of its width: at the learning rate of adapters it would otherwise change the scores
    of all tokens within a few steps, and a pretrained model forget how to write.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width))

    def forward(self, hidden_nd: Tensor) -> Tensor:
        """In the dtype of the hidden states."""
        with torch.autocast(hidden_nd.device.type, enabled=False):
            moved_nd = F.linear(exact(hidden_nd), exact(self.weight)) / math.sqrt(len(self.weight))
            return (exact(hidden_nd) + moved_nd).to(hidden_nd.dtype)


class Scale(nn.Module):
    """The scale of the cause: softplus of a linear map, the same everywhere before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width))
        self.start = nn.Parameter(torch.full((width,), math.log(math.expm1(START_SCALE))))

    def forward(self, hidden_nd: Tensor) -> Tensor:
        """In float32 at least."""
        with torch.autocast(hidden_nd.device.type, enabled=False):
            return F.softplus(F.linear(exact(hidden_nd), exact(self.weight), exact(self.start)))


class Value(nn.Module):
    """The action for values: a linear map of the cause to one number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width) / width)  # a scale near 1

    def forward(self, location_md: Tensor, scale_md: Tensor) -> tuple[Tensor, Tensor]:
        """(location, scale) in float64; sums in float32 at least."""
        weight_d = exact(self.weight)
        location_m = (exact(location_md) * weight_d).sum(-1)
        scale_m = (exact(scale_md) * weight_d.abs()).sum(-1)
        return location_m.double(), scale_m.double() + cauchy.SCALE_FLOOR


class Numeric(nn.Module):
    """All new parameters. Each part has its own forward, where ZeRO-3 gathers its weights. No part is an `nn.Linear`,
    which adapters would take for a layer of the model's.
    """

    def __init__(self, width: int, settings: Settings) -> None:
        super().__init__()
        self.space: str = settings.value_space
        self.direction, self.location = Direction(width), Location(width)
        self.scale, self.value = Scale(width), Value(width)
        self.pointer = Pointer(width) if settings.copy else None

    def values(self, hidden_nd: Tensor, key_nd: Tensor, at_m: Tensor, location_md: Tensor, offered: Offers) -> Values:
        """The distributions of the values at some positions. hidden_nd, key_nd: the last states of all positions,
        and those of the pointer's keys. location_md: of the cause.
        """
        location_m, scale_m = self.value(location_md, self.scale(hidden_nd[at_m]))
        if self.pointer is None:
            return Values(location_m, scale_m, self.space)
        query_mr, key_sr, own_1 = self.pointer(hidden_nd[at_m], key_nd[offered.at_s])
        return Values(location_m, scale_m, self.space, Copies(query_mr, key_sr, own_1, at_m, offered))


def add_token(tokenizer: Any) -> int:
    """Give a tokenizer of transformers the token `<NUM>`, if it lacks it. Returns its id.

    It is none of the special tokens, which are left out of generated text.
    """
    tokenizer.add_tokens([AddedToken(NUM, normalized=False, special=False)])
    return int(tokenizer.convert_tokens_to_ids(NUM))


def add(model: nn.Module, settings: Settings, rows_2d: Tensor | None = None) -> None:
    """Give a (tuned) language model numbers, all new parameters trained; a model that has them keeps their weights.

    New weights are drawn from torch's generator. rows_2d: to be saved with them, see `number_rows.BUFFER`.

    Raises:
        UserError: The model changes its logits after the output layer, or its values were trained with other settings.
    """
    base: Any = causal_lm(model)
    old = settings_of(base.config)
    if old is None:
        require_plain_logits(base)
        settings = replace(settings, key_layer=middle_states.middle_layer(base) if settings.copy else None)
        _give_module(base, settings)
        base.numeric.to(base.device)
        base.__class__ = numeric_class(cast(Any, type(base)))
    elif old.token_id != settings.token_id:
        raise UserError(f"<NUM> is token {old.token_id} of the model and {settings.token_id} of model.tokenizer")
    elif (old.value_space, old.copy) != (settings.value_space, settings.copy):
        raise UserError(
            f"the model was trained with numeric.value_space: {old.value_space} and "
            f"numeric.copy: {str(old.copy).lower()}; set both"
        )
    else:
        settings = replace(settings, key_layer=old.key_layer)
    base.numeric.float().requires_grad_(True)
    if rows_2d is not None:
        base.numeric.register_buffer(number_rows.BUFFER, rows_2d)
    setattr(base.config, KEY, asdict(settings))


def set_levels(model: nn.Module, level_50: float, level_90: float) -> None:
    """Calibrate the intervals of a model with numbers; see `Settings`."""
    config = causal_lm(model).config
    settings = settings_of(config)
    assert settings is not None
    setattr(config, KEY, asdict(replace(settings, level_50=level_50, level_90=level_90)))


def _give_module(base: Any, settings: Settings | None) -> None:
    assert settings is not None
    setattr(base, KEY, Numeric(int(base.config.get_text_config().hidden_size), settings))
    if settings.key_layer is not None:
        middle_states.watch(base, settings.key_layer)


def require_plain_logits(model: Any) -> None:
    """Raise UserError for a model that changes its logits after the output layer."""
    if not gives_logits_unchanged(model, output_layer(model)):
        raise UserError(
            f"objective: numeric computes probabilities in the output layer, and {type(model).__name__} changes its "
            "logits after it; choose another model"
        )


@functools.cache
def numeric_class(kind: Any) -> Any:
    """A class of transformers with numbers. It keeps its name, so that other programs open its folders."""

    @functools.wraps(kind.forward)
    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        *args: Any,
        values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if values is not None:
            if values.dtype == torch.int64:  # bits, see `_run`
                values = values.view(torch.float64)
            embeddings_btd = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
            input_ids, inputs_embeds = None, self.numeric.direction(embeddings_btd, values)
        loss_head.install(self)
        answer = functools.partial(_scores, self)
        with middle_states.kept(), nullcontext() if loss_head.is_predicting() else predicting(None, answer):
            return kind.forward(self, input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)

    def start(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        _give_module(self, settings_of(config))

    in_float32 = {*(getattr(kind, "_keep_in_fp32_modules_strict", None) or ()), KEY}
    own = {"__init__": start, "forward": forward, "_keep_in_fp32_modules_strict": in_float32}
    return type(kind.__name__, (kind,), {**own, "__module__": kind.__module__})


def _scores(model: Any, layer: LossHead, hidden_btd: Tensor, _: Tensor | None) -> Tensor:
    """[b, t, v] in place of logits: logits of the location, or log P of each token (softmax of which is P / sum P)."""
    location_btd: Tensor = model.numeric.location(hidden_btd)
    logits_btv = layer.logits(location_btd)
    settings = settings_of(model.config)
    assert settings is not None
    if settings.token_loss == "softmax":
        return logits_btv
    scale_btv = cauchy.scales(model.numeric.scale(hidden_btd), _plain(layer).weight)
    return cauchy.log_probability(logits_btv.float(), scale_btv.float(), settings.threshold)


def scores(model: Any, hidden_nd: Tensor) -> Tensor:
    """[n, v] in place of the logits of these last hidden states of a model with numbers."""
    loss_head.install(model)
    return _scores(model, cast(LossHead, output_layer(model)), hidden_nd, None)


def separated(ids_bt: Tensor, token_id: int) -> tuple[Tensor, Tensor]:
    """(tokens, with `token_id` for each number; values in float64, 0 at text) of ids as prompts have them (see
    `zerotune.data.number_tokens.number_id`).
    """
    is_number_bt = (ids_bt < 0) | (ids_bt >= FIRST_NUMBER)
    bits_bt = ids_bt - FIRST_NUMBER * (ids_bt >= 0)
    values_bt = bits_bt.view(torch.float64).masked_fill(~is_number_bt, 0.0)
    return ids_bt.masked_fill(is_number_bt, token_id), values_bt


class AutoNumericLM:
    """transformers' AutoModelForCausalLM, for models with and without numbers."""

    _model_mapping = AutoModelForCausalLM._model_mapping

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As of AutoModelForCausalLM."""
        local = {key: kwargs[key] for key in ("local_files_only", "trust_remote_code") if key in kwargs}
        config = config or AutoConfig.from_pretrained(folder, **local)
        kind = cls.kind(config)
        if kind is AutoModelForCausalLM:
            return kind.from_pretrained(folder, *args, config=config, **kwargs)
        kwargs.pop("trust_remote_code", None)
        return kind.from_pretrained(folder, *args, config=config, **kwargs)

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """As of AutoModelForCausalLM."""
        kind = cls.kind(config)
        if kind is AutoModelForCausalLM:
            return kind.from_config(config, **kwargs)
        kwargs.pop("trust_remote_code", None)
        return kind._from_config(config, **kwargs)

    @classmethod
    def kind(cls, config: Any) -> Any:
        """The class for a configuration: numeric if it has numbers, else the Auto class."""
        if settings_of(config) is None:
            return AutoModelForCausalLM
        if type(config) not in cls._model_mapping:
            raise UserError(
                f"numbers as values need a model of transformers; {type(config).__name__} is another's code"
            )
        return numeric_class(cls._model_mapping[type(config)])


class Predictions(NamedTuple):
    """What a model predicts at the positions that have a target.

    is_number_n: whether the target is `<NUM>`. rank_n, log_p_n: of `<NUM>` among all tokens, the rank from 1. value_m,
    values: the numbers, and their predicted distributions.
    """

    is_number_n: Tensor
    rank_n: Tensor
    log_p_n: Tensor
    value_m: Tensor
    values: Values


@dataclass(frozen=True)
class Cause:
    """One draw of the latent cause at a position. scores_v: of the tokens, in place of logits. deviation: of the value,
    from its location. share: between 0 and 1, which earlier number is copied.
    """

    scores_v: Tensor
    deviation: Tensor
    share: float


def drawn(model: Any, hidden_d: Tensor, share_d1: Tensor) -> Cause:
    """The cause at a position. share_d1: numbers between 0 and 1 for its variables and the pointer, in float64."""
    module = model.numeric
    scale_d = module.scale(hidden_d).double()
    away_d = scale_d * (math.pi * (share_d1[:-1] - 0.5)).tan()
    cause_d = module.location(hidden_d).double() + away_d
    most = torch.finfo(hidden_d.dtype).max / 1e6  # Cauchy variables are heavy-tailed
    loss_head.install(model)
    layer = cast(LossHead, output_layer(model))
    scores_v = layer.logits(cause_d.clamp(-most, most).to(hidden_d.dtype))
    return Cause(scores_v, (away_d * module.value.weight).sum(), float(share_d1[-1]))


def next_value(model: Any, hidden_d: Tensor, key_kr: Tensor | None, ids: Sequence[int]) -> Values:
    """The distribution [1] of a number behind the last position of a row.

    hidden_d: its last hidden state. key_kr: the pointer's keys of all positions; None without a pointer. ids: of the
    row, as prompts have them (see `separated`).
    """
    settings, module = settings_of(model.config), model.numeric
    assert settings is not None
    hidden_1d = hidden_d[None]
    location_1, scale_1 = module.value(module.location(hidden_1d), module.scale(hidden_1d))
    copies = None
    if key_kr is not None:
        tokens_bt, values_bt = separated(torch.tensor([ids], device=hidden_d.device), settings.token_id)
        offered = offers(settings.is_number(tokens_bt), values_bt, None, settings.in_space)
        at_1 = torch.tensor([len(ids) - 1], device=hidden_d.device)
        query_1r, key_sr = module.pointer.queries(hidden_1d), key_kr[offered.at_s]
        copies = Copies(query_1r, key_sr, module.pointer.own_score, at_1, offered)
    return Values(location_1, scale_1, settings.value_space, copies)


def _run(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """The forward pass, its values as bits: wrappers cast numbers to the precision of the weights."""
    return model(**{**inputs, "values": inputs["values"].view(torch.int64)})


def _key_states(hidden_nd: Tensor, settings: Settings) -> Tensor:
    """The states of the pointer's keys, in a forward pass that gave these last hidden states."""
    if settings.key_layer is None:
        return hidden_nd
    key_btd = middle_states.last_kept()
    if key_btd.ndim != 3 or key_btd.flatten(0, 1).shape != hidden_nd.shape:
        raise UserError("the layers of this model do not give one state for each token; set numeric.copy: false")
    return key_btd.flatten(0, 1)


def _numbers_of(inputs: Mapping[str, Any], targets_bt: Tensor, settings: Settings) -> tuple[Offers, Tensor, Tensor]:
    """The numbers that may be copied, the value behind each position [b * t], and the positions with a target [n]."""
    values_bt = inputs["values"]
    is_number_bt = settings.is_number(inputs["input_ids"])
    offered = offers(is_number_bt, values_bt, inputs.get("position_ids"), settings.in_space)
    return offered, F.pad(values_bt[:, 1:], (0, 1)).flatten(), (targets_bt.flatten() != IGNORED).nonzero()[:, 0]


@torch.no_grad()
def predictions(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor) -> Predictions:
    """Of the targets that are not -100. Arguments as of `losses`."""
    base: Any = causal_lm(model)
    settings = settings_of(base.config)
    assert settings is not None
    offered, next_n, at_n = _numbers_of(inputs, targets_bt, settings)
    is_number_n = settings.is_number(targets_bt.flatten()[at_n])
    at_m, kept = at_n[is_number_n], []

    def answer(layer: LossHead, hidden_btd: Tensor, _: Tensor | None) -> Tensor:
        hidden_nd, found = hidden_btd.flatten(0, 1), []
        for at_c in at_n.split(chunk_rows(layer.vocabulary, hidden_nd.device)):
            scores_cv = _scores(base, layer, hidden_nd[at_c], None).float()
            if settings.token_loss == "softmax":
                scores_cv = scores_cv.log_softmax(-1)
            number_c1 = scores_cv[:, settings.token_id, None]
            found.append(torch.stack([(scores_cv > number_c1).sum(-1) + 1, number_c1[:, 0]]))
        values = base.numeric.values(
            hidden_nd, _key_states(hidden_nd, settings), at_m, base.numeric.location(hidden_nd[at_m]), offered
        )
        # Not as the output, which mixed precision turns into float32.
        rank_n, log_p_n = torch.cat(found, 1).double()
        kept.append(Predictions(is_number_n, rank_n, log_p_n, next_n[at_m], values))
        return hidden_nd.new_zeros(())

    with predicting(None, answer):
        _run(model, inputs)
    (predicted,) = kept
    return predicted


@torch.no_grad()
def next_tokens(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor) -> tuple[list[int], list[float]]:
    """(the most probable token, the median of the value if it is `<NUM>`) at each position with a target. Arguments as
    of `losses`.
    """
    base: Any = causal_lm(model)
    settings = settings_of(base.config)
    assert settings is not None
    offered, _, at_n = _numbers_of(inputs, targets_bt, settings)
    found: list[Tensor] = []

    def answer(layer: LossHead, hidden_btd: Tensor, _: Tensor | None) -> Tensor:
        hidden_nd = hidden_btd.flatten(0, 1)
        values = base.numeric.values(
            hidden_nd, _key_states(hidden_nd, settings), at_n, base.numeric.location(hidden_nd[at_n]), offered
        )
        found.extend([_scores(base, layer, hidden_nd[at_n], None).argmax(-1), *values.quantiles([0.5])])
        return hidden_nd.new_zeros(())

    with predicting(None, answer):
        _run(model, inputs)
    token_n, value_n = found
    return token_n.tolist(), value_n.tolist()


def losses(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor, gate: float) -> tuple[Tensor, Tensor]:
    """(sum of the token loss, sum of the gated -log densities of values) over the targets that are not -100.

    Args:
        model: A model with numbers, possibly adapted and wrapped.
        inputs: Keyword arguments of its forward, with `values`.
        targets_bt: For each position the token that follows it; where it is `<NUM>`, its value is that of the next
            position.
        gate: alpha of the weight alpha + (1 - alpha) P(<NUM>) of a value; the weight has no gradient.
    """
    base: Any = causal_lm(model)
    settings = settings_of(base.config)
    assert settings is not None
    offered, next_n, at_n = _numbers_of(inputs, targets_bt, settings)

    def answer(layer: LossHead, hidden_btd: Tensor, _: Tensor | None) -> Tensor:
        all_nd = hidden_btd.flatten(0, 1)
        hidden_nd, targets_n = all_nd[at_n], targets_bt.flatten()[at_n]
        location_nd: Tensor = base.numeric.location(hidden_nd)
        is_number_m = settings.is_number(targets_n).nonzero()[:, 0]
        if settings.token_loss == "softmax":
            token_loss = layer.summed_loss(location_nd, targets_n)
        else:
            head: Any = _plain(layer)
            scale_nd = base.numeric.scale(hidden_nd)
            token_loss = cauchy.one_vs_rest_loss(
                location_nd, scale_nd, head.weight, head.bias, targets_n, settings.threshold
            )
        at_m, hidden_md, location_md = at_n[is_number_m], hidden_nd[is_number_m], location_nd[is_number_m]
        values = base.numeric.values(all_nd, _key_states(all_nd, settings), at_m, location_md, offered)
        weight_m: Tensor | float = 1.0
        if gate < 1:
            weight_m = gate + (1 - gate) * _number_probability(base.numeric, layer, hidden_md, location_md, settings)
        value_loss = (weight_m * values.negative_log_density(next_n[at_m])).sum()
        return torch.stack([token_loss.double(), value_loss])

    with predicting(None, answer):
        found_2: Tensor = _run(model, inputs).logits
    return found_2[0], found_2[1]


@torch.no_grad()
def _number_probability(
    numeric: Numeric, layer: LossHead, hidden_md: Tensor, location_md: Tensor, settings: Settings
) -> Tensor:
    """[m] in float64: the probability of `<NUM>`."""
    if settings.token_loss == "one_vs_rest":
        head: Any = _plain(layer)
        row = slice(settings.token_id, settings.token_id + 1)
        bias = None if head.bias is None else head.bias[row]
        location_m1 = F.linear(location_md.to(head.weight.dtype), head.weight[row], bias)
        scale_m1 = cauchy.scales(numeric.scale(hidden_md), head.weight[row])
        return cauchy.log_probability(location_m1.double(), scale_m1.double(), settings.threshold).exp()[:, 0]
    chunks = location_md.split(chunk_rows(layer.vocabulary, location_md.device))
    found = [layer.logits(part_md).float().log_softmax(-1)[:, settings.token_id] for part_md in chunks]
    return torch.cat(found).double().exp()


def _plain(layer: LossHead) -> Any:
    """The output layer, whose matrix one_vs_rest reads. Raises UserError if it is adapted or quantised."""
    if not (isinstance(layer, nn.Linear) and type(layer).linear_forward):  # type: ignore[attr-defined]
        raise UserError(
            f"numeric.token_loss: one_vs_rest reads the matrix of the output layer, which is a {type(layer).__name__}; "
            "leave that layer out of tuning.lora.targets, or set numeric.token_loss: softmax"
        )
    return layer

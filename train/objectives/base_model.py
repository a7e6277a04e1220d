"""The model that training starts from. Its limits are checked at once, its weights are loaded later."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from train.config import Config
from train.models.load import fit_vocabulary, learned_positions, load_model, load_tokenizer, skeleton, unquantized
from train.protocols import Ranks, Tuning
from zerotune.common.errors import UserError
from zerotune.models import attention, numeric
from zerotune.models.dequantize import quantization_method
from zerotune.models.folder import resolve
from zerotune.models.precision import DTYPES
from zerotune.models.weights_digest import config_digest, model_digest

log = logging.getLogger(__name__)


class BaseModel:
    """The recipe's `model`. model_class: an Auto class of transformers.

    empty: the model on the meta device. tokenizer: of `model.tokenizer`, or the model's own. Raises UserError if the
    model has fewer positions than data.max_length_tokens.
    """

    def __init__(self, model_class: Any, config: Config, tuning: Tuning, ranks: Ranks) -> None:
        self.model_class, self.config, self.tuning, self.ranks = model_class, config, tuning, ranks
        self.empty = skeleton(model_class, config.model)
        self._require_positions()
        if numeric.settings_of(self.empty.config) is not None and model_class is not numeric.AutoNumericLM:
            raise UserError(
                f"model.path: {config.model.path} reads numbers as values, which only objective: numeric trains; "
                "start from its base model"
            )
        self.tokenizer: Any = load_tokenizer(config.model)

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """Path and digests, for run.json and checkpoints."""
        path, revision = self.config.model.path, self.config.model.revision
        return {
            "path": path,
            "digest": model_digest(path, revision),
            "config_digest": config_digest(path, revision),
            "quantized": quantization_method(resolve(path, revision)),
        }

    @cached_property
    def digests(self) -> Mapping[str, Mapping[str, str]]:
        """Of a new model, `digests` for the metadata: a run resumes with the same tokenizer only."""
        if self.config.model.family is None:
            return {}
        text = str(self.tokenizer.backend_tokenizer.to_str())
        return {"digests": {"tokenizer": hashlib.sha256(text.encode()).hexdigest()}}

    def load(self, packed: bool, options: Mapping[str, Any] | None = None, new: Sequence[str] = ()) -> Any:
        """The pretrained or new model, with an embedding for every token; see `train.models.load.load_model`.

        packed: whether rows share a sequence.
        """
        config, frozen = self.config.model, DTYPES[self.config.run.precision]
        auto = torch.float32 if self.config.tuning.spec.trains_base else frozen
        attention.register()
        model: Any = load_model(
            self.model_class,
            config,
            dtype=auto if config.weights == "auto" else DTYPES[config.weights],
            attention=attention.implementation(config.attention, packed, self.ranks.device, frozen),
            options={**unquantized(self.tuning.load_options(frozen), new), **(options or {})},
            seed=self.config.run.seed,
            new=new,
        )
        fit_vocabulary(model, self.tokenizer, self.config.run.seed)
        if getattr(model.config.get_text_config(), "output_router_logits", False) and self.ranks.index == 0:
            log.warning(
                "%s: output_router_logits is set in config.json, but the auxiliary loss of a mixture of experts is not "
                "supported and not added to the loss; check that all experts remain in use", config.path,
            )  # fmt: skip
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        return model

    def _require_positions(self) -> None:
        limit, longest = learned_positions(self.empty), self.config.data.max_length_tokens
        in_front = self.config.tuning.extra_positions
        if limit is not None and longest + in_front > limit:
            besides = f" besides the {in_front} of the tuned prompt" if in_front else ""
            raise UserError(
                f"data.max_length_tokens: {longest} exceeds the {limit - in_front} positions that "
                f"{self.config.model.path} has{besides}; set it to {limit - in_front} or less"
            )

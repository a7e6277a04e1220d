"""A merge from beginning to end.

Shape suffixes: r rows of the probe, t positions, v vocabulary or classes.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import AutoTokenizer

from train.config import MergeConfig
from train.merge import verify
from train.merge.atomic_folder import draft_of
from train.merge.base_weights import BaseWeights, ModelWeights, converts, from_files, stored_dtype, unties
from train.merge.check_paths import refuse_foreign
from train.merge.prompt_tokens import add_tokens, check_tokenizer, save_tokenizer
from train.merge.report import MergeReport
from train.merge.source import Source, new_parts, open_source, text_rows
from train.merge.trained_model import copy_dequantized, trained_model
from train.merge.weights import merged, merger_for, skeleton_of
from train.merge.writer import ModelWriter, ShardWriter, Writer
from train.models.load import load_model, load_tokenizer, unsharded
from train.models.recorded_answers import POSITIONS, batch, logits, predicted_values, read_answers
from train.tuning.describe import write_json
from zerotune.common.errors import UserError
from zerotune.data.chat_template_file import default_template
from zerotune.models import numeric
from zerotune.models.dequantize import quantization_method
from zerotune.models.folder import read_config, read_json
from zerotune.models.precision import DTYPES

log = logging.getLogger(__name__)

NOTABLE_KL = 0.1  # nats; perplexities then differ by about 10%

SPARE = 1.2  # required free memory and disk, as a multiple of the expected use


def merge(
    run_or_checkpoint: Path, out: Path, settings: MergeConfig, *, base: str | None = None, code: bool = False
) -> MergeReport:
    """Merge into `out`, which appears only after its answers were compared with the trained model's.

    Runs in one process. An earlier merge at `out` is replaced; any other content is refused.

    Args:
        run_or_checkpoint: A run folder, or one of its checkpoints.
        out: The folder to write.
        settings: The recipe's `merge`.
        base: The base model's folder, if it has moved since training.
        code: Whether the base model's own code may run.

    Raises:
        UserError: Something is missing, damaged or changed since training, or the result is wrong.
        CannotWriteError: No space, no permission. In both cases `out` does not change.
    """
    began = time.monotonic()
    refuse_foreign(out)
    with unsharded():  # this process may still be in a ZeRO-3 training
        source = open_source(run_or_checkpoint, settings.checkpoint, base, code)
        log.info("merging %s into %s, then comparing answers", source.checkpoint, out)
        return _Merge(source, out, settings).run(began)


class _Merge:
    """The steps of one merge, in this order."""

    def __init__(self, source: Source, out: Path, settings: MergeConfig) -> None:
        self.source, self.out, self.settings = source, out, settings
        self.weights = DTYPES[settings.weights] if settings.weights != "auto" else _weights_dtype(source)
        self.parameters = sum(tensor.numel() for tensor in skeleton_of(source).parameters())
        fits = psutil.virtual_memory().available > SPARE * 4 * self.parameters
        self.compute_dtype = torch.float32 if fits else torch.bfloat16
        self.quantized_rtv: Tensor | None = None
        self.values_rtf: Tensor | None = None
        self.divergence: dict[str, float] = {}
        self.recorded = read_answers(source.checkpoint)

    def run(self, began: float) -> MergeReport:
        """Write and check a draft, then rename it."""
        tokenizer, before = self._tokenizer(), self._tokenizer()
        ids_rt = batch(before, [], min(self.source.base_rows, len(before)), self._positions())
        expected_rtv, quantized = self._expected(ids_rt)
        base, model = self._base(quantized)
        if self.source.tuning.extra_positions:
            self._extend_vocabulary(tokenizer)
        with draft_of(self.out, int(SPARE * self.parameters * self.weights.itemsize)) as draft:
            digests = self._write_weights(draft, base, model)
            self._write_rest(draft, tokenizer)
            self.source.trained.clear()
            del base, model, quantized  # from here on, only the merged model is in memory
            report = self._check(draft, digests, before, ids_rt, expected_rtv)
            report = dataclasses.replace(report, seconds=round(time.monotonic() - began, 1))
            write_json(
                draft / "run.json", {**self.source.run_info, **self._template(tokenizer), "merge": report.to_json()}
            )
        return report

    def _template(self, tokenizer: Any) -> dict[str, str]:
        """The digest of the chat template with the prompt's tokens: evaluation compares it with the tokenizer's."""
        template = default_template(tokenizer.chat_template)
        if not self.source.prompt_ids or not template or not self.source.run_info.get("template_hash"):
            return {}
        return {"template_hash": hashlib.sha256(template.encode()).hexdigest()}

    def _positions(self) -> int:
        """Positions of the comparison: POSITIONS, or fewer if the model has fewer."""
        longest = getattr(self.source.model_config.get_text_config(), "max_position_embeddings", None) or POSITIONS
        return max(min(POSITIONS, longest - self.source.tuning.extra_positions), 1)

    def _tokenizer(self) -> Any:
        """The run's tokenizer, with the chat template of the training."""
        saved = self.source.run / "tokenizer"
        if saved.is_dir():
            return AutoTokenizer.from_pretrained(saved, local_files_only=True, trust_remote_code=self._code)
        return load_tokenizer(self.source.model)

    def _expected(self, ids_rt: Tensor) -> tuple[Tensor, Any]:
        """The trained model's answers on the base that is merged into; the quantised model, if it is that base."""
        if self.source.tuning.quantization == "none":
            trained = trained_model(self.source, self.compute_dtype)
            self.values_rtf = predicted_values(trained, ids_rt)
            return logits(trained, ids_rt), None
        quantized = trained_model(self.source, self.source.compute_dtype, quantized=True)
        self.quantized_rtv = logits(quantized, ids_rt)
        if self.recorded is not None:
            found_rtv = logits(quantized, self.recorded.ids_rt)
            verify.check_recorded(self.recorded, found_rtv, "the rebuilt quantised model", torch.bfloat16)
        plain = trained_model(self.source, self.compute_dtype)
        by_base, values = {"original": logits(plain, ids_rt)}, {"original": predicted_values(plain, ids_rt)}
        copy_dequantized(plain, quantized)
        by_base["dequantized"], values["dequantized"] = logits(plain, ids_rt), predicted_values(plain, ids_rt)
        self.divergence = {name: verify.compare(self.quantized_rtv, found).mean_kl for name, found in by_base.items()}
        chosen = self.settings.quantized_base
        self.values_rtf = values[chosen]
        return by_base[chosen], quantized.unload() if chosen == "dequantized" else None

    def _base(self, quantized: Any) -> tuple[BaseWeights | None, Any]:
        """The base model's weights; and a model to write with, if tensors cannot be written one by one."""
        source = self.source
        skeleton = skeleton_of(source)
        if source.tuning.spec.replaces_base:
            return None, trained_model(source, self.weights) if converts(skeleton) else None
        if source.model.init == "random":
            seed, options = source.config.run.seed, source.head_options
            initial = load_model(source.model_class, source.model, torch.float32, None, options, seed)
            return ModelWeights(initial), None
        new = new_parts(source)
        files = None if converts(skeleton) else from_files(source.base, skeleton, new)
        if files is None:
            model_config = copy.deepcopy(source.model_config)
            model_config.get_text_config().vocab_size = source.base_rows
            model = load_model(source.model_class, source.model, self.weights, None, {"config": model_config}, new=new)
            entry, exit_ = model.get_input_embeddings(), model.get_output_embeddings()
            if entry is not None and exit_ is not None and entry.weight is not exit_.weight:
                source.model_config.tie_word_embeddings = False
            # Otherwise the names in the files are those of the model.
            needs_model = converts(skeleton) or not quantization_method(source.base)
            return ModelWeights(model if quantized is None else quantized), model if needs_model else None
        if unties(files, skeleton):
            source.model_config.tie_word_embeddings = False
        return (ModelWeights(quantized) if quantized is not None else files), None

    def _extend_vocabulary(self, tokenizer: Any) -> None:
        """Add the prompt's tokens to tokenizer and config, and separate the output layer from the embeddings."""
        ids = tuple(add_tokens(tokenizer, self.source.tuning.extra_positions))
        model_config = self.source.model_config
        model_config.get_text_config().vocab_size = max(text_rows(model_config), max(ids) + 1)
        model_config.tie_word_embeddings = False
        self.source = dataclasses.replace(self.source, prompt_ids=ids)

    def _write_weights(self, draft: Path, base: BaseWeights | None, model: Any) -> dict[str, str]:
        source, model_config = self.source, self.source.model_config
        skeleton = skeleton_of(source)
        merger = merger_for(source, skeleton, base)
        if not all(merger.is_tied(target, origin) for target, origin in skeleton.all_tied_weights_keys.items()):
            model_config.tie_word_embeddings = False
        writer: Writer = ShardWriter(draft) if model is None else ModelWriter(model, model_config, draft)
        for name, tensor in merged(source, skeleton, merger):
            kept = torch.float32 if name.startswith(f"{numeric.KEY}.") else self.weights  # values need its digits
            writer.add(name, tensor.to(kept) if tensor.is_floating_point() else tensor)
        writer.close()
        return writer.digests

    def _write_rest(self, draft: Path, tokenizer: Any) -> None:
        """Config, generation settings, tokenizer with its chat template, and the model's code if it may run."""
        source, model_config = self.source, self.source.model_config
        model_config.dtype = self.weights
        model_config.use_cache = True  # training may have disabled it
        model_config.save_pretrained(draft)
        settings = source.checkpoint / "tuning" / "generation_config.json"
        generation = read_json(settings) if settings.is_file() else {}
        if source.prompt_ids:  # likelihoods must mask these tokens as well (docs/merge.md)
            generation["suppress_tokens"] = [*(generation.get("suppress_tokens") or []), *source.prompt_ids]
        if generation:
            write_json(draft / "generation_config.json", generation)
        if source.prompt_ids:
            save_tokenizer(tokenizer, draft)
        else:
            tokenizer.save_pretrained(draft)
        if self._code:
            for file in source.base.glob("*.py"):
                shutil.copyfile(file, draft / file.name)

    def _check(
        self, draft: Path, digests: dict[str, str], before: Any, ids_rt: Tensor, expected_rtv: Tensor
    ) -> MergeReport:
        source = self.source
        tensors, parameters = verify.check_files(draft, digests)
        if source.prompt_ids:
            check_tokenizer(draft, before, list(source.prompt_ids))
        if self.recorded is not None:
            verify.check_tokenizer_of(draft, self.recorded, self._code)
        model = verify.reload(draft, source.model_class, self.compute_dtype, self._code)
        found_rtv = logits(model, ids_rt, source.prompt_ids)
        comparison = verify.check_answers(expected_rtv, found_rtv, self.weights, self.compute_dtype)
        recorded = self._check_recorded(model) if self.recorded is not None else None
        values = self._check_values(model, ids_rt)
        if self.quantized_rtv is not None:  # measured on the written weights, including rounding
            self.divergence[self.settings.quantized_base] = verify.compare(self.quantized_rtv, found_rtv).mean_kl
            self._warn_of_divergence()
        return MergeReport(
            out=self.out,
            checkpoint=source.checkpoint,
            step=source.step,
            kind=source.tuning.kind,
            weights=_name(self.weights),
            tied=bool(source.model_config.tie_word_embeddings),
            tensors=tensors,
            parameters=parameters,
            compared_in=_name(self.compute_dtype),
            comparison=comparison,
            recorded=recorded,
            values=values,
            divergence=self.divergence,
            quantized_base=self.settings.quantized_base if self.divergence else None,
            dequantized_from=None if source.tuning.spec.replaces_base else quantization_method(source.base),
            prompt_tokens=source.prompt_ids,
            prompt_leak=verify.leak(found_rtv, expected_rtv.shape[-1]),
        )

    def _check_recorded(self, model: Any) -> verify.Recorded:
        """Compare the merged model, loaded from disk, with the answers recorded in training."""
        assert self.recorded is not None
        found_rtv = logits(model, self.recorded.ids_rt, self.source.prompt_ids)
        return verify.check_recorded(
            self.recorded, found_rtv, "the merged model", *self._kinds, other_base=self._has_other_base
        )

    def _check_values(self, model: Any, ids_rt: Tensor) -> float | None:
        """Compare what the merged model predicts of numbers with the rebuilt model, and with the one in training."""
        if self.values_rtf is None:
            return None
        found_rtf = predicted_values(model, ids_rt)
        assert found_rtf is not None
        values = verify.check_values(self.values_rtf, found_rtf, verify.TOLERANCE, self.weights, self.compute_dtype)
        recorded = self.recorded
        if recorded is not None and recorded.values_rtf is not None and not self._has_other_base:
            found_rtf = predicted_values(model, recorded.ids_rt)
            assert found_rtf is not None
            kinds = (*self._kinds, DTYPES[recorded.precision])
            values = verify.check_values(recorded.values_rtf, found_rtf, verify.RECORDED, *kinds)
        return values

    @property
    def _has_other_base(self) -> bool:
        """Whether the merged model has the original weights, and the trained one quantised ones."""
        return self.quantized_rtv is not None and self.settings.quantized_base == "original"

    @property
    def _kinds(self) -> Sequence[torch.dtype]:
        """What limits the comparison with training: a quantised model is as coarse as bfloat16 in any precision."""
        return (self.weights, self.compute_dtype, *((torch.bfloat16,) if self.quantized_rtv is not None else ()))

    def _warn_of_divergence(self) -> None:
        chosen, by_base = self.settings.quantized_base, self.divergence
        if by_base[chosen] > NOTABLE_KL and min(by_base, key=by_base.__getitem__) != chosen:
            log.warning(
                "the merged model differs from the trained quantised model by KL %.2g nats (%s base), so its scores "
                "may differ; the dequantized base is closer (%.2g nats): set --quantized_base dequantized, or "
                "merge.quantized_base in the recipe",
                by_base[chosen], chosen, by_base["dequantized"],
            )  # fmt: skip

    @property
    def _code(self) -> bool:
        return self.source.model.trust_remote_code


def _weights_dtype(source: Source) -> torch.dtype:
    """The dtype of the base model's files; for a new model, that of its config."""
    try:
        if source.model.init == "random":
            return read_config(source.base, source.model.trust_remote_code).dtype or torch.float32
        return stored_dtype(source.base)
    except UserError:  # after full tuning the base model is not needed
        return source.model_config.dtype or torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""What is merged: the run, one of its checkpoints, and the base model it started from."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from train import recipe
from train.checkpoint import commit
from train.checkpoint.state import trained_weights
from train.config import Config, ModelConfig, TuningConfig
from train.merge.places import find_run
from train.models.load import head_parts
from zerotune.common.errors import UserError
from zerotune.models.digest import model_digest
from zerotune.models.folder import read_config, resolve
from zerotune.models.precision import DTYPES
from zerotune.models.token_statistics import VALUE_HEAD

# peft's names for what a model is used for, by how transformers ends the names of its classes
TASKS = {"ForTokenClassification": "TOKEN_CLS", "ForSequenceClassification": "SEQ_CLS"}


@dataclass(frozen=True)
class Source:
    """A run at one of its checkpoints.

    described: the model's config as the objective and the tuning left it. base_rows: rows of the base's embeddings.
    trained: the trained weights by their names in the tuned model. facts: the run's run.json. prompt_ids: the tokens
    that a tuned prompt becomes.
    """

    run: Path
    checkpoint: Path
    step: int
    config: Config
    described: Any
    base_rows: int
    trained: dict[str, Tensor]
    facts: dict[str, Any]
    prompt_ids: tuple[int, ...] = ()

    @property
    def model(self) -> ModelConfig:
        """The base model."""
        return self.config.model

    @property
    def tuning(self) -> TuningConfig:
        """Which weights moved."""
        return self.config.tuning

    @property
    def base(self) -> Path:
        """The base model's folder."""
        return resolve(self.model.path, self.model.revision, code=self.model.trust_remote_code)

    @property
    def arithmetic(self) -> torch.dtype:
        """In which training computed, and stored what was neither trained nor quantised."""
        return DTYPES.get(str(self.facts.get("precision", self.config.run.precision)), torch.float32)

    @property
    def task(self) -> str:
        """peft's name for what the model is used for."""
        name = self.described.architectures[0]
        return next((task for ending, task in TASKS.items() if name.endswith(ending)), "CAUSAL_LM")

    @property
    def head_options(self) -> dict[str, Any]:
        """What a new model's config must be told of the head that training put on it."""
        names = ("id2label", "label2id") if self.task != "CAUSAL_LM" else ()
        return {name: getattr(self.described, name) for name in names}

    @property
    def model_class(self) -> Any:
        """The class of the model that was trained."""
        name = self.described.architectures[0]
        known = getattr(transformers, name, None)
        if known is None and not self.model.trust_remote_code:
            raise UserError(
                f"{self.checkpoint}: its model {name} is code of the base model's own. Read that code, and if you "
                "trust it merge with --trust_remote_code"
            )
        return known or AutoModelForCausalLM


def open_source(path: Path, which: str, base: str | None = None, code: bool = False) -> Source:
    """The run and checkpoint at `path`, which is either of them.

    Args:
        path: A run folder, or one of its checkpoints.
        which: best or last, where `path` is a run. Without a best one (no validation), the last is taken.
        base: Where the base model lies now, if it has moved.
        code: Whether code that comes with the base model may run.

    Raises:
        UserError: Where something is missing or damaged, or the base model is not the one that was trained on.
    """
    run, checkpoint = find_run(path)
    folder = checkpoint or _choose(run, which)
    config = recipe.load(run / "config.yaml")
    model = dataclasses.replace(config.model, path=base or config.model.path, trust_remote_code=code)
    config = dataclasses.replace(config, model=model)
    facts = _facts(run)
    rows = _check_base(config, facts)
    tuning = folder / "tuning"
    if not (tuning / "config.json").is_file():
        raise UserError(
            f"{folder}: tuning/config.json is missing, so the checkpoint does not say which model it belongs to"
        )
    described = AutoConfig.from_pretrained(tuning, trust_remote_code=code, local_files_only=True)
    found = trained_weights(folder)
    trained = {
        name: tensor for name, tensor in found.items() if f".{VALUE_HEAD}." not in f".{name}"
    }  # only to train by
    broken = [name for name, tensor in trained.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"{folder}: {broken[0]} is not finite ({len(broken)} weights); merge an earlier checkpoint")
    if config.tuning.spec.replaces_base:  # training may have found two matrices where the config asks for one
        described.tie_word_embeddings = described.tie_word_embeddings and "lm_head.weight" not in trained
    step = int(commit.read_state(folder)["step"])
    return Source(run, folder, step, config, described, rows or text_rows(described), trained, facts)


def new_parts(source: Source) -> list[str]:
    """Modules that the base's files need not hold: those that training made anew, and saved."""
    if source.task == "CAUSAL_LM":
        return source.tuning.lora.modules_to_save
    with torch.device("meta"):
        empty = source.model_class._from_config(source.described, dtype=torch.float32)
    return [*source.tuning.lora.modules_to_save, *head_parts(empty)]


def text_rows(config: Any) -> int:
    """Rows of the embeddings that a model's config asks for."""
    return int(config.get_text_config().vocab_size)


def _choose(run: Path, which: str) -> Path:
    parent = run / "checkpoints"
    steps = commit.steps(parent)
    if not steps:
        raise UserError(f"{parent}: holds no finished checkpoint, so there is nothing to merge")
    newest = commit.folder_of(parent, steps[-1])
    best = commit.read_state(newest).get("best_step") if which == "best" else None
    return commit.folder_of(parent, best) if best in steps else newest


def _facts(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    return facts if isinstance(facts, dict) else {}


def _check_base(config: Config, facts: dict[str, Any]) -> int | None:
    """Rows of the base's embeddings, after making sure that it is still the model that was trained on.

    After full fine-tuning nothing of the base is in the result, so there it may be gone: None.
    """
    if config.tuning.spec.replaces_base:
        return None
    model = config.model
    try:
        folder = resolve(model.path, model.revision, code=model.trust_remote_code)
    except UserError as error:
        raise UserError(f"{error}; if the base model has moved, name its folder with --base") from error
    recorded = facts.get("model", {}).get("digest")
    if recorded and recorded != model_digest(folder):
        raise UserError(
            f"{folder}: these are not the weights that training started from (their digest differs from the one in "
            "run.json), so the merge would be wrong. Put the old ones back, or name their folder with --base"
        )
    return text_rows(read_config(folder, model.trust_remote_code))

"""The source of a merge: the run, one of its checkpoints, and its base model."""

from __future__ import annotations

import dataclasses
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
from train.merge.check_paths import find_run
from train.models.load import head_parts
from zerotune.common.errors import UserError
from zerotune.models import number_rows, numeric
from zerotune.models.folder import read_config, read_json, resolve
from zerotune.models.precision import DTYPES
from zerotune.models.recurrent import MODELS, register
from zerotune.models.token_statistics import VALUE_HEAD
from zerotune.models.weights_digest import model_digest

NUMBER_ROWS = f"{numeric.KEY}.{number_rows.BUFFER}"
# PEFT's task types, by the end of transformers' class names
TASKS = {"ForTokenClassification": "TOKEN_CLS", "ForSequenceClassification": "SEQ_CLS"}


@dataclass(frozen=True)
class Source:
    """A run at one of its checkpoints.

    model_config: the trained model's config.json. base_rows: rows of the base model's embeddings. trained: the trained
    weights by their names in the tuned model. run_info: the run's run.json. prompt_ids: new tokens of a tuned prompt.
    number_rows: those of `<NUM>` in frozen matrices.
    """

    run: Path
    checkpoint: Path
    step: int
    config: Config
    model_config: Any
    base_rows: int
    trained: dict[str, Tensor]
    run_info: dict[str, Any]
    prompt_ids: tuple[int, ...] = ()
    number_rows: Tensor | None = None

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def tuning(self) -> TuningConfig:
        return self.config.tuning

    @property
    def base(self) -> Path:
        """The base model's folder."""
        return resolve(self.model.path, self.model.revision, code=self.model.trust_remote_code)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of training's matrix products, and of weights that were neither trained nor quantised."""
        return DTYPES.get(str(self.run_info.get("precision", self.config.run.precision)), torch.float32)

    @property
    def task(self) -> str:
        """PEFT's task type of the model."""
        name = self.model_config.architectures[0]
        return next((task for ending, task in TASKS.items() if name.endswith(ending)), "CAUSAL_LM")

    @property
    def number_id(self) -> int:
        """The id of `<NUM>`."""
        settings = numeric.settings_of(self.model_config)
        assert settings is not None
        return settings.token_id

    @property
    def trains_new_rows(self) -> bool:
        """Whether the embeddings got rows that adapters train, with all others."""
        frozen = self.number_rows is not None and self.number_id >= self.base_rows
        return text_rows(self.model_config) - self.base_rows > frozen

    @property
    def head_options(self) -> dict[str, Any]:
        """Options of a new model's config for the head that training added."""
        names = ("id2label", "label2id") if self.task != "CAUSAL_LM" else (numeric.KEY,)
        return {name: getattr(self.model_config, name) for name in names if hasattr(self.model_config, name)}

    @property
    def model_class(self) -> Any:
        """The class of the model that was trained."""
        name = self.model_config.architectures[0]
        known = MODELS.get(name) or getattr(transformers, name, None)
        if known is not None and numeric.settings_of(self.model_config) is not None:
            return numeric.numeric_class(known)
        if known is None and not self.model.trust_remote_code:
            raise UserError(
                f"{self.checkpoint}: its model {name} is the base model's own code. Read that code, and if you trust "
                "it, merge with --trust_remote_code"
            )
        return known or AutoModelForCausalLM


def open_source(path: Path, which: str, base: str | None = None, code: bool = False) -> Source:
    """Read a run and one of its checkpoints.

    Args:
        path: A run folder, or one of its checkpoints.
        which: best or last, if `path` is a run. Without a best checkpoint (no validation), the last is used.
        base: The base model's folder, if it has moved.
        code: Whether the base model's own code may run.

    Raises:
        UserError: Something is missing or damaged, or the base model is not that of the training.
    """
    run, checkpoint = find_run(path)
    folder = checkpoint or _choose(run, which)
    config = recipe.load(run / "config.yaml")
    model = config.model.within(run)
    model = dataclasses.replace(model, path=base or model.path, trust_remote_code=code)
    config = dataclasses.replace(config, model=model)
    run_info = read_json(run / "run.json") if (run / "run.json").exists() else {}
    rows = _check_base(config, run_info)
    tuning = folder / "tuning"
    if not (tuning / "config.json").is_file():
        raise UserError(f"{folder}: tuning/config.json is missing, so the model of the checkpoint is unknown")
    register()
    model_config = AutoConfig.from_pretrained(tuning, trust_remote_code=code, local_files_only=True)
    weights = trained_weights(folder)
    # PPO's value head is used only in training.
    trained = {name: tensor for name, tensor in weights.items() if f".{VALUE_HEAD}." not in f".{name}"}
    rows_2d = next((trained.pop(name) for name in list(trained) if name.endswith(NUMBER_ROWS)), None)
    broken = [name for name, tensor in trained.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"{folder}: {broken[0]} is not finite ({len(broken)} weights); merge an earlier checkpoint")
    if config.tuning.spec.replaces_base:  # the config may tie embeddings of which the files have two
        model_config.tie_word_embeddings = model_config.tie_word_embeddings and "lm_head.weight" not in trained
    step = int(commit.read_state(folder)["step"])
    return Source(
        run, folder, step, config, model_config, rows or text_rows(model_config), trained, run_info, (), rows_2d
    )


def new_parts(source: Source) -> list[str]:
    """Modules that the base model's files need not contain: those that training created, and saved."""
    if source.task == "CAUSAL_LM":
        return [*source.tuning.lora.modules_to_save, numeric.KEY]
    with torch.device("meta"):
        empty = source.model_class._from_config(source.model_config, dtype=torch.float32)
    return [*source.tuning.lora.modules_to_save, *head_parts(empty)]


def text_rows(config: Any) -> int:
    """Number of rows of the embeddings, by a model's config."""
    return int(config.get_text_config().vocab_size)


def _choose(run: Path, which: str) -> Path:
    parent = run / "checkpoints"
    steps = commit.steps(parent)
    if not steps:
        raise UserError(f"{parent}: no finished checkpoint, so there is nothing to merge")
    newest = commit.folder_of(parent, steps[-1])
    best = commit.read_state(newest).get("best_step") if which == "best" else None
    return commit.folder_of(parent, best) if best in steps else newest


def _check_base(config: Config, run_info: dict[str, Any]) -> int | None:
    """Check that the base model is unchanged since training. Returns the number of rows of its embeddings.

    After full tuning no base weight is in the result, so the base model is not needed: None.
    """
    if config.tuning.spec.replaces_base:
        return None
    model = config.model
    try:
        folder = resolve(model.path, model.revision, code=model.trust_remote_code)
    except UserError as error:
        raise UserError(f"{error}; if the base model has moved, give its folder with --base") from error
    recorded = run_info.get("model", {}).get("digest")
    if recorded and recorded != model_digest(folder):
        raise UserError(
            f"{folder}: these are not the weights that training started from (their digest differs from that in "
            "run.json), so the merge would be wrong. Restore the old weights, or give their folder with --base"
        )
    return text_rows(read_config(folder, model.trust_remote_code))

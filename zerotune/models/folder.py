"""A model's folder in Hugging Face layout: where it is, and whether its files may be read.

Weights come from safetensors files alone, and no code that lies in the folder is run unless that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from zerotune.common.errors import UserError
from zerotune.models.find_folder import local_folder, refuse_adapter
from zerotune.models.recurrent import register
from zerotune.models.weight_files import read_json, weight_files

__all__ = ["read_config", "read_json", "refuse_code", "resolve", "weight_files"]

WEIGHTS = "*.safetensors"
FETCHED = ("*.json", WEIGHTS, "*.model", "*.txt", "*.jinja", "*.tiktoken")


def resolve(
    name: str, revision: str | None = None, key: str = "model.path", code: bool = False, weights: bool = True
) -> Path:
    """The folder of a model on this machine; a hub name is fetched first, without pickles, and without code and weights
    unless `code` and `weights`.

    Raises UserError, naming the config key, where there is neither.
    """
    if folder := local_folder(name, key):
        return folder
    from huggingface_hub import snapshot_download  # needed for hub names alone

    patterns = [pattern for pattern in FETCHED if weights or pattern != WEIGHTS] + ["*.py"] * code
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{key}: {name} is no folder here, and could not be fetched from the hub ({reason})") from error


def read_config(folder: Path, code: bool = False) -> Any:
    """The model's configuration. Raises UserError for an adapter, an unknown kind, and code that was not asked for."""
    refuse_adapter(folder)
    register()
    raw = read_json(folder / "config.json")
    if raw.get("model_type") not in CONFIG_MAPPING:
        refuse_code(folder / "config.json", raw, code)
        if not raw.get("auto_map"):
            raise UserError(
                f"{folder / 'config.json'}: the installed transformers knows no model_type {raw.get('model_type')!r}"
            )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=code, local_files_only=True)
    except Exception as error:  # whatever a value of the wrong type makes transformers stumble over
        reason = str(error) or type(error).__name__
        raise UserError(f"{folder / 'config.json'}: transformers cannot read it: {reason}") from error


def refuse_code(path: Path, raw: Mapping[str, Any], code: bool) -> None:
    """Raise UserError, naming the files, where `raw` asks for code and none was allowed."""
    if raw.get("auto_map") and not code:
        names = sorted({str(target).split(".")[0] + ".py" for target in _leaves(raw["auto_map"])})
        raise UserError(
            f"{path}: loading it would run the code in {', '.join(names)}. Read that code, and if you trust it add "
            "--model.trust_remote_code true"
        )


def _leaves(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if inner is None else [leaf for part in inner for leaf in _leaves(part) if leaf is not None]

"""Finds the files of a model's weights: safetensors beside its config.json, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from zerotune.common.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a model's folder. Raises UserError naming the file where it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object was expected")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, complete ones only, as transformers chooses them.

    Raises UserError, naming the file, for weights in a format that can run code or outside `folder`, and for missing or
    truncated files.
    """
    entry = _entry(folder)
    files = _listed(entry) if entry.suffix == ".json" else [entry]
    for file in files:
        try:
            with safe_open(file, "numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: not a complete safetensors file ({error}); fetch or write it again") from error
    return files


def _entry(folder: Path) -> Path:
    """The file with all weights, or the index of several files."""
    config = folder / "config.json"
    named = read_json(config).get("transformers_weights") if config.is_file() else None
    if named is not None:
        if not _is_beside(named, ".safetensors", ".safetensors.index.json"):
            raise UserError(
                f"{config}: transformers_weights names {named!r}; only safetensors files beside it are read"
            )
        return folder / str(named)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if not pickles:
        raise UserError(f"{folder}: no model.safetensors, so it holds no weights; fetch them, or name another folder")
    raise UserError(
        f"{folder}: no model.safetensors; {pickles[0]} is not read, since such a file can run code when it is loaded. "
        "Convert it once where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
    )


def _listed(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
    odd = [name for name in names if not _is_beside(name, ".safetensors")]
    if odd or not names:
        raise UserError(f"{index}: lists {odd[0] if odd else 'no files'}; safetensors files beside it are expected")
    return [index.with_name(name) for name in names]


def _is_beside(name: object, *endings: str) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(endings)

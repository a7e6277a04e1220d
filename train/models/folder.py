"""A model's folder in Hugging Face layout: where it is, and whether its files may be read.

Weights come from safetensors files alone, and no code that lies in the folder is run unless that was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig

from train.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")


def resolve(name: str, revision: str | None = None, key: str = "model.path", code: bool = False) -> Path:
    """The folder of a model on this machine; a hub name is fetched first, without pickles and (unless `code`) code.

    Raises UserError, naming the config key, where there is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not name:
        raise UserError(f"{key} is empty: give a folder in Hugging Face layout or a hub name")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise UserError(f"{key}: there is no folder {name}")
    from huggingface_hub import snapshot_download  # needed for hub names alone

    patterns = [*FETCHED, "*.py"] if code else list(FETCHED)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{key}: {name} is no folder here, and could not be fetched from the hub ({reason})") from error


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
    """The safetensors files that make up the model, complete ones only.

    Raises UserError, naming the file, for weights in a format that can run code, and for missing or truncated files.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
        odd = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if odd or not names:
            raise UserError(
                f"{index}: {odd[0] if odd else 'nothing'} is listed, safetensors files beside it are expected"
            )
        files = [folder / name for name in names]
    else:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if not pickles:
            raise UserError(
                f"{folder}: no model.safetensors, so it holds no weights; fetch them, or name another folder"
            )
        raise UserError(
            f"{folder}: no model.safetensors; {pickles[0]} is not read, since such a file can run code when it is "
            "loaded. Convert it once where you trust it: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
        )
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: not a complete safetensors file ({error}); fetch or write it again") from error
    return files


def read_config(folder: Path, code: bool = False) -> Any:
    """The model's configuration. Raises UserError for an adapter, an unknown kind, and code that was not asked for."""
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: adapter_config.json makes it an adapter; merge it into its base model and start from that"
        )
    raw = read_json(folder / "config.json")
    foreign = str(raw.get("transformers_weights") or "x.safetensors")
    if ".safetensors" not in foreign:
        raise UserError(
            f"{folder / 'config.json'}: transformers_weights names {foreign}; only safetensors files are read"
        )
    if raw.get("model_type") not in CONFIG_MAPPING:
        refuse_code(folder / "config.json", raw, code)
        if not raw.get("auto_map"):
            raise UserError(
                f"{folder / 'config.json'}: the installed transformers knows no model_type {raw.get('model_type')!r}"
            )
    return AutoConfig.from_pretrained(folder, trust_remote_code=code, local_files_only=True)


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

"""Finds and checks the folder of a model, without slow imports."""

from __future__ import annotations

from pathlib import Path

from zerotune.common.errors import UserError
from zerotune.common.files import nearest
from zerotune.models.dequantize import quantization_method
from zerotune.models.weight_files import read_json, weight_files

# Files of a tokenizer.
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "*.tiktoken", "vocab.*", "spiece.model")


def local_folder(name: str, key: str) -> Path | None:
    """The local folder of a model; None for a name of the hub.

    key: the name of the setting in messages. Raises UserError if the name can be neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not name:
        raise UserError(f"{key} is empty: give a folder in Hugging Face layout or a hub name")
    if folder.is_file():
        raise UserError(f"{key}: {name} is a file; name its folder")
    meant = nearest(folder) if folder.parent.is_dir() else ""  # of ORG/NAME there is no folder ORG
    if meant or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise UserError(f"{key}: there is no folder {name}{meant}")
    return None


def refuse_adapter(folder: Path) -> None:
    """Raises UserError if the folder contains an adapter."""
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: contains an adapter (adapter_config.json); merge it into its base model first (if it is from a "
            "run: python -m train.merge RUN OUT)"
        )


def require_model(folder: Path, with_weights: bool) -> None:
    """Raises UserError if the folder has no configuration, or no complete weights."""
    refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: {without_config(folder)}")
    read_json(folder / "config.json")
    if with_weights:
        weight_files(folder)


def require_tokenizer(folder: Path) -> None:
    """Raises UserError if the folder has no tokenizer."""
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        raise UserError(f"{folder}: has no tokenizer (tokenizer.json); name a folder with one as model.tokenizer")


def require_checkpoint(name: str) -> Path:
    """The folder of a checkpoint to evaluate. Raises UserError naming what is missing, or an unknown quantisation."""
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(
            f"{name}: there is no such folder (for a hub model, first run `hf download NAME --local-dir {name}`)"
        )
    require_model(folder, with_weights=True)
    quantization_method(folder)
    return folder


def without_config(folder: Path) -> str:
    """The message for a folder without config.json: which subfolder to use, or how to merge a run."""
    inside = [entry for entry in sorted(folder.iterdir()) if (entry / "config.json").is_file()]
    if (folder / "run.json").is_file() or (folder / "checkpoints").is_dir():
        merged = folder / "merged"
        how = (
            f"its model is {merged}" if merged in inside else f"make a model of it: python -m train.merge {folder} OUT"
        )
        return f"this is the folder of a run; {how}"
    if inside:
        return f"there is no config.json, but there is one in {', '.join(map(str, inside[:3]))}"
    return "there is no config.json; a checkpoint folder in Hugging Face layout is needed"

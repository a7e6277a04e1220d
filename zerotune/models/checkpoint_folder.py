"""Checks by file names whether a folder is a checkpoint, without slow imports."""

from __future__ import annotations

from pathlib import Path

from zerotune.common.errors import UserError
from zerotune.models.dequantize import quantization_method


def require_checkpoint(folder: str) -> Path:
    """The folder as a path. Raises UserError naming what is missing, or a quantisation that is not supported."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"{folder}: there is no such folder (for a hub model, first run `hf download NAME --local-dir {folder}`)"
        )
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: this is an adapter without its base model; merge it: python -m train.merge {folder} OUT"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"{folder}: {without_config(path)}")
    if not list(path.glob("*.safetensors")):
        found = ", ".join(p.name for p in sorted(path.iterdir()) if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        why = f"only {found}, which can run foreign code when loaded" if found else "no weights"
        raise UserError(f"{folder}: there are {why}; save it as safetensors")
    quantization_method(path)
    return path


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

"""The identity of a model's weights, to notice that a base model is no longer the one that was trained on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from zerotune.common.files import sha256_files
from zerotune.models.folder import read_json, resolve


def model_digest(path: str | Path, revision: str | None = None) -> str:
    """sha256 over names and contents of a model's safetensors files; of config.json where it has none (init: random).

    Args:
        path: A folder or a hub name.
        revision: The hub revision.
    """
    folder = resolve(str(path), revision)
    files = sorted(folder.glob("*.safetensors")) or [folder / "config.json"]
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, sha256_files(files), strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def config_digest(path: str | Path, revision: str | None = None) -> str:
    """sha256 over what a model's config.json says, its layout and the version that wrote it aside.

    The weights alone do not make a model: norms, rotary embeddings and caps of logits stand there.
    """
    config = read_json(resolve(str(path), revision) / "config.json")
    kept = {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

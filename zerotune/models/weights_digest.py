"""Digests of a model's weights and configuration, to notice that a base model has changed since training."""

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
    """sha256 over the content of config.json, without formatting and transformers' version.

    Weights alone do not define a model: config.json sets norms, rotary embeddings and logit caps.
    """
    config = read_json(resolve(str(path), revision) / "config.json")
    kept = {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

"""Folders that Hugging Face's `save_to_disk` writes: the files that hold the rows, and the names of their classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zerotune.common.errors import UserError

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether `folder` holds one data set."""
    return (folder / STATE).is_file() and (folder / INFO).is_file()


def splits(folder: Path) -> list[str]:
    """The names of the splits that `folder` holds; none where it is something else."""
    if not (folder / SPLITS).is_file():
        return []
    names = _listed(folder / SPLITS, "splits")
    if not names:
        raise UserError(f"{folder / SPLITS}: names no splits; save the data set again, or name the folder of one")
    return [str(name) for name in names]


def files(folder: Path) -> list[Path]:
    """The Arrow files of one data set, in order; files of its cache are none of them."""
    names = [entry.get("filename") for entry in _listed(folder / STATE, "_data_files") if isinstance(entry, dict)]
    if not names:
        raise UserError(f"{folder / STATE}: does not list the data set's files; save it again")
    found = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{folder / STATE}: lists {name!r}; files beside it are expected")
        found.append(folder / name)
        if not found[-1].is_file():
            raise UserError(f"{found[-1]}: {STATE} lists it, and it is missing; copy the whole folder")
    return found


def chosen(folder: Path, split: str | None) -> Path:
    """The folder of one split. Raises UserError with their names where it is not said which."""
    names = splits(folder)
    if split in names:
        return folder / str(split)
    raise UserError(f"{folder}: holds the splits {', '.join(names)}; name one: {folder / names[0]}")


def classes(schema: Any) -> Mapping[str, Any]:
    """The features that an Arrow file's schema describes, as JSON."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def named(value: Any, feature: Any) -> Any:
    """The value with names in place of the numbers of classes, however deep; a number that is no class is null."""
    if isinstance(feature, list) and feature:  # as older versions write a list
        feature = {"feature": feature[0]}
    if not isinstance(feature, Mapping) or value is None:
        return value
    kind, inside = feature.get("_type"), feature.get("feature")
    if kind == "ClassLabel":
        names = feature.get("names") or []
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if isinstance(value, list) and "feature" in feature:
        return [named(inner, inside) for inner in value]
    if isinstance(value, Mapping) and kind == "Sequence" and isinstance(inside, Mapping):  # a list for each key
        return {key: named(inner, {"feature": inside.get(key)}) for key, inner in value.items()}
    if isinstance(value, Mapping) and not isinstance(kind, str):
        return {key: named(inner, feature.get(key)) for key, inner in value.items()}
    return value


def _listed(path: Path, key: str) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    listed = found.get(key) if isinstance(found, dict) else None
    return listed if isinstance(listed, list) else []

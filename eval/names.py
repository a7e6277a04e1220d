"""What files, folders and checkpoints are called in reports: as short as tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

from zerotune.models.run_facts import read_run_facts


def shortest(paths: Sequence[str]) -> list[str]:
    """For each path as few of its last parts as tell it from the others; the same path twice is numbered."""
    parts = [PurePath(path).parts or (path,) for path in paths]
    names = []
    for index, own in enumerate(parts):
        others = [other for k, other in enumerate(parts) if k != index and other != own]
        length = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        name, earlier = "/".join(own[-length:]), parts[:index].count(own)
        names.append(f"{name} #{earlier + 1}" if earlier else name)
    return names


def model_names(folders: Sequence[str]) -> list[str]:
    """Of checkpoints: the run and step that their run.json names, else the folder; another name for each."""
    places = shortest([str(Path(folder).resolve()) for folder in folders])
    names = []
    for folder, place in zip(folders, places, strict=True):
        origin = read_run_facts(Path(folder))
        names.append(f"{origin.run} step {origin.step}" if origin else place)
    return [
        name if names.count(name) == 1 or name == place else f"{name} ({place})"
        for name, place in zip(names, places, strict=True)
    ]


def file_names(files: Sequence[str]) -> list[str]:
    """Of corpora: the shortest, without their ending where that tells nothing."""
    bare = [str(PurePath(file).with_suffix("")) if PurePath(file).suffix else file for file in files]
    return shortest(bare if len(set(bare)) == len(set(files)) else files)

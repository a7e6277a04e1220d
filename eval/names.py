"""Short unambiguous names of files, folders and checkpoints for reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

from zerotune.models.run_facts import read_run_facts


def shortest(paths: Sequence[str]) -> list[str]:
    """For each path the fewest last parts that distinguish it from the others; equal paths are numbered."""
    parts = [PurePath(path).parts or (path,) for path in paths]
    names = []
    for index, own in enumerate(parts):
        others = [other for k, other in enumerate(parts) if k != index and other != own]
        length = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        name, earlier = "/".join(own[-length:]), parts[:index].count(own)
        names.append(f"{name} #{earlier + 1}" if earlier else name)
    return names


def model_names(folders: Sequence[str]) -> list[str]:
    """Distinct names of checkpoints: run and step from their run.json, else the folder."""
    places = shortest([str(Path(folder).resolve()) for folder in folders])
    names = []
    for folder, place in zip(folders, places, strict=True):
        facts = read_run_facts(Path(folder))
        names.append(f"{facts.run} step {facts.step}" if facts else place)
    return [
        name if names.count(name) == 1 or name == place else f"{name} ({place})"
        for name, place in zip(names, places, strict=True)
    ]


def file_names(files: Sequence[str]) -> list[str]:
    """Distinct names of corpus files, without suffix if it is not needed."""
    bare = [str(PurePath(file).with_suffix("")) if PurePath(file).suffix else file for file in files]
    return shortest(bare if len(set(bare)) == len(set(files)) else files)

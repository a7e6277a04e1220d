"""The same rows for both sides: lm-evaluation-harness's own tasks over local files, and ours.

Its task files are included from its package, so that prompts and scores are its own; only the rows come from here, the
examples are the first ones for every question (as ours are), and the names say so.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT_CHARACTERS = (2_000, 12_000)  # least and most of a long document
PREFIX = "rows_"  # before the names of its tasks


@dataclass(frozen=True)
class Job:
    """One comparison. theirs: names of its tasks, in `folder`. ours: name of our task; data: its rows."""

    folder: Path
    theirs: Sequence[str]
    ours: str
    data: Path


def cmmlu(folder: Path, data: Path, package: Path, subjects: Sequence[str], rows: int | None = None) -> Job:
    """The first `rows` questions of each subject, five examples before each. data: the published folder."""
    for subject in subjects:
        files = {}
        for split, limit in (("dev", None), ("test", rows)):
            with (data / split / f"{subject}.csv").open(encoding="utf-8-sig", newline="") as file:
                read = list(csv.reader(file))
            kept = folder / "ours" / split / f"{subject}.csv"
            kept.parent.mkdir(parents=True, exist_ok=True)
            with kept.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(read[: None if limit is None else limit + 1])
            values = [dict(zip(read[0], row, strict=True)) for row in read[1:]][:limit]
            files[split] = _write(folder / f"{subject}.{split}.jsonl", values)
        _task(folder, f"cmmlu_{subject}", package / "tasks/cmmlu" / f"cmmlu_{subject}.yaml", files, num_fewshot=5)
    return Job(folder, [f"{PREFIX}cmmlu_{subject}" for subject in subjects], "cmmlu", folder / "ours")


def gsm8k(folder: Path, data: Path, package: Path, rows: Iterable[int], max_new_tokens: int) -> Job:
    """Questions by chain of thought, five examples before each. data: the published files; rows: from 0, of its test
    file.
    """
    (folder / "ours").mkdir(parents=True)
    files = {}
    for split, source, places in (("train", "train_first1500.jsonl", range(5)), ("test", "test.jsonl", rows)):
        lines = (data / source).read_text(encoding="utf-8").splitlines()
        files[split] = _write(folder / "ours" / f"{split}.jsonl", [json.loads(lines[place]) for place in places])
    stops = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "max_gen_toks": max_new_tokens}
    shots = {"sampler": "first_n", "split": "train"}
    own = package / "tasks/gsm8k/gsm8k.yaml"
    _task(folder, "gsm8k", own, files, num_fewshot=5, generation_kwargs=stops, fewshot_config=shots)
    return Job(folder, [f"{PREFIX}gsm8k"], "gsm8k_cot", folder / "ours")


def perplexity(
    folder: Path, text: str, documents: int, start: str, characters: tuple[int, int] = DOCUMENT_CHARACTERS
) -> Job:
    """Stretches of the text, of so many characters at random, cut between paragraphs.

    start: the token that the harness puts before a text, as text. It scores a document's first token after that one;
    our documents begin with it, so that both score the same tokens.
    """
    (folder / "ours").mkdir(parents=True)
    values = [{"text": part} for part in _parts(text.split("\n\n"), documents, characters)]
    files = {"test": _write(folder / "documents.jsonl", values)}
    ours = [{"text": start + value["text"]} for value in values]
    settings = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "test_split": "test",
        "metric_list": [{"metric": name} for name in ("byte_perplexity", "bits_per_byte")],
    }
    _task(folder, "perplexity", None, files, **settings)
    return Job(folder, [f"{PREFIX}perplexity"], "perplexity", Path(_write(folder / "ours" / "documents.jsonl", ours)))


def _parts(paragraphs: Sequence[str], count: int, characters: tuple[int, int]) -> list[str]:
    draw, parts, part = random.Random(0), [], ""
    size = draw.randint(*characters)
    for paragraph in paragraphs:
        part = f"{part}\n\n{paragraph}" if part else paragraph
        if len(part) >= size:
            parts.append(part)
            part, size = "", draw.randint(*characters)
        if len(parts) == count:
            break
    return parts


def _write(path: Path, rows: Sequence[dict[str, str]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _task(folder: Path, name: str, own: Path | None, files: dict[str, str], **settings: Any) -> None:
    config = {
        **({"include": str(own)} if own else {}),
        "task": PREFIX + name,
        "tag": [],
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        **settings,
    }
    (folder / f"{PREFIX}{name}.yaml").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")  # is YAML

"""What earlier versions wrote is still read: runs go on to the same numbers, caches and journals are taken up.

The archives were written by the code of the commit in their names (make.py). Here they lie in another folder, as on a
machine to which somebody has moved them.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility.make import (
    EVALUATIONS,
    RUNS,
    circumstances,
    evaluated,
    evaluation_arguments,
    journal_lines,
    recorded,
    train_arguments,
)
from tests.support.fault_runs import Zygote, finished, leftovers, status

ARCHIVE = Path(__file__).with_name("written-by-6e1f680.tar.xz")
TOLERANCE = 1e-3  # relative, on another processor: it adds in another order, and training carries that on
NAMED_BY_FILES = (".tasks.data", ".tasks.contamination")  # keys of result.json whose own keys are paths
STOPPED = [name for name in RUNS if name != "finished"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("moved")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(made, filter="data")
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return found


def digests(folder: Path) -> dict[str, str]:
    """What lies below a folder, but for locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.name != ".lock"}


def tables(folder: Path) -> dict[str, int]:
    """The files of the token cache, and when each was written."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in (folder / "cache").rglob("*")
        if path.suffix in (".arrow", ".json")
    }


def lines(run: Path, last: int) -> list[str]:
    """metrics.jsonl up to a step."""
    found = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in found if json.loads(line)["step"] <= last]


def assert_close(found: Any, wanted: Any, expected: dict[str, Any]) -> None:
    """To the last digit where the same was computed by the same; elsewhere nearly."""
    if circumstances() == expected["circumstances"]:
        assert found == wanted
    else:
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            assert found[name] == pytest.approx(values, rel=TOLERANCE, abs=TOLERANCE), name


@pytest.mark.parametrize("name", STOPPED)
def test_a_run_goes_on(name: str, folder: Path, expected: dict[str, Any], zygote: Zygote, tmp_path: Path) -> None:
    run, wanted, cached = folder / "runs" / name, expected["runs"][name], tables(folder)
    (step,) = finished(run)
    before = lines(run, step)
    words = [*train_arguments(name, folder), "--run.resume", "must"]  # a fresh start would come to the same numbers
    processes = zygote.run(words, tmp_path / name, RUNS[name][0])
    assert set(processes.codes) == {0}, processes.output
    assert status(run)["state"] == "finished"
    assert leftovers(run) == []
    assert lines(run, step)[:-1] == before
    start = json.loads(lines(run, step)[-1])
    assert (start["step"], start["start"]) == (step, True)
    found = recorded(run)
    assert_close(found["metrics"], wanted["metrics"], expected)
    if circumstances() == expected["circumstances"]:
        assert found["weights"] == wanted["weights"]
    if same_libraries(expected):
        assert tables(folder) == cached, "nothing is tokenised again"


def same_libraries(expected: dict[str, Any]) -> bool:
    """Whether the token cache's keys, which name two libraries' versions, can be the same."""
    return all(circumstances()[name] == expected["circumstances"][name] for name in ("transformers", "tokenizers"))


def test_a_finished_run_is_known_as_finished(folder: Path, zygote: Zygote, tmp_path: Path) -> None:
    run = folder / "runs" / "finished"
    before = digests(run)
    processes = zygote.run(train_arguments("finished", folder), tmp_path / "again")
    assert processes.codes == [0], processes.output
    assert digests(run) == before


def test_a_finished_run_is_reported(folder: Path) -> None:
    from train.report.__main__ import main

    report = folder / "runs" / "finished" / "report.md"
    figures = re.findall(r"\d+\.\d{2,}", report.read_text(encoding="utf-8"))
    assert len(figures) > 5
    report.unlink()
    assert main([str(report.parent)]) == 0
    assert set(figures) <= set(re.findall(r"\d+\.\d{2,}", report.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["finished", "prompt", "sequence-classification", "zero2", "zero3"])
def test_a_checkpoint_is_merged(name: str, folder: Path, tmp_path: Path) -> None:
    """The merge itself compares its answers with those that the model gave in training."""
    from safetensors.torch import load_file
    from torch.testing import assert_close

    from train.merge.__main__ import main

    run = folder / "runs" / name
    assert main([str(run), str(tmp_path / "merged"), "--base", str(folder / "model")]) == 0
    if name == "finished":
        assert_close(load_file(tmp_path / "merged/model.safetensors"), load_file(run / "merged/model.safetensors"))


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_journal_is_taken_up(name: str, folder: Path, expected: dict[str, Any]) -> None:
    from eval.main import main

    out, wanted = folder / "evaluations" / name, expected["evaluations"][name]
    written = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert len(journal_lines(out)) == wanted["kept"]
    assert main(evaluation_arguments(name, folder)) == 0
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert len(journal_lines(out)) == wanted["answers"], "what was answered is not asked again"
    assert evaluated(out) == pytest.approx(wanted["estimates"], rel=1e-6)
    assert result["models"][0]["origin"] == written["models"][0]["origin"]
    new = keys_of(result) - keys_of(written)
    assert not keys_of(written) - keys_of(result)
    assert not new or result["schema_version"] > written["schema_version"], new


def keys_of(value: Any, path: str = "") -> set[str]:
    """Every key of a JSON document with those that lead to it; entries of a list have the same."""
    if path in NAMED_BY_FILES:
        return set()
    if isinstance(value, dict):
        return {key for name, inner in value.items() for key in {f"{path}.{name}", *keys_of(inner, f"{path}.{name}")}}
    return {key for inner in value for key in keys_of(inner, path)} if isinstance(value, list) else set()

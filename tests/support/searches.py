"""Searches in tests: real workers, with `fake_trainer` in place of the training process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.search.space import read_space
from train.search.study import Record, Study
from train.search.trial import Starter, arguments

if TYPE_CHECKING:
    from tests.support.fault_runs import Zygote

ROOT = Path(__file__).resolve().parents[2]
STEPS = 9


def write_space(folder: Path, **keys: Any) -> Path:
    """A space over two keys of the fake trainer; `keys` replace its own."""
    content = {
        "method": "tpe",
        "trials": 8,
        "parameters": {
            "optim.learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
            "optim.beta1": {"low": 0.5, "high": 0.9, "step": 0.1},
        },
    }
    path = folder / "space.yaml"
    path.write_text(json.dumps({**content, **keys}), encoding="utf-8")  # is YAML as well
    return path


def words(folder: Path, space: Path, *more: str) -> list[str]:
    """The command line of a search into folder/study."""
    return [
        "recipes/sft-full.yaml", "recipes/cpu.yaml", "--space", str(space), "--study", str(folder / "study"),
        "--duration.max_steps", str(STEPS), "--validation.every_steps", "1", *more,
    ]  # fmt: skip


def start(arguments: Sequence[str], seconds: float = 0.0, report: bool = False) -> subprocess.Popen[bytes]:
    """A search in a process of its own. seconds: of a step. report: whether it writes one, which takes a while."""
    command = [sys.executable, "-m", "tests.support.searches", *arguments]
    log = (Path(arguments[arguments.index("--study") + 1]).parent / "search.log").open("ab")
    variables = os.environ | {"FAKE_SECONDS": str(seconds), "FAKE_REPORT": str(report)}
    with log:
        return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log, process_group=0)


def records(folder: Path) -> list[Record]:
    """All trials of folder/study."""
    return Study(folder / "study", read_space(folder / "space.yaml")).records()


def outcomes(found: Sequence[Record]) -> list[Mapping[str, Any]]:
    """What must not depend on when a search was killed."""
    return [
        {"number": r.number, "state": r.state, "values": r.values, "value": r.value, "rungs": r.rungs} for r in found
    ]


def trained(folder: Path) -> list[str]:
    """`TRIAL STEP` of every step that was trained."""
    return (folder / "study" / "trained.log").read_text(encoding="utf-8").splitlines()


@dataclass(frozen=True)
class Forked:
    """A training process that the zygote has forked, with the part of Popen that a search uses."""

    zygote: Zygote
    pid: int

    def poll(self) -> int | None:
        code: int | None = self.zygote.ask(do="wait", pid=self.pid, seconds=0)["code"]
        return code


@dataclass(frozen=True)
class WarmStarter(Starter):
    """Starts the real trainer in processes that have imported all libraries."""

    zygote: Zygote = field(kw_only=True)

    def start(self, folder: Path, share: float) -> subprocess.Popen[bytes]:
        began = self.zygote.start(arguments(folder, share), folder / "output")
        return Forked(self.zygote, began.pids[0])  # type: ignore[return-value]


if __name__ == "__main__":
    from train.search.__main__ import main

    if os.environ["FAKE_REPORT"] != "True":
        without = types.SimpleNamespace(BEST="best.yaml", write_study_report=lambda study: study.folder / "report.md")
        sys.modules["train.search.report"] = without  # type: ignore
    sys.exit(main(sys.argv[1:], starter=Starter(words=(sys.executable, "-m", "tests.support.fake_trainer"))))

"""Searches in tests: real workers, with `fake_trainer` as the training process, or forks that run the real one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import psutil

from tests.support.training_runs import ROOT, environment
from train.failure.stop import read_status
from train.search.schedule import Rungs
from train.search.space import read_space
from train.search.study import Record, Study
from train.search.trial import Starter, arguments
from zerotune.common.files import json_object

if TYPE_CHECKING:
    from tests.support.fault_runs import Zygote

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


def start(
    arguments: Sequence[str], seconds: float = 0.0, report: bool = False, racing: int = 0
) -> subprocess.Popen[bytes]:
    """A search in a process of its own.

    seconds: of a step. report: whether it writes one, which takes a while. racing: see `race`.
    """
    command = [sys.executable, "-m", "tests.support.searches", *arguments]
    variables = os.environ | {"FAKE_SECONDS": str(seconds), "FAKE_REPORT": str(report), "FAKE_RACING": str(racing)}
    with log_of(arguments).open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log, process_group=0)


def log_of(arguments: Sequence[str]) -> Path:
    """Where a search that is started here writes what it says."""
    return Path(arguments[arguments.index("--study") + 1]).parent / "search.log"


def finish_with_kills(begin: Callable[[], Any], folder: Path, steps: int, dice: Random) -> int:
    """Search to the end through three kills by SIGKILL at random moments of the first `steps` steps, each within a
    trial that has begun: of the worker, of the training process, of both. Returns the exit code.
    """
    worker = begin()
    kinds = [("worker",), ("training",), ("worker", "training")]
    dice.shuffle(kinds)
    for victims, step in zip(kinds, sorted(dice.sample(range(1, steps + 1), 3)), strict=True):
        training = suspended_training(folder, step, dice.uniform(0, 0.3))
        assert worker.poll() is None
        if "worker" in victims:
            worker.kill()
            assert worker.wait() == -signal.SIGKILL
        training.kill() if "training" in victims else training.resume()
        if "worker" in victims:
            worker = begin()
    return int(worker.wait(200))


def suspended_training(folder: Path, steps: int, seconds: float) -> psutil.Process:
    """The training process of a trial that has trained a step and has not ended, `seconds` after all trials together
    have trained `steps` steps. It is suspended, so that this stays true.
    """
    deadline = time.monotonic() + 120
    while sum(map(last_step, runs_of(folder))) < steps and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(seconds)
    while time.monotonic() < deadline:
        for run in filter(last_step, runs_of(folder)):
            with contextlib.suppress(psutil.NoSuchProcess):
                training = psutil.Process(json_object(run / ".lock").get("pid"))
                if str(run / ".lock") not in [file.path for file in training.open_files()]:
                    continue  # it has ended
                training.suspend()
                while training.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    time.sleep(0.01)
                if read_status(run).get("state") == "running":
                    return training
                training.resume()
        time.sleep(0.02)
    raise AssertionError((folder / "search.log").read_text(encoding="utf-8"))


def runs_of(folder: Path) -> list[Path]:
    return sorted((folder / "study" / "trials").glob("*"))


def last_step(run: Path) -> int:
    """The last step that a run has written down."""
    with contextlib.suppress(FileNotFoundError):
        whole = (run / "metrics.jsonl").read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        return int(json.loads(whole[-1])["step"]) if whole else 0
    return 0


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


def starts(folder: Path) -> list[tuple[str, str, str]]:
    """(trial, step that it begins after, process of the search) of every training process."""
    lines = (folder / "study" / "starts.log").read_text(encoding="utf-8").splitlines()
    return [(trial, step, search) for trial, step, search in map(str.split, lines)]


def race(folder: Path, searches: int) -> None:
    """Let so many searches begin at once, and make up their minds slowly: what one may do twice without a lock, it
    does twice.
    """
    import optuna  # noqa: F401  (takes a second, which differs)

    decide = Rungs.promotable

    def promotable(self: Rungs, *arguments: Any, **options: Any) -> int | None:
        found = decide(self, *arguments, **options)
        time.sleep(0.1)
        return found

    Rungs.promotable = promotable  # type: ignore[method-assign]
    (folder / f"ready-{os.getpid()}").touch()
    while len(list(folder.glob("ready-*"))) < searches:
        time.sleep(0.01)


class Forked:
    """A process that a zygote has forked, with the parts of Popen that are used."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.zygote, self.pid, self.code = zygote, pid, None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.zygote.ask(do="wait", pid=self.pid, seconds=0)["code"]
        return self.code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = 60) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return code


@dataclass(frozen=True)
class WarmStarter(Starter):
    """Starts the real trainer in processes that have imported all libraries. seconds: that each step waits."""

    zygote: Zygote = field(kw_only=True)
    seconds: float = 0.0

    def start(self, folder: Path, share: float) -> subprocess.Popen[bytes]:
        slow = {"at": "train.engine.loop:Loop._update", "nth": 0, "do": f"sleep {self.seconds}"}
        began = self.zygote.start(arguments(folder, share), folder / "output", orders=[slow] if self.seconds else [])
        return Forked(self.zygote, began.pids[0])  # type: ignore[return-value]


def start_warm(zygote: Zygote, arguments: Sequence[str]) -> Forked:
    """A search over the real trainer; it and its trials are processes that have imported all libraries."""
    request = {"program": "tests.support.searches:search_with_forks", "environment": environment()}
    return Forked(zygote, zygote.ask(do="start", arguments=arguments, log=str(log_of(arguments)), **request)["pid"])


def search_with_forks(arguments: Sequence[str]) -> int:
    """The search that `start_warm` starts. Its trials are forks of its own process, with slow steps."""
    from tests.support import zygote
    from tests.support.fault_runs import Zygote
    from train.search.__main__ import main

    class Own(Zygote):
        def __init__(self) -> None:
            return

        def ask(self, **request: Any) -> dict[str, Any]:
            return zygote.DO[request["do"]](request)

    return main(arguments, starter=WarmStarter(zygote=Own(), seconds=0.4))


if __name__ == "__main__":
    from train.search.__main__ import main

    if os.environ["FAKE_REPORT"] != "True":
        without = types.SimpleNamespace(BEST="best.yaml", write_study_report=lambda study: study.folder / "report.md")
        sys.modules["train.search.report"] = without  # type: ignore
    if racing := int(os.environ["FAKE_RACING"]):
        race(log_of(sys.argv).parent, racing)
    sys.exit(main(sys.argv[1:], starter=Starter(words=(sys.executable, "-m", "tests.support.fake_trainer"))))

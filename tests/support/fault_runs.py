"""Training runs for the fault tests: a tiny random model with dropout, real processes, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.support.inject import VARIABLE
from tests.support.training_runs import BIN, ROOT, TINY, build_operator, environment, write_rows
from tests.support.training_runs import arguments as base_arguments
from train.checkpoint import commit, manifest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # pytest in the background: what it starts would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

STEPS = 12
PATIENCE = 120.0  # seconds; the machine may be busy
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "ACCELERATE_", "TORCHELASTIC_", "SLURM_")


def world(kind: str) -> int:
    """Processes of a kind of run."""
    return 1 if kind == "single" else 2


def model_with_dropout(folder: Path) -> Path:
    """The tiny model with dropout in its attention: only so does a resumed run depend on the random stream."""
    target = folder / "model"
    shutil.copytree(TINY, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    return target


class Workplace:
    """One data set and one model, and the command lines of runs over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.rows = write_rows(folder)
        self.model = model_with_dropout(folder)

    def arguments(self, run: Path, **options: object) -> list[str]:
        """A run of STEPS steps over more than one epoch, with a checkpoint every other step."""
        chosen: dict[str, object] = {
            "model.path": self.model,
            "batch.tokens_per_step": 256,
            "batch.tokens_per_micro_batch": 128,
            "duration.max_epochs": 9,
            "duration.max_steps": STEPS,
            "validation.at_start": "false",
            "validation.every_steps": 6,
            "checkpoint.every_steps": 2,
        }
        chosen |= {name.replace("__", "."): value for name, value in options.items()}
        return base_arguments(run, self.rows, **{name.replace(".", "__"): value for name, value in chosen.items()})


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(
    kind: str, rank: int, port: int, orders: list[dict[str, Any]] | None, ranks: int = 2
) -> dict[str, str]:
    """What `accelerate launch` with the config of that kind gives each process."""
    kept = {name: value for name, value in environment().items() if not name.startswith(LAUNCHER)}
    kept |= {"DS_ACCELERATOR": "cpu", VARIABLE: json.dumps(orders or [])}
    if kind == "single":
        return kept | {"ACCELERATE_USE_CPU": "true"}
    kept |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    kept |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if kind.startswith("zero"):
        kept["ACCELERATE_USE_DEEPSPEED"] = "true"
        kept["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(ROOT / "ds_configs" / f"{kind}.json")
    return kept


def launch_ranks(
    arguments: list[str],
    log: Path,
    orders: list[dict[str, Any]],
    before: tuple[str, ...] = (),
    config: str = "cpu_ddp",
    **variables: str,
) -> psutil.Popen:
    """`accelerate launch` with two DDP ranks (or another config) as a user starts it, in a session of its own.

    `before` goes in front of the command.
    """
    base = rank_environment("single", 0, 0, orders)
    base.pop("ACCELERATE_USE_CPU")
    base["PYTHONPATH"] = str(ROOT / "tests" / "support" / "plug")
    file = str(ROOT / "accelerate_configs" / f"{config}.yaml")
    launch = [sys.executable, str(BIN / "accelerate"), "launch", "--config_file", file]
    with log.open("w") as output:
        return psutil.Popen(
            [*before, *launch, "--main_process_port", "0", str(ROOT / "train" / "main.py"), *arguments],
            cwd=ROOT, env=base | variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


class Zygote:
    """Asks `zygote.py` for training processes."""

    def __init__(self) -> None:
        variables = {name: value for name, value in environment().items() if not name.startswith(LAUNCHER)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote"],
            cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["ready"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        arguments: list[str],
        log: Path,
        kind: str = "single",
        orders: list[dict[str, Any]] | None = None,
        ranks: int | None = None,
    ) -> Processes:
        """All ranks of one run, as many as usual or `ranks`. `log` is the beginning of the log files' names."""
        if kind.startswith("zero"):
            build_operator()
        port, count = free_port(), ranks or world(kind)
        started = []
        for rank in range(count):
            variables = rank_environment(kind, rank, port, orders, count)
            file = log.with_name(f"{log.name}.rank{rank}.log")
            pid = self.ask(do="start", environment=variables, arguments=arguments, log=str(file))["pid"]
            started.append((pid, file))
        return Processes(self, started)

    def run(
        self,
        arguments: list[str],
        log: Path,
        kind: str = "single",
        orders: list[dict[str, Any]] | None = None,
        ranks: int | None = None,
    ) -> Processes:
        """The same, and wait for its end."""
        with contextlib.closing(self.start(arguments, log, kind, orders, ranks)) as processes:
            processes.wait()
        return processes

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Processes:
    """The ranks of one run."""

    def __init__(self, zygote: Zygote, ranks: list[tuple[int, Path]]) -> None:
        self._zygote = zygote
        self.pids = [pid for pid, _ in ranks]
        self.logs = [file for _, file in ranks]
        self.codes: list[int | None] = [None for _ in ranks]

    def wait(self, seconds: float = PATIENCE) -> list[int | None]:
        """Exit codes of all ranks. As a launcher does, ends the others soon after one was killed or failed."""
        deadline = time.monotonic() + seconds
        while None in self.codes and time.monotonic() < deadline:
            for rank, pid in enumerate(self.pids):
                if self.codes[rank] is None:
                    self.codes[rank] = self._zygote.ask(do="wait", pid=pid, seconds=0.1)["code"]
            if any(self.codes):
                deadline = min(deadline, time.monotonic() + 10)
        return self.codes

    def signal(self, number: signal.Signals, ranks: tuple[int, ...] | None = None) -> None:
        """Send a signal to some ranks, or all."""
        for rank in range(len(self.pids)) if ranks is None else ranks:
            if self.codes[rank] is None:
                os.kill(self.pids[rank], number)

    def close(self) -> None:
        """Leave no process behind."""
        self.signal(signal.SIGKILL)
        for rank, pid in enumerate(self.pids):
            if self.codes[rank] is None:
                self._zygote.ask(do="wait", pid=pid, seconds=10)

    @property
    def output(self) -> str:
        """What all ranks said."""
        return "".join(f"--- {file.name}\n{file.read_text()}" for file in self.logs if file.exists())


def losses(run: Path) -> dict[int, float]:
    """step -> training loss, exactly as written."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def status(run: Path) -> dict[str, Any]:
    """The run's status.json."""
    return json.loads((run / "status.json").read_text(encoding="utf-8"))


def finished(run: Path) -> list[int]:
    """Steps with a finished checkpoint; each must verify, and nothing unfinished may be taken for one."""
    steps = commit.steps(run / "checkpoints")
    for step in steps:
        assert manifest.verify(commit.folder_of(run / "checkpoints", step)) is None, step
    return steps


def leftovers(run: Path) -> list[str]:
    """What interrupted saves left."""
    return [n for n in commit.names_in(run / "checkpoints") if n.endswith(".tmp") or n.startswith(".")]


def weights(run: Path, step: int = STEPS) -> dict[str, str]:
    """Digests of the weights and optimizer files of a checkpoint: equal where every bit is."""
    listed = manifest.read(commit.folder_of(run / "checkpoints", step))["files"]
    return {name: entry["sha256"] for name, entry in listed.items() if name != "state.json"}


def until(condition: Any, seconds: float = PATIENCE) -> None:
    """Wait for something to happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """A real file system of that size at `folder`; False where this user may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)

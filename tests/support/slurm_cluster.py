"""A real SLURM cluster on this machine: one controller and several nodes with GPUs that only count.

Needs Debian's packages slurm-wlm and munge, and no root. Everything lies in one folder and ends with `close`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from tests.support.training_runs import BIN, ROOT

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")
SEARCHED = f"{os.environ['PATH']}:/usr/sbin:/sbin"
GPUS = 2  # of each node
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY")

# cred_expire: a job that is requeued starts again only then. MinJobAge: we ask for jobs that ended long ago.
CONFIGURATION = """
ClusterName=zerotune
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0
ReturnToService=2
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout=10
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""

# The GPUs only count: whoever looks for real ones must find none, on a machine that has some as well.
SITE = "CONTAINER=(env CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu)\n"


def missing() -> str | None:
    """Why there can be no cluster here; None where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]
    return f"no {', '.join(absent)}: apt-get install --no-install-recommends slurm-wlm munge" if absent else None


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses right now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Cluster:
    """Nodes n0, n1, ... with GPUS each; `submit` and `wait` are all that most tests need."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.nodes = [f"n{i}" for i in range(nodes)]
        self._processes: dict[str, psutil.Popen] = {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment = {
            **kept,
            "PATH": f"{BIN}:{SEARCHED}",
            "SLURM_CONF": str(folder / "slurm.conf"),
            "ZEROTUNE_SITE": str(folder / "site.sh"),
            "OMP_NUM_THREADS": "1",
        }
        for name in ("munge", "state", *(f"spool-{node}" for node in self.nodes)):
            (folder / name).mkdir()
        self._write_files()
        self._start_all()

    def _write_files(self) -> None:
        ports = free_ports(len(self.nodes) + 1)
        lines = [
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=4 Gres=gpu:{GPUS}"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        settings = {"host": socket.gethostname(), "port": ports[0], "user": os.geteuid(), "folder": self.folder}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**settings, nodes="\n".join(lines)))
        for i in range(GPUS):
            (self.folder / f"nvidia{i}").touch()
        (self.folder / "gres.conf").write_text(
            f"Name=gpu Flags=nvidia_gpu_env File={self.folder}/nvidia[0-{GPUS - 1}]\n"
        )
        self.site("site")
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))

    def site(self, name: str, text: str = "") -> str:
        """A site file with these lines beside those that every job needs here."""
        file = self.folder / f"{name}.sh"
        file.write_text(SITE + text)
        return str(file)

    def _start_all(self) -> None:
        munge = self.folder / "munge"
        files = [f"--{kind}-file={munge / kind}" for kind in ("key", "pid", "log", "seed")]
        self._start("munged", ["munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files])
        self._until(lambda: (munge / "socket").exists(), "munged")
        self._start("slurmctld", ["slurmctld", "-D", "-c"])
        for node in self.nodes:
            self.start_node(node)
        self._until(lambda: self._ask("sinfo", "-h", "-o", "%t %D").split() == ["idle", str(len(self.nodes))], "nodes")

    def start_node(self, node: str) -> None:
        """Start a node; as root with a host name of its own."""
        command = ["slurmd", "-D", "-N", node]
        if os.geteuid() == 0:
            command = ["unshare", "--uts", "sh", "-c", f"hostname {node} && exec {' '.join(command)}"]
        self._start(node, command)

    def kill_node(self, node: str) -> None:
        """What a power cut does: everything on the node ends at once, and nobody says so."""
        daemon = self._processes.pop(node)
        _kill([daemon, *daemon.children(recursive=True), *self._steps(f"slurmd-{node}.log")])

    def _steps(self, log: str) -> list[psutil.Process]:
        """What runs in the jobs of a node: outside of its daemon's tree, but with its log open."""
        found = []
        for manager in psutil.process_iter(["name"]):
            if manager.info["name"] == "slurmstepd" and str(self.folder / log) in _open_files(manager):
                found += [manager, *manager.children(recursive=True)]
        return found

    def _start(self, name: str, command: Sequence[str]) -> None:
        # Daemons that share our standard streams would keep a caller's pipe open.
        with (self.folder / f"{name}.out").open("w") as out:
            self._processes[name] = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment, start_new_session=True
            )

    def _until(self, condition: object, what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():  # type: ignore[operator]
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {p}\n{p.read_text()[-2000:]}" for p in self.folder.glob("*.*") if p.is_file())
                raise RuntimeError(f"{what} did not come up\n{logs}")
            time.sleep(0.1)

    def _ask(self, *command: str) -> str:
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return answer.stdout

    def run(self, *command: str, **variables: str) -> str:
        """A SLURM command, from the project's folder; its output."""
        answer = subprocess.run(
            command, env={**self.environment, **variables}, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
        return answer.stdout

    def submit(self, *words: object, **variables: str) -> str:
        """`sbatch`; the job's number."""
        output = f"--output={self.folder}/%j.out"
        return self.run("sbatch", "--parsable", output, *map(str, words), **variables).strip()

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(
            word.split("=", 1) for word in self._ask("scontrol", "-o", "show", "job", job).split() if "=" in word
        )

    def wait(self, *jobs: str, seconds: float = 600) -> list[str]:
        """The states in which jobs have ended."""
        self.until(lambda: all(self.show(job).get("JobState") in ENDED for job in jobs), jobs, seconds)
        return [self.show(job)["JobState"] for job in jobs]

    def until(self, condition: object, jobs: Iterable[str] = (), seconds: float = 600) -> None:
        """Wait for something to happen; shows the jobs where it does not."""
        deadline = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline, "\n".join(f"{self.show(job)}\n{self.log(job)}" for job in jobs)
            time.sleep(0.5)

    def log(self, job: str) -> str:
        """What a job has written."""
        file = self.folder / f"{job}.out"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def close(self) -> None:
        """Leave no process behind."""
        self._ask("scancel", "--full", "--user", str(os.geteuid()))
        for node in self.nodes:
            _kill(self._steps(f"slurmd-{node}.log"))
        for process in self._processes.values():
            _kill([process, *process.children(recursive=True)])


def _open_files(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return [file.path for file in process.open_files()]
    return []


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()

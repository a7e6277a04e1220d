"""The batch scripts where there is no SLURM: `srun` runs its command here, and `accelerate` writes down its words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.training_runs import BIN, ROOT

# $STUBS is the folder of these. `chatter`, where there is one, speaks as a site's TaskProlog does: before the command.
PROGRAMS = {
    "srun": """while [[ $1 == -* ]]; do shift; done
[ ! -e "$STUBS/chatter" ] || . "$STUBS/chatter"
SLURM_NODEID=0 exec "$@"
""",
    "accelerate": """printf '%s\\0' "$@" >"$STUBS/launched"
[ ! -e "$STUBS/training" ] || . "$STUBS/training"
""",
    "scontrol": """case $1 in
    requeue) echo "$2" >>"$STUBS/requeued" ;;
    --oneliner) cat "$STUBS/job" ;;
esac
""",
    "squeue": "echo RUNNING\n",
    "scancel": 'touch "$STUBS/cancelled"\n',
}


class Stubs:
    """One job on one node without GPUs, whose scripts find these programs first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for name, script in PROGRAMS.items():
            (folder / name).write_text(f"#!/bin/bash\n{script}", encoding="utf-8")
            (folder / name).chmod(0o755)
        (folder / "site.sh").touch()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "ZEROTUNE"))}
        self.environment = kept | {
            "PATH": f"{folder}:{BIN}:{os.environ['PATH']}",
            "STUBS": str(folder),
            "ZEROTUNE_SITE": str(folder / "site.sh"),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_ON_NODE": "1",
        }

    def start(self, *words: object, place: Path = ROOT, **variables: str) -> subprocess.Popen[bytes]:
        """A script of slurm/ with its words; `said` is what it has written."""
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(
                ["bash", *map(str, words)], cwd=place, env=self.environment | variables,
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def run(self, *words: object, place: Path = ROOT, **variables: str) -> int:
        """The same, to its end; the exit code."""
        return self.start(*words, place=place, **variables).wait(60)

    @property
    def said(self) -> str:
        """What the last script has written."""
        return (self.folder / "said").read_text(encoding="utf-8")

    @property
    def launched(self) -> list[str] | None:
        """The words that `accelerate` was given; None if it was not started."""
        file = self.folder / "launched"
        return file.read_bytes().decode().split("\0")[:-1] if file.exists() else None

    @property
    def requeued(self) -> bool:
        """Whether SLURM was asked to start the job again."""
        return (self.folder / "requeued").exists()

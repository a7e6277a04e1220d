"""F24: runs that are killed, and asked to stop, at random points again and again, until so many kills are survived.

    python -m tests.faults.soak --kills 200 [--kinds single ddp zero2] [--seed 0]

Each run is started again until it is finished; then its losses and its final weights must be those of a run that nobody
disturbed, to the last bit. Chance is a function of the seed. Prints what was done and `kills=... equal_runs=...`.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.support.fault_runs import Workplace, Zygote, finished, leftovers, losses, status, weights, world
from tests.support.save_points import POINTS

UPDATE = "train.engine.loop:Loop._update"
STEPS = 20
STOPS = ("SIGTERM", "SIGUSR1", "SIGUSR2")
KINDS = ("single", "ddp", "zero2")


def order(chance: random.Random, kind: str) -> dict[str, Any]:
    """What happens to a life: one rank is killed at a step or in a save, or asked to stop at a step."""
    rank = chance.randrange(world(kind))
    what = chance.choice(("step", "save", "stop"))
    if what == "save":
        point, _ = chance.choice(POINTS[kind])
        return {**point, "nth": chance.randint(1, 2), "do": "SIGKILL"}
    do = "SIGKILL" if what == "step" else chance.choice(STOPS)
    return {"at": UPDATE, "nth": chance.randint(1, 5), "rank": rank, "do": do}


class Soak:
    """Runs of one kind. kills and stops: survived so far, by what they hit."""

    def __init__(self, zygote: Zygote, workplace: Workplace, folder: Path, kind: str, seed: int) -> None:
        self.zygote, self.workplace, self.folder, self.kind = zygote, workplace, folder, kind
        folder.mkdir()
        self.chance = random.Random(f"{seed} {kind}")
        self.survived: collections.Counter[str] = collections.Counter()
        self.runs = self.lives = 0
        self.reference = folder / "reference"
        assert set(self._live(self.reference, []).codes) == {0}

    def run(self) -> None:
        """One run, disturbed until it is finished."""
        run = self.folder / f"run{self.runs}"
        while True:
            planned = order(self.chance, self.kind)
            processes = self._live(run, [planned])
            if set(processes.codes) == {0} and status(run)["state"] == "finished":
                break
            killed = planned["do"] == "SIGKILL"
            expected = -9 in processes.codes if killed else set(processes.codes) == {0}
            assert expected, (planned, processes.output)
            finished(run)  # each of its checkpoints verifies
            self.survived["kills" if killed else "stops"] += 1
        assert losses(run) == losses(self.reference)
        assert weights(run, STEPS) == weights(self.reference, STEPS)
        assert leftovers(run) == []
        self.runs += 1

    def _live(self, run: Path, orders: Sequence[dict[str, Any]]) -> Any:
        options = {"duration__max_steps": STEPS, "duration__max_epochs": 15, "validation__every_steps": 10}
        words = self.workplace.arguments(run, merge__at_end="false", **options)
        self.lives += 1
        return self.zygote.run(words, self.folder / f"life{self.lives}", self.kind, list(orders))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many must be survived")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    zygote, start = Zygote(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zerotune-soak-") as name:
        workplace = Workplace(Path(name) / "workplace")
        soaks = [Soak(zygote, workplace, Path(name) / kind, kind, given.seed) for kind in given.kinds]
        with tqdm(total=given.kills, unit="kill", disable=None) as bar:
            while (kills := sum(soak.survived["kills"] for soak in soaks)) < given.kills:
                bar.update(kills - bar.n)
                for soak in soaks:
                    soak.run()
    zygote.close()
    for soak in soaks:
        print(f"{soak.kind}: {soak.runs} runs in {soak.lives} lives, {dict(soak.survived)}, all equal to the last bit")
    kills, runs = sum(soak.survived["kills"] for soak in soaks), sum(soak.runs for soak in soaks)
    print(f"kills={kills} equal_runs={runs} minutes={(time.monotonic() - start) / 60:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

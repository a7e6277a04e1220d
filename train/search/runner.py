"""The loop of one process over a study: takes trials up, watches them, records how they end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from train.config import Config
from train.failure.stop import STOP_FILE
from train.recipe import parse
from train.search.draw import distributions, draw
from train.search.schedule import Rungs, below_median
from train.search.study import STALE_SECONDS, Claim, Record, Study, best
from train.search.trial import Ended, Starter, Trial, write_recipe
from zerotune.common.console import counted, duration, say
from zerotune.common.errors import UserError
from zerotune.common.files import write_atomically
from zerotune.common.metric_format import plain

LOOK_SECONDS = 1.0
POLL_SECONDS = 0.05  # a trial that the median stops trains on for so long
SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class Running:
    """A trial that this process runs. place: which of its workers. seen: how many validations were recorded."""

    number: int
    place: int
    trial: Trial
    claim: Claim
    seen: int = 0


class StopRequest:
    """Signals, and a deadline: the first stops the trials, which save; a second Ctrl-C ends them at once."""

    def __init__(self, after_minutes: float | None, file: Path | None) -> None:
        """file: also stop once it exists; it is removed then."""
        self.reason = ""
        self.signal: int | None = None
        self.interrupts = 0
        self._file = file
        self._deadline = None if after_minutes is None else time.monotonic() + 60 * after_minutes

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            if before[number] != signal.SIG_IGN:  # nohup
                signal.signal(number, self._take)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        self.signal = self.signal or number
        self.interrupts += number == signal.SIGINT

    @property
    def exit_code(self) -> int:
        """Of a stopped search: 0, or 128 + signal after Ctrl-C or a closed terminal."""
        return 128 + self.signal if self.signal in (signal.SIGINT, signal.SIGHUP) else 0

    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        if not self.reason and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = "run.stop_after_minutes"
        if not self.reason and self._file is not None and self._file.exists():
            self._file.unlink(missing_ok=True)
            self.reason = f"{self._file.name} file"
        return bool(self.reason)


class Search:
    """Runs a study's trials in `workers` places at once, until there is nothing left to do here."""

    def __init__(
        self, study: Study, base: Config, arguments: Sequence[str], starter: Starter, workers: int, stop: StopRequest
    ) -> None:
        self.study, self.base, self.arguments = study, base, arguments
        self.starter, self.workers, self.stop = starter, workers, stop
        self.space, self.rungs = study.space, Rungs.of(study.space.config)
        self.environments = environments(workers)
        self.running: list[Running] = []
        self._looked = -math.inf  # when nothing was found to start; others promote trials too
        self._awaited: int | None = None

    def run(self) -> bool:
        """Whether all trials of the study have ended. Stops early when asked to."""
        while True:
            if time.monotonic() > self._looked + LOOK_SECONDS:
                self._start_all()
            if not self.running and (self.stop.requested() or not self._awaits_lost_host()):
                return not self.stop.requested() and self._close()
            self._poll()
            time.sleep(POLL_SECONDS)

    def _start_all(self) -> None:
        """Start trials until all workers have one, or there is none to start."""
        while len(self.running) < self.workers and not self.stop.requested():
            begun = self._next()
            if begun is None:
                self._looked = time.monotonic()
                break
            self.running.append(begun)

    def _awaits_lost_host(self) -> bool:
        """Whether a trial may soon be taken over from a worker of another host that has died."""
        found = self.study.lost()
        if found and found[0] != self._awaited:
            self._awaited, (name, silent) = found
            left = duration(max(STALE_SECONDS - silent, 0))
            say(
                f"trial {self._awaited}: {name} has given no sign of life for {duration(silent)}; waiting {left} for it"
            )
        return found is not None

    def _poll(self) -> None:
        stopping = self.stop.requested()
        for running in list(self.running):
            running.claim.beat()
            if not stopping:
                self._watch(running)
            elif self.stop.interrupts > 1:
                running.trial.kill()
            elif not running.trial.stopping:
                running.trial.interrupt()
            ended = running.trial.poll()
            if ended is not None:
                self.running.remove(running)
                self._looked = -math.inf
                self._record(running, ended)
                running.claim.release()

    # What to do next

    def _next(self) -> Running | None:
        """A trial to run, claimed: one that a killed process left, one to promote, or a new one."""
        with self.study.locked():
            records = self.study.records()
            for record in records:
                if record.state == "running" and (claim := self._claim(record.number)):
                    return self._taken(record.number, record.target, claim)
            all_drawn = len(records) >= self.space.trials
            number = self.rungs.promotable(records, self.study.sign, all_drawn)
            if number is not None and (claim := self._claim(number)):
                target = records[number].target + 1
                self.study.note(number, target=target)
                say(f"trial {number}: promoted, it resumes at step {records[number].rungs[-1][0]:,}")
                return self._taken(number, target, claim)
            if all_drawn:
                return None
            number, target = len(records), self.rungs.first(len(records))
            drawn = draw(self.space, number, records, self.study.sign)
            if drawn.repeated is not None:
                say(f"trial {number}: the first draw was that of trial {drawn.repeated} again; drawn anew")
            claim = self._claim(number)
            assert claim is not None, "a number that no trial has yet is claimed"
            self.study.add(drawn.values, distributions(self.space), target=target, repeated=drawn.repeated)
            return self._taken(number, target, claim)

    def _claim(self, number: int) -> Claim | None:
        if any(number == running.number for running in self.running):
            return None
        return self.study.claim(number)

    def _taken(self, number: int, target: int, claim: Claim) -> Running | None:
        """A claimed trial with its recipe written. A refused recipe ends the trial at once."""
        record = self.study.records()[number]
        folder, settings = self.study.trial_folder(number), self.space.settings(record.values)
        try:
            write_recipe(folder, self._recipe(settings), settings)
        except UserError as error:
            reason = " ".join(str(error).split())
            self._end(record, "failed", None, reason, 0, 0.0)
            self._say(number, f"failed: {reason}", None, 0, 0.0)
            claim.release()
            return self._next()
        place = min(set(range(self.workers)) - {running.place for running in self.running})
        starter = dataclasses.replace(self.starter, environment=self.environments[place])
        trial = Trial(folder, self.base.validation.metric, self.rungs.shares[target], starter)
        return Running(number, place, trial, claim)

    def _recipe(self, settings: Mapping[str, object]) -> Config:
        """The base recipe with a trial's settings; nothing is merged."""
        config = parse(self.arguments, [(key, value, "the search") for key, value in settings.items()])
        return dataclasses.replace(
            config,
            run=dataclasses.replace(config.run, resume="auto", stop_after_minutes=None),
            merge=dataclasses.replace(config.merge, at_end=False),
            validation=dataclasses.replace(config.validation, metric=self.base.validation.metric),
        )

    # What becomes of a trial

    def _watch(self, running: Running) -> None:
        """Record new validations in order; stop the trial where the median says so."""
        found = running.trial.upto_share()
        if len(found) <= running.seen or running.trial.pruned:
            return
        for count in range(running.seen + 1, len(found) + 1):
            step, value = found[count - 1]
            self.study.validated(running.number, step, value)
            reason = self._stopped_by_median(running.number, found[:count])
            if reason and step != running.trial.total_steps:
                running.trial.prune(reason, found[:count])  # what it trains until it has stopped does not count
                break
        running.seen = len(found)

    def _stopped_by_median(self, number: int, found: Sequence[tuple[int, float]]) -> str:
        config = self.space.config
        if config.pruner != "median" or number < config.startup_trials:
            return ""
        others = [record.validations for record in self.study.records() if record.state == "complete"]
        return below_median(found, others, self.study.sign, config.startup_trials)

    def _record(self, running: Running, ended: Ended) -> None:
        """Write down how a start of a trial ended."""
        self._watch(running)
        trial, record = running.trial, self.study.records()[running.number]
        found = trial.upto_share() if not trial.pruned else trial.pruned_at
        seconds, steps = record.seconds + trial.seconds, trial.step
        if ended.kind == "stopped":
            self.study.note(running.number, seconds=seconds, steps=steps)
            return
        if trial.pruned:
            ended = Ended("pruned", trial.pruned)
        value = min((value for _, value in found), key=lambda value: self.study.sign * value, default=None)
        if value is None and ended.kind != "failed":
            ended = Ended("failed", f"no finite validation/{self.base.validation.metric}")
        if ended.kind == "rung":
            assert value is not None
            missing = record.target + 1 - len(record.rungs)  # a bracket of hyperband may begin at a later rung
            rungs = [*record.rungs, *[(found[-1][0], value)] * missing]
            self.study.note(running.number, rungs=rungs, seconds=seconds, steps=steps)
            self._say(running.number, f"waits at {self._rung(record.target)}", value, steps, trial.seconds)
            return
        self._end(record, ended.kind, value, ended.reason, steps, seconds)
        what = ended.kind if ended.kind == "complete" else f"{ended.kind}: {ended.reason}"
        self._say(running.number, what, value, steps, seconds)

    def _rung(self, rung: int) -> str:
        return f"rung {rung + 1} of {len(self.rungs.shares)} ({100 * self.rungs.shares[rung]:.3g} % of its steps)"

    def _end(self, record: Record, state: str, value: float | None, reason: str, steps: int, seconds: float) -> None:
        """Record the end of a trial in the study and in its folder."""
        assert state in ("complete", "pruned", "failed")
        self.study.end(
            record.number, state, value, reason, steps=steps, seconds=seconds, launch=list(self.starter.launch)
        )
        folder = self.study.trial_folder(record.number)
        (folder / STOP_FILE).unlink(missing_ok=True)
        facts = {"trial": record.number, "state": state, "reason": reason, "value": value, "values": record.values}
        write_atomically(folder / "trial.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    def _say(self, number: int, what: str, value: float | None, steps: int, seconds: float) -> None:
        """One line for what became of a trial, with the best so far and the time that is left."""
        records = self.study.records()
        ended = [record for record in records if record.state != "running"]
        leader = best(records, self.study.sign)
        metric = self.base.validation.metric
        shown = f", {metric} {plain(value)}" if value is not None else ""
        leads = f"; best {plain(leader.value)} (trial {leader.number})" if leader and leader.value is not None else ""
        left = self.space.trials - len(ended)
        mean = sum(record.seconds for record in ended) / max(len(ended), 1)
        eta = f"; about {duration(left * mean / self.workers)} left" if left and ended else ""
        say(
            f"[{len(ended)}/{self.space.trials}] trial {number}: {what}{shown}, {counted(steps, 'step')} in "
            f"{duration(seconds)}{leads}{eta}"
        )

    def _close(self) -> bool:
        """Whether every trial has ended; those that wait at a rung end here once none is running any more."""
        with self.study.locked():
            records = self.study.records()
            if len(records) < self.space.trials or any(record.state == "running" for record in records):
                return False
            for record in records:
                if record.state == "paused":
                    step, value = record.rungs[-1]
                    rung = self._rung(len(record.rungs) - 1)
                    reason = f"at {rung}, step {step}: not in the best 1/{self.rungs.reduction}"
                    self._end(record, "pruned", value, reason, record.steps, record.seconds)
        return True


def environments(workers: int) -> list[dict[str, str]]:
    """What the trials in each place of one process find in their environment: the GPUs and cores are divided."""
    gpus = (
        os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        if "CUDA_VISIBLE_DEVICES" in os.environ
        else [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    )
    found: list[dict[str, str]] = [{} for _ in range(workers)]
    for place, variables in enumerate(found):
        if workers > 1 and len(gpus) > 1:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[place::workers] or [gpus[place % len(gpus)]])
        if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
            variables["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // workers))
    return found

"""A checkpoint as a source of answers: from the journal what it has answered before, from its weights the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from eval.config import Config
from eval.ranks import Ranks
from zerotune.common.console import say
from zerotune.common.masking import printable
from zerotune.inference import answer_cache
from zerotune.inference.answer_cache import Journal
from zerotune.inference.budget import Budget, choose
from zerotune.inference.checkpoint import Checkpoint
from zerotune.inference.reasoning import set_aside, special_marks
from zerotune.inference.requests import Answer, Head, Request
from zerotune.inference.runner import Model, answer
from zerotune.models.precision import DTYPES, choose_precision

TOLD_SECONDS = 60.0


def every(
    seconds: float, title: str, total: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """For a log file, which shows no bar: told of each answer, says how many there are, at most once in `seconds`."""
    start = last = clock()
    done = 0

    def tell() -> None:
        nonlocal last, done
        done, now = done + 1, clock()
        if now - last >= seconds:
            last = now
            say(f"{title}: {done:,} of {total:,} answered, {now - start:.0f} s")

    return tell


def open_journal(config: Config, ranks: Ranks) -> Journal:
    """What the first rank reads is what all ranks know: they must agree on what is left to be asked."""
    folder = Path(config.out) / "journal"
    goes_on = ranks.index == 0 and config.resume == "auto"
    known, begun = answer_cache.read(folder) if goes_on else {}, answer_cache.first_day(folder) if goes_on else None
    known, begun = ranks.share((known, begun or datetime.now(UTC).date()))
    return Journal(folder, ranks.index, known, begun)


class Speaker:
    """A checkpoint with one head, as a source of answers; its weights are loaded when something is asked anew.

    tokens: how many have gone through the model so far, on all ranks (see `Model` in
    zerotune.inference.runner). reused: requests whose answers were known. loading_seconds: of its weights.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        head: Head,
        config: Config,
        ranks: Ranks,
        notes: Journal,
        digests: Mapping[str, str],
    ) -> None:
        self._checkpoint, self._head, self._config, self._ranks, self._notes = checkpoint, head, config, ranks, notes
        self._precision = choose_precision(config.precision, ranks.device.type == "cuda")
        settings: list[str] = [head, self._precision, config.quantization]
        if special_marks(checkpoint.tokenizer):  # answers of before came without them, thoughts and all
            settings.append("with marks of reasoning")
        self._identity = answer_cache.identity(digests, settings)
        self._model: tuple[Model, Budget] | None = None
        self.tokens, self.reused, self.loading_seconds = 0, 0, 0.0
        self._told: set[str] = set()  # tasks of whose known answers was told: each round asks, one line is enough

    def answers(self, requests: Sequence[Request], task: str) -> Iterator[Answer]:
        """The answers in order, on every rank, without what the model thought before it."""
        known = self._notes.known(self._identity, requests)
        title = printable(f"{self._checkpoint.name}: {task}")
        console = Console(stderr=True, quiet=self._ranks.index > 0, highlight=False, soft_wrap=True)
        self.reused += sum(request in known for request in requests)
        if (count := self._notes.from_before(self._identity, requests)) and task not in self._told:
            self._told.add(task)
            console.print(f"{title}: {count} of {len(requests)} answers from the journal", markup=False)
        left = list(dict.fromkeys(request for request in requests if request not in known))
        if left:
            with Progress(console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
                bar = progress.add_task(title, total=len(left) / self._ranks.count)
                line = every(
                    TOLD_SECONDS, title, len(left) // self._ranks.count, lambda text: console.print(text, markup=False)
                )
                known |= self._asked(left, (lambda: progress.advance(bar)) if sys.stderr.isatty() else line)
        tokenizer = self._checkpoint.tokenizer
        return iter([set_aside(known[request], request, tokenizer) for request in requests])

    def _asked(self, requests: Sequence[Request], on_answer: Callable[[], None]) -> dict[Request, Answer]:
        def note(request: Request, found: Answer) -> None:
            self._notes.write(self._identity, request, found)
            on_answer()

        model, budget = self._loaded()
        before = model.tokens
        new = dict(zip(requests, answer(model, budget, requests, self._ranks, note), strict=True))
        self.tokens += sum(self._ranks.gather([model.tokens - before]))
        self._notes.learn(self._identity, new)
        return new

    def _loaded(self) -> tuple[Model, Budget]:
        if self._model is None:
            start = time.perf_counter()
            say(f"loading {self._checkpoint.name}")
            config, device = self._config, self._ranks.device
            if stored := self._checkpoint.quantized:
                console = Console(stderr=True, quiet=self._ranks.index > 0, highlight=False, soft_wrap=True)
                name = self._checkpoint.name
                console.print(f"{name}: weights stored in {stored}, evaluated dequantised", markup=False)
            model = self._checkpoint.load(self._head, self._precision, config.quantization, device)
            self._model = model, choose(config.batch_tokens, self._checkpoint.config, DTYPES[self._precision], device)
            self.loading_seconds += time.perf_counter() - start
        return self._model

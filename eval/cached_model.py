"""Answers requests from the cache where possible, from the model otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from eval.config import Config
from eval.distributed import Ranks
from zerotune.common.console import say
from zerotune.common.mask_secrets import printable
from zerotune.inference import answer_cache
from zerotune.inference.answer_cache import AnswerCache
from zerotune.inference.batch_size import Budget, choose_budget
from zerotune.inference.checkpoint import Checkpoint
from zerotune.inference.reasoning import reasoning_tokens, strip_reasoning
from zerotune.inference.requests import Answer, Head, Request
from zerotune.inference.runner import Model, answer
from zerotune.models.precision import DTYPES, choose_precision

LOG_SECONDS = 60.0


def log_progress(
    seconds: float, title: str, total: int, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """Progress for a log file. Call the result after each answer; it logs a line at most every `seconds`."""
    start = last = clock()
    done = 0

    def on_answer() -> None:
        nonlocal last, done
        done, now = done + 1, clock()
        if now - last >= seconds:
            last = now
            log(f"{title}: {done:,} of {total:,} answered, {now - start:.0f} s")

    return on_answer


def open_answer_cache(config: Config, ranks: Ranks) -> AnswerCache:
    """The cached answers, read by the first rank and shared: all ranks must agree on which requests are left."""
    folder = Path(config.out) / "journal"
    answers, start_date = {}, None
    if ranks.index == 0 and config.resume == "auto":
        answers, start_date = answer_cache.read_answers(folder), answer_cache.start_date(folder)
    answers, start_date = ranks.share((answers, start_date or datetime.now(UTC).date()))
    return AnswerCache(folder, ranks.index, answers, start_date)


class CachedModel:
    """A checkpoint with one head; its weights are loaded at the first request that is not cached.

    tokens: number of tokens processed so far, on all ranks (see `zerotune.inference.runner.Model`). reused: number of
    requests answered from the cache. loading_seconds: time spent loading the weights.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        head: Head,
        config: Config,
        ranks: Ranks,
        cache: AnswerCache,
        digests: Mapping[str, str],
    ) -> None:
        self._checkpoint, self._head, self._config, self._ranks, self._cache = checkpoint, head, config, ranks, cache
        self._precision = choose_precision(config.precision, ranks.device.type == "cuda")
        settings: list[str] = [head, self._precision, config.quantization]
        if reasoning_tokens(checkpoint.tokenizer):  # older caches hold answers decoded without these tokens
            settings.append("with marks of reasoning")  # part of the key: never change this text
        self._key = answer_cache.model_key(digests, settings)
        self._model: tuple[Model, Budget] | None = None
        self.tokens, self.reused, self.loading_seconds = 0, 0, 0.0
        self._reported: set[str] = set()  # tasks whose cached answers were reported already

    def answers(self, requests: Sequence[Request], task: str) -> Iterator[Answer]:
        """The answers in order, on every rank, with the reasoning separated."""
        cached = self._cache.lookup(self._key, requests)
        title = printable(f"{self._checkpoint.name}: {task}")
        console = Console(stderr=True, quiet=self._ranks.index > 0, highlight=False, soft_wrap=True)
        self.reused += sum(request in cached for request in requests)
        if (count := self._cache.count_reused(self._key, requests)) and task not in self._reported:
            self._reported.add(task)
            console.print(f"{title}: {count} of {len(requests)} answers from the journal", markup=False)
        left = list(dict.fromkeys(request for request in requests if request not in cached))
        if left:
            with Progress(console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
                bar = progress.add_task(title, total=len(left) / self._ranks.count)
                log = log_progress(
                    LOG_SECONDS, title, len(left) // self._ranks.count, lambda text: console.print(text, markup=False)
                )
                cached |= self._compute(left, (lambda: progress.advance(bar)) if sys.stderr.isatty() else log)
        tokenizer = self._checkpoint.tokenizer
        return iter([strip_reasoning(cached[request], request, tokenizer) for request in requests])

    def _compute(self, requests: Sequence[Request], on_answer: Callable[[], None]) -> dict[Request, Answer]:
        def store(request: Request, found: Answer) -> None:
            self._cache.write(self._key, request, found)
            on_answer()

        model, budget = self._load()
        before = model.tokens
        new = dict(zip(requests, answer(model, budget, requests, self._ranks, store), strict=True))
        self.tokens += sum(self._ranks.gather([model.tokens - before]))
        self._cache.add(self._key, new)
        return new

    def _load(self) -> tuple[Model, Budget]:
        if self._model is None:
            start = time.perf_counter()
            say(f"loading {self._checkpoint.name}")
            config, device = self._config, self._ranks.device
            if stored := self._checkpoint.quantized:
                say(f"{self._checkpoint.name}: weights stored in {stored}, evaluated dequantised")
            model = self._checkpoint.load(self._head, self._precision, config.quantization, device)
            self._model = (
                model,
                choose_budget(config.batch_tokens, self._checkpoint.config, DTYPES[self._precision], device),
            )
            self.loading_seconds += time.perf_counter() - start
        return self._model

"""Numbers in texts and answers: whether a model expects one where it stands, and which.

A checkpoint that reads numbers as values predicts a token and a distribution; any other one writes digits: it is asked
to continue the text before each number, and what it writes there is read by the same rules (docs/numbers.md).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from eval.metrics import predicted_numbers as metrics
from eval.metrics.perplexity import windows
from eval.protocols import Sample, Table, Task
from eval.tasks.perplexity import check, passages, texts_of
from zerotune.common.metric_format import plain
from zerotune.data.fields import RowError
from zerotune.data.hub import Hub
from zerotune.data.numbers_in_text import find_numbers
from zerotune.data.rows import Example, examples
from zerotune.inference.requests import Answer, Generate, Generated, Measure, Measured, Request

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

BEFORE = " \t\r\n$€£¥₹("  # may stand between a prompt and the number that it asks for


def ask(example: Example, prompter: Prompter) -> Sequence[Request]:
    """One request for each window of a text or answer; for a model that writes digits, also one for each number."""
    requests: list[Request] = []
    for passage in passages(example, prompter):
        found = prompter.numbers_of(passage)
        size = prompter.window_tokens or len(passage.ids)
        for start, scored_from, end in windows(len(passage.ids), passage.first, size, max(size // 2, 1)):
            own = {at: value for at, value in found.values.items() if scored_from <= at < end}
            ids, inside = passage.ids[start:end], tuple(at - start for at in found.inside if scored_from <= at < end)
            requests.append(
                Measure(ids, scored_from - start, tuple(at - start for at in own), (*own.values(),), inside)
            )
            if not prompter.reads_numbers:
                limit = prompter.max_new_tokens
                requests += [Generate(passage.ids[start:at], limit, prompter.stop_ids) for at in own]
    return requests


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """Counts and sums over the scored positions of a row, and the errors of its numbers."""
    measured = [answer for answer in answers if isinstance(answer, Measured)]
    values = _joined(answer.values for answer in measured)
    ranks = _joined(answer.ranks for answer in measured)
    predicted: list[float | None]
    if all(answer.as_values for answer in measured):
        medians = _joined(answer.medians for answer in measured)
        predicted = [value if rank == 1 else None for value, rank in zip(medians, ranks, strict=True)]
    else:
        predicted = [written_number(answer.text) for answer in answers if isinstance(answer, Generated)]
    pairs = [(found, value) for found, value in zip(predicted, values, strict=True) if found is not None]
    sums = {
        "numbers": float(len(values)),
        "texts": float(sum(answer.texts for answer in measured)),
        "found": float(len(pairs)),
        "mistaken": float(sum(answer.mistaken for answer in measured)),
        "rank": math.fsum(ranks),
        "probability": math.fsum(map(math.exp, _joined(answer.log_probs for answer in measured))),
    }
    constants = next((answer.training_values for answer in measured), ())
    lists = {**metrics.errors(pairs), "value": tuple(values), "training_values": constants}
    shown = {"text": texts_of(example)[-1], "values": values, "predicted": predicted}
    groups = {"corpus": example.id.rpartition(":")[0]} | ({"subset": example.subset} if example.subset else {})
    return Sample(example.id, sums | _intervals(measured), shown, groups, lists)


def written_number(text: str) -> float | None:
    """The number at the start of a text that a model wrote; None if it begins with something else."""
    text = text.lstrip(BEFORE)
    try:
        found = find_numbers(text)
    except RowError:  # too large
        return None
    return found[0].value if found and found[0].start == 0 else None


def _intervals(measured: Sequence[Measured]) -> dict[str, float]:
    """How many values lie in their intervals, and the sum of their -log densities; of digits nothing."""
    if not all(answer.as_values for answer in measured):
        return {}
    return {
        f"inside_{share}": float(
            sum(
                low <= value <= high
                for answer in measured
                for value, low, high in zip(
                    answer.values, getattr(answer, f"low_{share}"), getattr(answer, f"high_{share}"), strict=True
                )
            )
        )
        for share in (50, 90)
    } | {"value_loss": math.fsum(_joined(answer.value_losses for answer in measured))}


def _joined(parts: Iterable[Sequence[float]]) -> list[float]:
    return [value for part in parts for value in part]


def tables(samples: Sequence[Sample]) -> list[Table]:
    """Errors of each set, beside those of constants."""
    sets: dict[str, list[Sample]] = {}
    for sample in samples:
        sets.setdefault(sample.groups["corpus"], []).append(sample)
    rows = [row for name, own in sets.items() for row in _beside_constants(name, own)]
    head = ("set", "predictor", "numbers", *(metric.name.replace("_", " ") for metric in metrics.ERRORS))
    title = (
        "Errors, where the model predicts a number, beside constants: mean and median of the training values, and "
        "those of each set, which are best and known only afterwards"
    )
    return [Table(title, head, rows, in_summary=True)] if rows else []


def _beside_constants(name: str, samples: Sequence[Sample]) -> Iterator[tuple[str, ...]]:
    values = [value for sample in samples for value in sample.lists["value"]]
    if not values:
        return
    yield name, "the model", *_with_intervals([sample.lists for sample in samples])
    trained = next((own for sample in samples if (own := sample.lists["training_values"])), (None, None))
    for title, constant in (
        *zip(("mean of the training values", "median of the training values"), trained, strict=True),
        ("mean of these values; its RMSE is their deviation", metrics.mean(values)),
        ("median of these values", statistics.median(values)),
    ):
        if constant is None:
            yield name, f"{title}: unknown, the checkpoint does not tell them", *"-" * (1 + len(metrics.ERRORS))
            continue
        errors = [metrics.errors([(constant, value) for value in sample.lists["value"]]) for sample in samples]
        yield name, f"{title}: {plain(constant)}", *_with_intervals(errors)


def _with_intervals(lists: Sequence[Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """The number of errors, and each metric of them."""
    from eval.compare import column_of  # heavy
    from eval.estimates import estimate

    table = {name: column_of([own[name] for own in lists]) for name in ("error", "relative_error")}
    yield f"{sum(map(len, table['error'])):,}"
    for metric in metrics.ERRORS:
        found = estimate(metric, "", table)
        interval = "" if found.low is None or found.high is None else f" [{plain(found.low)}, {plain(found.high)}]"
        yield "-" if math.isnan(found.value) else plain(found.value) + interval


TASK = Task(
    name="numeric",
    version=2,
    about="numbers in texts and answers: where the model expects them, and their values",
    source=Hub("openai/gsm8k", split="test", name="main"),
    load=examples(check),
    ask=ask,
    score=score,
    metrics=metrics.METRICS,
    tables=tables,
    max_new_tokens=32,
)

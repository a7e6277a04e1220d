"""How often the 95 % intervals hold the true value, and how often the tests see a difference where there is none.

Every kind of metric goes through `compare`, as an evaluation's do, on made-up populations: lengths with heavy tails,
values near the ends of their scale, labels of unequal size, entities that come in clusters. What is asked: 92 to 97 of
100 intervals hold the true value and 3 to 7 of 100 tests reject, give or take two standard errors of the simulation,
wherever the report shows an interval or a test; where too few rows allow none it has to say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from scipy import stats

from eval import differences, estimates
from eval.compare import column_of
from eval.metrics import entities
from eval.metrics.labels import FEWEST_OF_SQUARES, macro_f1, mcc, pearson, rmse, too_few
from eval.metrics.perplexity import BITS_PER_BYTE, PERPLEXITY, PERPLEXITY_PER_WORD
from eval.metrics.predicted_numbers import ERRORS
from eval.metrics.proportion import mcnemar, newcombe, wilson
from eval.protocols import CorpusMetric, Metric, SampleMetric
from zerotune.common.metric_format import CORRELATION, HUNDRED, POSITIVE, SHARE, UNBOUNDED
from zerotune.common.metric_format import PERPLEXITY as FROM_ONE

SIZES = (8, 20, 50, 200)
ROUNDS = 500
Table = dict[str, Any]
Draw = Callable[[Generator, int], tuple[Table, Table]]  # n rows of two models that are equally good

SCORE = SampleMetric("score", higher_is_better=True)


def lengths(draw: Generator, n: int, sigma: float) -> Any:
    return np.ceil(draw.lognormal(4, sigma, size=n))


def losses(sigma: float, falls: float = 0.0, words: bool = False) -> Draw:
    """Texts with lengths of this spread; falls: how much the loss falls with each of its deviations."""

    def made(draw: Generator, n: int) -> tuple[Table, Table]:
        tokens = lengths(draw, n, sigma)
        hard = draw.gamma(8, 3 / 8, size=n) * np.exp(-falls * (np.log(tokens) - 4) / sigma)
        others = {"tokens": tokens, "bytes": 4 * tokens, "words": np.ceil(tokens * draw.uniform(0.6, 0.9, size=n))}
        one, other = ({"nll": tokens * np.maximum(hard + draw.normal(0, 0.3, size=n), 0.01)} for _ in range(2))
        return one | others, other | others

    return made


def scores(*parts: Any) -> Draw:
    """A mixture of (weight, drawn values), alike for both models on half of what makes a row."""

    def one(draw: Generator, n: int) -> Any:
        chosen = draw.choice(len(parts), size=n, p=[weight for weight, _ in parts])
        values = np.stack([np.broadcast_to(of(draw, n), n) for _, of in parts])
        return values[chosen, np.arange(n)]

    def made(draw: Generator, n: int) -> tuple[Table, Table]:
        first, second = one(draw, n), one(draw, n)
        same = draw.random(n) < 0.3
        return {"score": first}, {"score": np.where(same, first, second)}

    return made


def tagged(share: float) -> Draw:
    """Entities in clusters, found with chances that differ from sentence to sentence."""

    def made(draw: Generator, n: int) -> tuple[Table, Table]:
        gold = draw.negative_binomial(1, 1 / 3.5, size=n).astype(float)
        words = np.ceil(draw.lognormal(3, 0.5, size=n)) + gold
        easy = draw.beta(5 * share, 5 * (1 - share), size=n)

        def model() -> Table:
            right = draw.binomial(gold.astype(int), easy)
            return {
                "right_entities": right, "predicted_entities": right + draw.poisson(2 * (1 - share), size=n),
                "gold_entities": gold, "tokens": words,
                "right_tokens": draw.binomial(words.astype(int), 0.85 + 0.1 * easy),
            }  # fmt: skip

        one, other = model(), model()
        return {k: v.astype(float) for k, v in one.items()}, {k: v.astype(float) for k, v in other.items()}

    return made


def labelled(*shares: float, right: Sequence[float]) -> Draw:
    """Labels of these shares, each predicted with its chance."""

    def made(draw: Generator, n: int) -> tuple[Table, Table]:
        gold = draw.choice(len(shares), size=n, p=shares)

        def model() -> Table:
            others = draw.choice(len(shares), size=n, p=shares)
            said = np.where(draw.random(n) < np.asarray(right)[gold], gold, others)
            return {"gold": gold.astype(float), "predicted": said.astype(float)}

        return model(), model()

    return made


def valued(correlation: float, noise: Callable[[Generator, int], Any]) -> Draw:
    def made(draw: Generator, n: int) -> tuple[Table, Table]:
        gold = draw.normal(size=n)

        def model() -> Table:
            return {"gold": gold, "predicted": correlation * gold + np.sqrt(1 - correlation**2) * noise(draw, n)}

        return model(), model()

    return made


def errors(size: Callable[[Generator, int], Any]) -> Draw:
    """Rows with one number, a few with two."""

    def made(draw: Generator, n: int) -> tuple[Table, Table]:
        counts = 1 + (draw.random(n) < 0.1)

        def model() -> Table:
            lists = np.split(size(draw, int(counts.sum())), counts.cumsum()[:-1])
            return {name: column_of([tuple(own) for own in lists]) for name in ("error", "relative_error")}

        return model(), model()

    return made


def grams(share: float, sigma: float) -> Draw:
    """Matched n-grams and their numbers, as sacrebleu counts them: ours, theirs, matched 1 to 4, counted 1 to 4."""

    def made(draw: Generator, n: int) -> tuple[Table, Table]:
        theirs = np.maximum(4, np.ceil(draw.lognormal(3, sigma, size=n)))
        easy = draw.beta(6 * share, 6 * (1 - share), size=n)

        def model() -> Table:
            ours = np.maximum(4, np.round(theirs * draw.lognormal(0, 0.15, size=n)))
            matched = [draw.binomial(ours.astype(int), easy)]
            for k, kept in ((1, 0.6), (2, 0.7), (3, 0.75)):
                matched.append(draw.binomial(np.minimum(matched[-1], ours - k).astype(int), kept * easy**0.3))
            counted = [ours - k for k in range(4)]
            return {f"bleu_{k}": np.asarray(v, float) for k, v in enumerate([ours, theirs, *matched, *counted])}

        return model(), model()

    return made


def bleu_of_sums(columns: Any) -> float:
    """sacrebleu's `compute_bleu` with its default smoothing, without its checks and objects."""
    sums = [float(columns[f"bleu_{k}"].sum()) for k in range(10)]
    logs, smooth = 0.0, 1.0
    for matched, counted in zip(sums[2:6], sums[6:10], strict=True):
        if counted == 0:
            return 0.0
        if matched == 0:
            smooth *= 2
            matched = 1 / smooth
        logs += float(np.log(matched / counted)) / 4
    return 100 * float(np.exp(min(0.0, 1 - sums[1] / sums[0]) + logs))


def of(name: str, function: Any, scale: Any = SHARE, sums: bool = False, few: Any = None) -> CorpusMetric:
    return CorpusMetric(name, True, function, of_sums=sums, scale=scale, too_few=few)


LABELS = (of("macro_f1", macro_f1, few=too_few), of("mcc", mcc, CORRELATION, few=too_few))
RMSE = CorpusMetric("rmse", False, rmse, scale=POSITIVE, fewest=FEWEST_OF_SQUARES)
VALUES = (of("pearson", pearson, CORRELATION), RMSE)
TAGS = (entities.PRECISION, entities.RECALL, entities.F1, entities.TOKEN_ACCURACY)
TEXTS = (PERPLEXITY, BITS_PER_BYTE, PERPLEXITY_PER_WORD)
POPULATIONS: dict[str, tuple[Sequence[Metric], Draw]] = {
    "texts": (TEXTS, losses(0.5)),
    "texts of very uneven length": (TEXTS, losses(1.0)),
    "texts, a few hold most of the tokens": (TEXTS, losses(1.4)),
    "long texts are easier": (TEXTS, losses(1.0, falls=0.15)),
    "sentences": (
        (SampleMetric("score", False, scale=FROM_ONE),),
        scores((1.0, lambda draw, n: 1 + draw.lognormal(3, 0.6, size=n))),
    ),
    "scores": ((SCORE,), scores((1.0, lambda draw, n: draw.beta(2, 3, size=n)))),
    "scores near 0": ((SCORE,), scores((1.0, lambda draw, n: draw.beta(0.5, 3, size=n)))),
    "scores near 1": ((SCORE,), scores((1.0, lambda draw, n: 1 - draw.beta(0.7, 5, size=n)))),
    "scores, half of them 0": (
        (SCORE,),
        scores((0.5, lambda draw, n: 0.0), (0.5, lambda draw, n: draw.beta(2, 3, size=n))),
    ),
    "scores, many 0 and many 1": (
        (SCORE,),
        scores((0.3, lambda *_: 1.0), (0.2, lambda *_: 0.0), (0.5, lambda draw, n: draw.beta(2, 2, size=n))),
    ),
    "margins": (
        (SampleMetric("score", True, scale=UNBOUNDED),),
        scores((1.0, lambda draw, n: draw.standard_t(4, size=n))),
    ),
    "entities, most found": (TAGS, tagged(0.85)),
    "entities, few found": (TAGS, tagged(0.4)),
    "labels": (LABELS, labelled(0.34, 0.33, 0.33, right=(0.7, 0.6, 0.8))),
    "unequal labels": (LABELS, labelled(0.7, 0.2, 0.1, right=(0.8, 0.5, 0.4))),
    "one label in ten": (LABELS, labelled(0.9, 0.1, right=(0.9, 0.5))),
    "values": (VALUES, valued(0.5, lambda draw, n: draw.normal(size=n))),
    "values, well told": (VALUES, valued(0.85, lambda draw, n: draw.normal(size=n))),
    "values with outliers": (VALUES, valued(0.6, lambda draw, n: draw.laplace(size=n) / np.sqrt(2))),
    "errors of numbers": (ERRORS[:2], errors(lambda draw, n: np.abs(draw.laplace(size=n)))),
    "errors of numbers of any size": (ERRORS[1:2], errors(lambda draw, n: draw.lognormal(0, 2, size=n))),
    "translations": ((of("bleu", bleu_of_sums, HUNDRED, sums=True),), grams(0.6, 0.5)),
    "poor translations of uneven length": ((of("bleu", bleu_of_sums, HUNDRED, sums=True),), grams(0.35, 0.8)),
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_and_tests_hold_what_they_say(name: str) -> None:
    metrics, made = POPULATIONS[name]
    seed = list(POPULATIONS).index(name)
    many, _ = made(np.random.default_rng([seed, 1]), 400_000)
    true = {metric.name: estimates.value(metric, many) for metric in metrics}
    wrong = []
    for n in SIZES:
        for metric in metrics:
            draw = np.random.default_rng([seed, n])
            inside, rejected = [], []
            for _ in range(ROUNDS):
                one, other = made(draw, n)
                found = estimates.estimate(metric, "m", one)
                if found.low is not None:
                    inside.append(found.low <= true[metric.name] <= found.high)
                change = differences.difference(metric, "m", one, other)
                if change.p_value is not None and not estimates.too_few(metric, one):  # few rows may all be the same
                    rejected.append(change.verdict != differences.NO_DIFFERENCE)
            line = f"{name}, {metric.name}, {n} rows:"
            for what, seen, (least, most) in (("holds", inside, (0.92, 0.97)), ("rejects", rejected, (0.03, 0.07))):
                if len(seen) < ROUNDS / 4:  # else the report says mostly that there are too few rows
                    continue
                share = np.mean(seen)
                print(f"{line} {what} {share:.3f} of {len(seen)}")
                give = 2 * np.sqrt(0.05 * 0.95 / len(seen))
                if not least - give <= share <= most + give:
                    wrong.append(f"{line} {what} {share:.3f} of {len(seen)}")
    assert not wrong


def test_bleu_of_sums_is_sacrebleus() -> None:
    from sacrebleu.metrics import BLEU

    columns, _ = grams(0.5, 0.6)(np.random.default_rng(0), 30)
    sums = [int(columns[f"bleu_{k}"].sum()) for k in range(10)]
    assert bleu_of_sums(columns) == pytest.approx(BLEU()._compute_score_from_stats(sums).score)


SHARES = [(0.005, 0.05), (0.02, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 0.98), (0.95, 0.995)]


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("between", SHARES)
def test_intervals_of_shares_hold_what_they_say(count: int, between: tuple[float, float]) -> None:
    """Exactly, over all outcomes with their probabilities, and over shares: a single one hits or misses by steps."""
    intervals = [wilson(np.repeat([1.0, 0.0], [right, count - right])) for right in range(count + 1)]
    low, high = (np.array([getattr(interval, end) for interval in intervals]) for end in ("low", "high"))
    held = [
        stats.binom.pmf(np.arange(count + 1), count, share)[(low <= share) & (share <= high)].sum()
        for share in np.linspace(*between, 101)
    ]
    assert 0.92 <= np.mean(held) <= 0.97


PAIRS = {  # what one model wins and the other does not, and the reverse: the shares are drawn anew for each data set
    "models that differ on many rows": ((0.1, 0.25), (0.1, 0.25)),
    "a better model": ((0.2, 0.5), (0.02, 0.1)),
}


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("name", PAIRS)
def test_differences_of_shares_hold_what_they_say(name: str, count: int) -> None:
    """Where a test can reject at all: of fewer than five rows that differ no outcome can, and nearly none of a few."""
    draw, inside, rejected = np.random.default_rng(count), [], []
    for _ in range(2000):
        one, other = (draw.uniform(*between) for between in PAIRS[name])
        other = one if name != "a better model" else other
        both = draw.uniform(0.1, 0.9) * (1 - one - other)
        won, lost, right, wrong = draw.multinomial(count, [one, other, both, 1 - one - other - both])
        before = np.repeat([0.0, 1.0, 1.0, 0.0], [won, lost, right, wrong])
        after = np.repeat([1.0, 0.0, 1.0, 0.0], [won, lost, right, wrong])
        interval = newcombe(before, after)
        inside.append(interval.low <= one - other <= interval.high)
        if won + lost >= 6:
            rejected.append(mcnemar(before, after) < 0.05)
    assert (
        0.92 <= np.mean(inside) <= (0.97 if count > 20 else 0.985)
    )  # of few rows that differ by steps: on the safe side
    if name != "a better model" and count > 8:
        assert 0.03 <= np.mean(rejected) <= 0.07

"""The task `numeric`: against naive formulas, for models that read numbers as values and models that write digits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import cauchy

from eval.cached_model import open_answer_cache
from eval.config import parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from eval.metrics import predicted_numbers as metrics
from eval.report.text import markdown
from eval.result import Evaluation
from eval.tasks.numeric import written_number
from tests.support import eval_checkpoints
from tests.unit.inference.test_numbers import with_numbers
from zerotune.common.errors import UserError
from zerotune.data.numbers_in_text import NUM
from zerotune.models import numeric

ROWS: list[dict[str, Any]] = [
    *({"text": f"The price is {n} and {n / 4} on 2024-01-0{n}, not x2."} for n in range(1, 10)),
    *({"question": f"How much is {n}?", "answer": f"It is {-n:,}, or {n}.5."} for n in range(900, 1100, 25)),
    {"question": "价格是多少？", "answer": "价格是１２３元。"},
    {"question": "Largest?", "answer": "1e300 or -1e300, not 0."},
    {"text": "No number at all."},
    {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}] * 2},
]


def write(folder: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def save(folder: Path, **settings: Any) -> Path:
    words = eval_checkpoints.tokenizer()
    model = with_numbers(words, **settings)
    # `<NUM>` is the most probable token at some positions, and at others not.
    with torch.no_grad():
        state = model.base_model(torch.tensor([words("The price is ")["input_ids"]])).last_hidden_state[0, -1]
        row = model.numeric.location(state)
        model.get_output_embeddings().weight[words.vocab[NUM]] = 1.2 * row / row.norm()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def run(folder: Path, *models: Path, data: Path, **options: object) -> Evaluation:
    words = [word for model in models for word in ("--model", str(model))]
    words += ["--tasks", "numeric", "--data", str(data), "--out", str(folder / "out"), "--precision", "fp32"]
    words += [f"--{name}={value}" for name, value in options.items()]
    config, alone = parse(words), Ranks(0, 1, torch.device("cpu"))
    return evaluate(config, alone, open_answer_cache(config, alone))


def found(evaluation: Evaluation, model: int = 0) -> dict[str, float]:
    (task,) = evaluation.result.tasks
    return {metric.name: metric.estimates[model].value for metric in task.metrics}


@pytest.fixture(scope="module", params=["softmax-asinh", "one_vs_rest-linear"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    token_loss, space = request.param.split("-")
    options = {"token_loss": token_loss, "value_space": space, "copy": space == "asinh"}
    return save(tmp_path_factory.mktemp("numeric"), **options)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_checkpoints.save(tmp_path_factory.mktemp("digits"), seed=3)


class Mixture(NamedTuple):
    """Weights, locations and scales, in the value space."""

    weight_k: Any
    location_k: Any
    scale_k: Any

    def below(self, point: float) -> float:
        return float(self.weight_k @ cauchy.cdf(point, self.location_k, self.scale_k))

    def log_density(self, point: float) -> float:
        with np.errstate(over="ignore"):
            sizes = np.hypot(1, (point - self.location_k) / self.scale_k)
        return float(np.logaddexp.reduce(np.log(self.weight_k / (math.pi * self.scale_k)) - 2 * np.log(sizes)))

    @property
    def median(self) -> float:
        ends = min(self.location_k) - max(self.scale_k), max(self.location_k) + max(self.scale_k)
        return float(brentq(lambda point: self.below(point) - 0.5, *ends, xtol=1e-12))


def mixture(
    pointer: Any, hidden: Any, middle: Any, ids: Any, values: Any, at: int, own: float, width: float, settings: Any
) -> Mixture:
    """The model's own value and, by attention, the last number at or before each position up to `at`."""
    if pointer is None:
        return Mixture(np.ones(1), np.array([own]), np.array([width]))
    hidden, middle = (
        (states / states.square().mean(-1, keepdim=True).sqrt()).asinh()
        for states in (hidden.detach(), middle.detach())
    )
    scores, offered = [30 * float(pointer.own.detach())], [own]
    query = 30 * pointer.query.detach() @ hidden[at]
    last = None
    for k in range(at + 1):
        if ids[k] == settings.token_id:
            last = float(values[k]) if settings.value_space == "linear" else math.asinh(float(values[k]))
        if last is not None:
            scores.append(float(query @ (30 * pointer.key.detach() @ middle[k])) / math.sqrt(len(query)))
            offered.append(last)
    weights = np.exp(np.array(scores) - max(scores))
    return Mixture(weights / weights.sum(), np.array(offered), np.array([width, *[1e-9] * (len(offered) - 1)]))


def naive(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """All figures of a model with numbers, a row at a time, with whole scores."""
    from eval.tasks.perplexity import check, passages
    from zerotune.data.raw_row import Row
    from zerotune.data.rows import examples
    from zerotune.inference.checkpoint import open_checkpoint
    from zerotune.inference.model import LanguageModel

    opened = open_checkpoint(str(folder), "m")
    model = cast(LanguageModel, opened.load("language", "fp32", "none", torch.device("cpu"))).network.model
    settings = numeric.settings_of(model.config)
    assert settings is not None
    per: dict[str, list[float]] = {name: [] for name in ("rank", "p", "error", "relative", "in50", "in90", "nll")}
    top = right = 0
    for line, row in enumerate(rows, 1):
        for passage in passages(examples(check)(Row("f", line, row)), opened.prompter("tokenizer", 8, 0)):
            ids, values = numeric.separated(torch.tensor([passage.ids]), settings.token_id)
            with torch.no_grad():
                scores = model(input_ids=ids, values=values, use_cache=False).logits[0].double()
                embeddings = model.numeric.direction(model.get_input_embeddings()(ids), values)
                read = model.base_model(inputs_embeds=embeddings, output_hidden_states=True)
                hidden, middle = read.last_hidden_state[0], read.hidden_states[settings.key_layer or -1][0]
                location, scale = model.numeric.value(model.numeric.location(hidden), model.numeric.scale(hidden))
            for at in range(passage.first, ids.shape[1]):
                own = scores[at - 1].numpy()
                best = int(own.argmax()) == settings.token_id
                top += best
                if ids[0, at] != settings.token_id:
                    continue
                value, place, width = float(values[0, at]), float(location[at - 1]), float(scale[at - 1])
                per["rank"].append(1 + int((own > own[settings.token_id]).sum()))
                p = own[settings.token_id] - (0 if settings.token_loss == "one_vs_rest" else np.logaddexp.reduce(own))
                per["p"].append(math.exp(p))
                inner = value if settings.value_space == "linear" else math.asinh(value)
                found = mixture(
                    model.numeric.pointer, hidden, middle, ids[0], values[0], at - 1, place, width, settings
                )
                for share in (50, 90):
                    per[f"in{share}"].append(abs(found.below(inner) - 0.5) <= share / 200)
                slope = 0.0 if settings.value_space == "linear" else math.log(math.hypot(1, value))
                per["nll"].append(slope - found.log_density(inner))
                if best:
                    right += 1
                    median = found.median if settings.value_space == "linear" else math.sinh(found.median)
                    per["error"].append(abs(median - value))
                    per["relative"].append(abs(median - value) / abs(value) if value else math.inf)
    largest = max(per["error"])
    return {
        "number_recall": right / len(per["rank"]),
        "number_precision": right / top,
        "number_rank": float(np.mean(per["rank"])),
        "number_probability": float(np.mean(per["p"])),
        "rmse": largest * float(np.sqrt(np.mean((np.array(per["error"]) / largest) ** 2))),
        "median_error": float(np.median(per["error"])),
        "median_relative_error": float(np.median(per["relative"])),
        "interval_50": float(np.mean(per["in50"])),
        "interval_90": float(np.mean(per["in90"])),
        "value_loss": float(np.mean(per["nll"])),
    }


def test_figures_equal_the_naive_formulas(checkpoint: Path, tmp_path: Path) -> None:
    expected = naive(checkpoint, ROWS)
    assert 0 < expected["number_recall"] < 1
    assert 0 < expected["number_precision"] < 1
    for size in (1, 100_000):
        evaluation = run(tmp_path / str(size), checkpoint, data=write(tmp_path), batch_tokens=size)
        assert found(evaluation) == pytest.approx(expected, rel=1e-4)
    shown = markdown(evaluation)
    assert "| the model | " in shown
    assert "| median of these values: " in shown
    assert "| mean of the training values: unknown, the checkpoint does not tell them | - | - | - | - |" in shown


def test_constants_of_the_training_values(digits: Path, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "checkpoint", training_mean=50.0, training_median=-3.0)
    evaluation = run(tmp_path, checkpoint, digits, data=write(tmp_path, [{"text": f"No {n} or {n}."} for n in (3, 7)]))
    (task,) = evaluation.result.tasks
    ours, other = (tables[0].rows for tables in task.tables.values())
    assert [row[1] for row in ours[1:3]] == ["mean of the training values: 50", "median of the training values: -3"]
    assert float(str(ours[1][3])) == pytest.approx(math.sqrt((47**2 + 43**2) / 2), rel=1e-3)
    assert float(str(ours[2][4])) == 8.0
    assert [row[2:] for row in other[1:3]] == [("-",) * 4] * 2


def digits_of(model: Any, words: Any, ids: Sequence[int], count: int) -> str:
    made = list(ids)
    for _ in range(count):
        with torch.no_grad():
            made.append(int(model(input_ids=torch.tensor([made])).logits[0, -1].argmax()))
        if made[-1] in (words.vocab["<|im_end|>"], words.vocab["<|endoftext|>"]):
            break
    return str(words.decode(made[len(ids) :], skip_special_tokens=True))


def test_digits_equal_the_naive_way(digits: Path, tmp_path: Path) -> None:
    """Texts of plain numbers, token by token: the tokenizer has one token for each digit and for each other byte."""
    rows = [{"text": f"a{c} {n}, {n + 1} 年 1/2"} for n in (3, -47, 505) for c in "xyz"]
    evaluation = run(tmp_path, digits, data=write(tmp_path, rows), max_new_tokens=4)
    words = eval_checkpoints.tokenizer()
    model = eval_checkpoints.model(len(words), seed=3)
    begins = [token for token in range(len(words)) if words.decode(token).strip()[:1].isdigit()]
    numbers = errors = texts = mistaken = 0
    for sample, row in zip(next(iter(evaluation.samples["numeric"].values())), rows, strict=True):
        text = row["text"]
        starts = [text.index(part) for part in (f" {text.split()[1]}", f" {text.split()[2]} ")]
        encoded = words(text, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        own = {start + 1: float(text[start:].split()[0].strip(",")) for start in starts}
        said, is_inside, ranks, likely = {}, False, [], []
        for at in range(1, len(ids)):
            begin, end = offsets[at]
            place = next((start for start in own if begin <= start < end), None)
            if place is not None:
                said[place] = written_number(digits_of(model, words, ids[:at], 4))
                is_inside = True
                with torch.no_grad():
                    log_p = model(input_ids=torch.tensor([ids[:at]])).logits[0, -1].double().log_softmax(-1)
                first = [*begins, *([ids[at]] if words.decode(ids[at]) == "-" else [])]
                ranks.append(1 + int((log_p > log_p[first].max()).sum()))
                likely.append(float(log_p[first].exp().sum()))
                continue
            is_inside = is_inside and text[begin].isdigit()
            if is_inside or text[begin].isdigit():
                continue
            texts += 1
            with torch.no_grad():
                best = words.decode(int(model(input_ids=torch.tensor([ids[:at]])).logits[0, -1].argmax()))
            mistaken += best.strip()[:1].isdigit()
        assert sample.shown["values"] == list(own.values())
        assert sample.shown["predicted"] == [said[start] for start in own]
        assert sample.values["rank"] == sum(ranks)
        assert sample.values["probability"] == pytest.approx(sum(likely), rel=1e-4)
        numbers += 2
        errors += sum(value is not None for value in said.values())
    own_found = found(evaluation)
    assert own_found["number_recall"] == errors / numbers
    total = {
        key: sum(s.values[key] for s in next(iter(evaluation.samples["numeric"].values())))
        for key in ("texts", "mistaken")
    }
    assert total == {"texts": texts, "mistaken": mistaken}
    assert math.isnan(own_found["interval_90"])
    assert math.isnan(own_found["value_loss"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 5 dollars", 5.0), ("-1,234.5.", -1234.5), ("$ 7", 7.0), ("１２３元", 123.0), ("five", None), ("", None),
        ("1/2", None), ("12:30", None), ("1e+301", None), ("x5", None), ("a 5", None), ("1e5", 1e5),
    ],
)  # fmt: skip
def test_what_counts_as_a_written_number(text: str, value: float | None) -> None:
    assert written_number(text) == value


def test_both_kinds_of_models_share_a_table(checkpoint: Path, digits: Path, tmp_path: Path) -> None:
    evaluation = run(tmp_path, digits, checkpoint, data=write(tmp_path))
    (task,) = evaluation.result.tasks
    by_name = {metric.name: metric for metric in task.metrics}
    first, second = by_name["interval_90"].estimates
    assert math.isnan(first.value)
    assert first.reason == metrics.WITHOUT_VALUES
    assert 0 <= second.value <= 1
    assert by_name["interval_90"].differences[0].reason == metrics.WITHOUT_VALUES
    assert by_name["number_recall"].differences[0].verdict != "not tested"
    assert "| - |" in markdown(evaluation)
    json.loads(evaluation.result.to_json())


def test_coverage_is_never_better_or_worse(checkpoint: Path, tmp_path: Path) -> None:
    evaluation = run(tmp_path, checkpoint, checkpoint, data=write(tmp_path))
    (task,) = evaluation.result.tasks
    differences = {metric.name: metric.differences[0] for metric in task.metrics}
    assert differences["interval_50"].verdict == "not tested"
    assert differences["interval_50"].reason.startswith("not compared: coverage should be near")  # type: ignore[union-attr]
    assert differences["median_error"].verdict == "no significant difference"


def test_rows_without_numbers_have_no_recall(checkpoint: Path, digits: Path, tmp_path: Path) -> None:
    rows = [{"text": f"No number {'at all ' * k}"} for k in range(1, 4)]
    evaluation = run(tmp_path, digits, checkpoint, data=write(tmp_path, rows))
    (task,) = evaluation.result.tasks
    for metric in task.metrics:
        if metric.name == "number_precision":
            continue
        for estimate in metric.estimates:
            assert math.isnan(estimate.value)
            assert estimate.reason
    assert "nothing to measure: no numbers" in markdown(evaluation)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "It is 1e+301."}], r"rows\.jsonl:1: .*number too large: 1e\+301"),
        ([{"text": "fine 5"}, {"text": "<NUM>"}], r"rows\.jsonl:2: .*<NUM> in the text"),
        ([], "contains no rows"),
        ([{"sentence": "a", "label": "b"}], "fits no known format"),
    ],
)
def test_bad_rows_are_named(checkpoint: Path, rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, checkpoint, data=write(tmp_path, rows))


def test_cached_answers_give_the_same_figures(checkpoint: Path, digits: Path, tmp_path: Path) -> None:
    data = write(tmp_path)
    first, again = (run(tmp_path, digits, checkpoint, data=data) for _ in range(2))
    (task,), (cached,) = first.result.tasks, again.result.tasks
    assert not any(task.reused.values())
    assert all(cached.reused.values())
    assert not any(cached.tokens.values())
    assert json.dumps(dataclasses.asdict(task)["metrics"]) == json.dumps(dataclasses.asdict(cached)["metrics"])
    assert first.samples == again.samples


def test_long_texts_are_read_in_windows(checkpoint: Path, digits: Path, tmp_path: Path) -> None:
    rows = [{"text": ", ".join(str(n) for n in range(200))}]
    evaluation = run(tmp_path, checkpoint, digits, data=write(tmp_path, rows), max_new_tokens=2)
    for samples in evaluation.samples["numeric"].values():
        assert samples[0].values["numbers"] == 199.0  # the first token cannot be predicted
        assert samples[0].shown["values"][-3:] == [197.0, 198.0, 199.0]


def test_medians_and_squares_at_extremes() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 10):
        values = np.sort(rng.lognormal(0, 3, count))
        weights = rng.integers(0, 4, (20, count)) + (np.arange(count) == 0)
        for weight in weights:
            own = np.repeat(values, weight)
            row = weight[None].astype(float)
            assert metrics.median(values, row)[0] == pytest.approx(float(np.median(own)))
            assert metrics.root_mean_square(values, row)[0] == pytest.approx(float(np.sqrt(np.mean(own**2))))
    large, one = np.array([0.0, 1e300]), np.ones((1, 2))
    assert metrics.root_mean_square(large, one)[0] == pytest.approx(1e300 / math.sqrt(2))
    assert metrics.root_mean_square(np.zeros(2), one)[0] == 0.0
    assert metrics.median(np.array([1e300, 1e300]), one)[0] == 1e300
    assert metrics.relative_error(1.0, 0.0) == math.inf
    assert metrics.relative_error(0.0, 0.0) == 0.0
    assert metrics.mean([1e300] * 100) == pytest.approx(1e300)


def test_samples_show_causal_sampling_and_intervals(checkpoint: Path, digits: Path, tmp_path: Path) -> None:
    data = write(tmp_path, [{"text": "The price is "}, {"text": "価格 7"}])
    words = ["--model", str(digits), "--model", str(checkpoint), "--tasks", "samples", "--data", str(data)]
    config = parse([*words, "--out", str(tmp_path / "out"), "--max_new_tokens", "12"])
    for _ in range(2):  # the second time from the cache
        alone = Ranks(0, 1, torch.device("cpu"))
        evaluation = evaluate(config, alone, open_answer_cache(config, alone))
        of_digits, of_values = evaluation.samples["samples"].values()
        assert all("causal sampling" not in sample.shown for sample in of_digits)
        greedy, causal = ([sample.shown[title] for sample in of_values] for title in ("greedy", "causal sampling"))
        assert any("(90 % intervals of the numbers: [" in text for text in greedy)
        assert NUM not in "".join([*greedy, *causal])
        assert "causal sampling" in markdown(evaluation)

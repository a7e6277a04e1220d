"""One result, however it is computed: ranks, ZeRO stages, accumulation and micro-batches change no loss, no gradient
norm and no weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from tests.faults.runs import Zygote, finished
from tests.process.runs import arguments, metrics, write_rows

NAMES = ("train/loss", "train/gradient_norm", "validation/loss")
# Relative, in float32. Seen here: 2e-7 for losses; 4e-7 for norms, ZeRO's among them, although DeepSpeed sums them in
# float32 and we in float64; 6e-7 of a tensor's norm for weights.
TOLERANCE = 1e-5
# Steps that move weights by as much as they are. Adam divides by the gradient's size: with the usual epsilon it makes
# whole steps out of what is nothing but rounding, as in the biases of keys, whose gradient is 0 for any softmax.
STEPS = {"optim__learning_rate": 1e-2, "optim__epsilon": 1e-4}
SPREAD = {"batch__tokens_per_micro_batch": 256}


@dataclass(frozen=True)
class Result:
    """What a run left: metric -> step -> value, and the trained weights."""

    curves: dict[str, dict[int, float]]
    weights: dict[str, Tensor]


class Trainer:
    """Runs over one small data set."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote, self.rows = folder, zygote, write_rows(folder)

    def __call__(self, name: str, kind: str = "single", **options: object) -> Result:
        """`options` use __ for the dot."""
        from train.engine.commit import folder_of
        from train.engine.state import trained_weights

        run = self.folder / name
        processes = self.zygote.run(arguments(run, self.rows, **STEPS | options), self.folder / name, kind)
        assert set(processes.codes) == {0}, processes.output
        weights = trained_weights(folder_of(run / "checkpoints", finished(run)[-1]))
        return Result({metric: metrics(run, metric) for metric in NAMES}, weights)


@pytest.fixture(scope="module")
def train(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("equalities"), zygote)


def assert_equal(one: Result, other: Result) -> None:
    for name in NAMES:
        assert len(one.curves[name]) >= 2
        assert other.curves[name] == pytest.approx(one.curves[name], rel=TOLERANCE), name
    assert other.weights.keys() == one.weights.keys()
    for name, tensor in one.weights.items():
        difference = (other.weights[name] - tensor).norm() / tensor.norm()
        assert difference <= TOLERANCE, name


@pytest.fixture(scope="module", params=["full", "lora"])
def tuning(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(train: Trainer, tuning: str) -> Result:
    return train(f"{tuning}-reference", tuning__kind=tuning)


@pytest.mark.parametrize("micro_batch", [256, 128])
def test_accumulation_and_micro_batch_size(train: Trainer, tuning: str, reference: Result, micro_batch: int) -> None:
    options = {"tuning__kind": tuning, "batch__tokens_per_micro_batch": micro_batch}
    assert_equal(reference, train(f"{tuning}-micro{micro_batch}", **options))


@pytest.mark.parametrize("kind", ["ddp", "zero1", "zero2", "zero3"])
def test_two_ranks(train: Trainer, tuning: str, reference: Result, kind: str) -> None:
    assert_equal(reference, train(f"{tuning}-{kind}", kind, tuning__kind=tuning, **SPREAD))


def test_packed_and_padded(train: Trainer) -> None:
    whole = {"batch__tokens_per_step": 100_000, "duration__max_epochs": 3}  # one step an epoch: the same rows in both
    packed = train("packed", batch__layout="packed", **whole)
    assert_equal(packed, train("padded", batch__layout="padded", **whole))

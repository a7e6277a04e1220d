"""One result, however it is computed: ranks, ZeRO stages, accumulation and micro-batches change no loss, no gradient
norm and no weight.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.compare import assert_equal
from tests.support.fault_runs import Zygote
from tests.support.training_runs import arguments, write_rows

NAMES = ("train/loss", "train/gradient_norm", "validation/loss")
# Steps that move weights by as much as they are. Adam divides by the gradient's size: with the usual epsilon it makes
# whole steps out of what is nothing but rounding, as in the biases of keys, whose gradient is 0 for any softmax.
STEPS = {"optim__learning_rate": 1e-2, "optim__epsilon": 1e-4}
SPREAD = {"batch__tokens_per_micro_batch": 256}


class Trainer:
    """Runs over one small data set."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote, self.rows = folder, zygote, write_rows(folder)

    def __call__(self, name: str, kind: str = "single", **options: object) -> Path:
        """The run folder. `options` use __ for the dot."""
        run = self.folder / name
        processes = self.zygote.run(arguments(run, self.rows, **STEPS | options), self.folder / name, kind)
        assert set(processes.codes) == {0}, processes.output
        return run


@pytest.fixture(scope="module")
def train(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("equalities"), zygote)


@pytest.fixture(scope="module", params=["full", "lora"])
def tuning(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(train: Trainer, tuning: str) -> Path:
    return train(f"{tuning}-reference", tuning__kind=tuning)


@pytest.mark.parametrize("micro_batch", [256, 128])
def test_accumulation_and_micro_batch_size(train: Trainer, tuning: str, reference: Path, micro_batch: int) -> None:
    options = {"tuning__kind": tuning, "batch__tokens_per_micro_batch": micro_batch}
    assert_equal(reference, train(f"{tuning}-micro{micro_batch}", **options), NAMES, absolute=0.0)


@pytest.mark.parametrize("kind", ["ddp", "zero1", "zero2", "zero3"])
def test_two_ranks(train: Trainer, tuning: str, reference: Path, kind: str) -> None:
    assert_equal(reference, train(f"{tuning}-{kind}", kind, tuning__kind=tuning, **SPREAD), NAMES, absolute=0.0)


def test_packed_and_padded(train: Trainer) -> None:
    whole = {"batch__tokens_per_step": 100_000, "duration__max_epochs": 3}  # one step an epoch: the same rows in both
    packed = train("packed", batch__layout="packed", **whole)
    assert_equal(packed, train("padded", batch__layout="padded", **whole), NAMES, absolute=0.0)

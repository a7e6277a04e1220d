"""One result, however it is computed: ranks, ZeRO stages, accumulation and micro-batches change no loss, no gradient
norm and no weight.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.compare import assert_equal
from tests.support.fault_runs import Zygote
from tests.support.training_runs import arguments, new_model, write_rows

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


CASES: dict[str, dict[str, object]] = {
    "full": {},
    "lora": {"tuning__kind": "lora"},
    "digits": {"causal_lm__number_token_weight": 0.3},
    "rnn": new_model("rnn"),
    "rnn-lora": new_model("rnn") | {"tuning__kind": "lora"},
    "lstm": new_model("lstm"),
    "transformer": new_model("transformer"),
}


KINDS = {  # a new model's layers are what differs there
    **dict.fromkeys(("rnn", "lstm", "transformer"), ("ddp", "zero2", "zero3")),
    "rnn-lora": ("zero3",),
    "digits": ("ddp", "zero3"),
}


def names(case: str) -> tuple[str, ...]:
    return (*NAMES, "train/number_token") if case == "digits" else NAMES


PAIRS = [(case, kind) for case in CASES for kind in KINDS.get(case, ("ddp", "zero1", "zero2", "zero3"))]


@pytest.fixture(scope="module")
def reference(train: Trainer, request: pytest.FixtureRequest) -> Path:
    return train(f"{request.param}-reference", **CASES[request.param])


@pytest.mark.parametrize(
    ("reference", "case", "micro_batch"),
    [(case, case, size) for case in CASES for size in ((256,) if case in KINDS else (256, 128))],
    indirect=["reference"],
)
def test_accumulation_and_micro_batch_size(train: Trainer, case: str, reference: Path, micro_batch: int) -> None:
    options = CASES[case] | {"batch__tokens_per_micro_batch": micro_batch}
    assert_equal(reference, train(f"{case}-micro{micro_batch}", **options), names(case), absolute=0.0)


@pytest.mark.parametrize(
    ("reference", "case", "kind"), [(case, case, kind) for case, kind in PAIRS], indirect=["reference"]
)
def test_two_ranks(train: Trainer, case: str, reference: Path, kind: str) -> None:
    assert_equal(reference, train(f"{case}-{kind}", kind, **CASES[case] | SPREAD), names(case), absolute=0.0)


@pytest.mark.parametrize("case", ["full", "digits", "rnn", "lstm"])
def test_packed_and_padded(train: Trainer, case: str) -> None:
    whole = {"batch__tokens_per_step": 100_000, "duration__max_epochs": 3}  # one step an epoch: the same rows in both
    packed = train(f"{case}-packed", batch__layout="packed", **CASES[case] | whole)
    padded = train(f"{case}-padded", batch__layout="padded", **CASES[case] | whole)
    assert_equal(packed, padded, names(case), absolute=0.0)

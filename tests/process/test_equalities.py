"""One result, however it is computed: ranks, ZeRO stages, accumulation and micro-batches change no loss and no
gradient.
"""

from __future__ import annotations

import pytest

from tests.process.runs import arguments, launch, metrics, write_rows

NAMES = ("train/loss", "train/gradient_norm", "validation/loss")
TOLERANCE = {"train/loss": 1e-5, "validation/loss": 1e-5, "train/gradient_norm": 1e-5}  # relative, float32
DEEPSPEED = TOLERANCE | {
    "train/gradient_norm": 5e-5
}  # it sums the norm itself in float32; the losses that follow agree


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("equalities"))


def train(rows, name, config=None, ranks=1, **options):
    folder = rows.parent / name
    done = launch(arguments(folder, rows, **options), config, ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    return {metric: metrics(folder, metric) for metric in NAMES}


def assert_equal(one, other, tolerance=TOLERANCE):
    for name in NAMES:
        assert one[name].keys() == other[name].keys()
        assert len(one[name]) >= 2
        for step, value in one[name].items():
            assert other[name][step] == pytest.approx(value, rel=tolerance[name]), (name, step)


@pytest.fixture(scope="module")
def reference(rows):
    return train(rows, "reference")


@pytest.mark.parametrize("micro_batch", [256, 128])
def test_accumulation_and_micro_batch_size(rows, reference, micro_batch):
    assert_equal(reference, train(rows, f"micro{micro_batch}", batch__tokens_per_micro_batch=micro_batch))


@pytest.mark.parametrize("config", ["cpu_ddp", "zero1", "zero2", "zero3"])
def test_two_ranks(rows, reference, config):
    spread = train(rows, config, config, ranks=2, batch__tokens_per_micro_batch=256)
    assert_equal(reference, spread, DEEPSPEED if config.startswith("zero") else TOLERANCE)


def test_packed_and_padded(rows):
    whole = {"batch__tokens_per_step": 100_000, "duration__max_epochs": 3}  # one step an epoch: the same rows in both
    packed = train(rows, "packed", batch__layout="packed", **whole)
    assert_equal(packed, train(rows, "padded", batch__layout="padded", **whole))

"""F11 and F12: a damaged checkpoint is passed over by all ranks together; where all are damaged nothing is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fault_runs import STEPS, Workplace, Zygote, finished, losses, status, weights
from train.checkpoint import commit


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def zero_tail(path: Path) -> None:
    """What a file looks like whose last block never reached the disk."""
    size = path.stat().st_size
    os.truncate(path, size - 512)
    os.truncate(path, size)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 1000), "model.safetensors: 1000 bytes"),
    "one bit": (lambda f: flip(f / "optimizer.safetensors"), "optimizer.safetensors: sha256"),
    "tail of zeros": (lambda f: zero_tail(f / "model.safetensors"), "model.safetensors: sha256"),
    "file gone": (lambda f: (f / "optimizer.json").unlink(), "optimizer.json: missing"),
    "manifest empty": (lambda f: os.truncate(f / "manifest.json", 0), "manifest.json: damaged"),
    "another checkpoint's manifest": (
        lambda f: shutil.copy(f.with_name(f"step-{STEPS - 2:06d}") / "manifest.json", f),
        f"manifest.json: belongs to step {STEPS - 2}",
    ),
}


def newest(run: Path) -> Path:
    return commit.folder_of(run / "checkpoints", STEPS)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_older_one_is_taken_and_the_result_is_the_same(
    damage: str, zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    hurt, words = DAMAGES[damage]
    hurt(newest(run))
    processes = zygote.run(workplace.arguments(run), tmp_path / "log")
    assert processes.codes == [0], processes.output
    warnings = [line for line in processes.output.splitlines() if "is not used" in line]
    assert len(warnings) == 1
    assert words in warnings[0]
    assert f"step-{STEPS - 2:06d}" in processes.output
    assert (run / "checkpoints" / f"corrupt-step-{STEPS:06d}").is_dir()
    assert losses(run) == losses(reference)
    assert weights(run) == weights(reference)


def test_two_ranks_fall_back_together(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = zygote.run(workplace.arguments(run), tmp_path / "first", "zero2")
    assert processes.codes == [0, 0], processes.output
    whole, curve = weights(run), losses(run)
    flip(newest(run) / "deepspeed" / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    processes = zygote.run(workplace.arguments(run), tmp_path / "again", "zero2")
    assert processes.codes == [0, 0], processes.output
    assert processes.output.count("is not used") == 1
    assert weights(run) == whole
    assert losses(run) == curve


def test_a_manifest_of_another_world_size(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """It does not list what the second rank wrote: both fall back to the checkpoint before."""
    run, alone = tmp_path / "run", tmp_path / "alone"
    for folder, ranks in ((run, 2), (alone, 1)):
        processes = zygote.run(workplace.arguments(folder), tmp_path / folder.name, "zero2", ranks=ranks)
        assert processes.codes == [0] * ranks, processes.output
    whole, curve = weights(run), losses(run)
    shutil.copy(newest(alone) / "manifest.json", newest(run))
    processes = zygote.run(workplace.arguments(run), tmp_path / "again", "zero2")
    assert processes.codes == [0, 0], processes.output
    (warning,) = [line for line in processes.output.splitlines() if "is not used" in line]
    assert "deepspeed/" in warning
    assert f"resumed from {commit.folder_of(run / 'checkpoints', STEPS - 2)}" in processes.output
    assert weights(run) == whole
    assert losses(run) == curve


def test_all_bad_is_exit_66_and_nothing_is_lost(
    zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    for step in finished(run):
        flip(commit.folder_of(run / "checkpoints", step) / "model.safetensors")
    before = {str(p): p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()}
    processes = zygote.run(workplace.arguments(run), tmp_path / "log")
    assert processes.codes == [66], processes.output
    assert str(run / "checkpoints") in processes.output
    assert "Traceback" not in processes.output
    assert {str(p): p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()} == before
    assert status(run) == status(reference)  # a start that fails before the run has begun changes nothing


def test_another_configuration_is_refused_naming_the_key(
    zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    changed = workplace.arguments(run, **{"optim.learning_rate": 0.5})
    processes = zygote.run(changed, tmp_path / "log")
    assert processes.codes == [64], processes.output
    assert "optim.learning_rate: 0.001 in the checkpoint, 0.5 now" in processes.output


@pytest.mark.parametrize("name", ["optimizer.safetensors", "model.safetensors", "optimizer.json", "state.json"])
def test_garbage_of_the_right_size_is_one_message(
    name: str, zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    """`checkpoint.verify: size` lets it through."""
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    path = newest(run) / name
    path.write_bytes(b"\xff" * path.stat().st_size)
    processes = zygote.run(workplace.arguments(run, **{"checkpoint.verify": "size"}), tmp_path / "log")
    assert processes.codes == [66], processes.output
    assert f"step-{STEPS:06d}: it verifies (checkpoint.verify: size), but cannot be loaded" in processes.output
    assert "Traceback" not in processes.output

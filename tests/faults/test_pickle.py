"""F15: nothing that comes in a checkpoint or a model folder is ever run. The canary is a file such code would make.

That a forged manifest does not help either is shown in tests/process/test_state.py.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_runs import STEPS, Workplace, Zygote, weights


class Evil:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def evil(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(canary)))
    pickle.loads(path.read_bytes())
    canary.unlink()  # it works


@pytest.mark.parametrize("name", ["optimizer.safetensors", "custom_checkpoint_0.pkl", "tuning/adapter_model.bin"])
def test_a_pickle_in_a_checkpoint(
    name: str, zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    run, canary = tmp_path / "run", tmp_path / "canary"
    shutil.copytree(reference, run)
    evil(run / "checkpoints" / f"step-{STEPS:06d}" / name, canary)
    processes = zygote.run(workplace.arguments(run), tmp_path / "log")
    assert processes.codes == [0], processes.output
    assert not canary.exists()
    assert f"{name}: " in next(line for line in processes.output.splitlines() if "is not used" in line)
    assert weights(run) == weights(reference)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_that_is_a_pickle(name: str, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    model, canary = tmp_path / "evil-model", tmp_path / "canary"
    shutil.copytree(workplace.model, model)
    evil(model / name, canary)
    options = {"model.path": model, "model.init": "pretrained"}
    processes = zygote.run(workplace.arguments(tmp_path / "run", **options), tmp_path / "log")
    assert processes.codes == [64], processes.output
    assert name in processes.output
    assert "Traceback" not in processes.output
    assert not canary.exists()


def test_code_that_comes_with_a_model(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    model, canary = tmp_path / "evil-model", tmp_path / "canary"
    shutil.copytree(workplace.model, model)
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    (model / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": names}))
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    processes = zygote.run(workplace.arguments(tmp_path / "run", **{"model.path": model}), tmp_path / "log")
    assert processes.codes == [64], processes.output
    assert "trust_remote_code" in processes.output
    assert "Traceback" not in processes.output
    assert not canary.exists()

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fault_runs import Workplace, Zygote


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(scope="session")
def reference(zygote: Zygote, workplace: Workplace) -> Path:
    """A run of one process that nothing disturbs."""
    run = workplace.folder / "reference"
    processes = zygote.run(workplace.arguments(run), workplace.folder / "reference")
    assert processes.codes == [0], processes.output
    return run


@pytest.fixture(scope="session")
def reference_of_two(zygote: Zygote, workplace: Workplace) -> Path:
    """The same with two ranks, each with a dropout of its own."""
    run = workplace.folder / "reference-of-two"
    processes = zygote.run(workplace.arguments(run), workplace.folder / "reference-of-two", "ddp")
    assert processes.codes == [0, 0], processes.output
    return run

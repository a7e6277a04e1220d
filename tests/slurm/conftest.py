"""One cluster for all tests of this folder, and the uninterrupted runs outside of it that theirs must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fault_runs import Workplace, Zygote
from tests.support.many_runs import start
from tests.support.slurm_cluster import Cluster, missing
from tests.support.training_runs import ROOT

Reference = Callable[[str, int], Path]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; skips with the reason where SLURM is not installed."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    made = Cluster(tmp_path_factory.mktemp("cluster"), nodes=3)
    yield made
    made.close()


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Data, model and a recipe in a folder whose name a shell would take apart."""
    made = Workplace(tmp_path_factory.mktemp("work") / "a 'b' $(touch X); \"c\" \\d\ne")
    (made.folder / "recipe.yaml").write_text("model:\n  init: random\n", encoding="utf-8")
    return made


@pytest.fixture(scope="session")
def reference(zygote: Zygote, workplace: Workplace) -> Reference:
    """kind, ranks -> the folder of a run that knows of no cluster and that nothing disturbs."""
    made: dict[tuple[str, int], Path] = {}

    def run(kind: str, ranks: int) -> Path:
        folder = workplace.folder / f"reference-{kind}-{ranks}"
        if (kind, ranks) not in made:
            start(zygote, workplace.arguments(folder), folder, kind, ranks)
            made[kind, ranks] = folder
        return folder

    return run


@pytest.fixture
def run(workplace: Workplace, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A run folder; no shell has touched anything."""
    yield workplace.folder / request.node.name
    assert not [path for folder in (ROOT, workplace.folder, Path.cwd()) for path in folder.glob("X*")]

"""What every test may use: quiet, offline libraries, the project's folders, real data where it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.fault_runs import Zygote

# Before torch or transformers is imported anywhere: two workers share two cores, and no test asks a hub.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
}.items():
    os.environ.setdefault(name, value)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_qwen2() -> Path:
    """A folder with the configuration and tokenizer of a tiny Qwen2, without weights."""
    return ROOT / "examples" / "models" / "tiny-qwen2"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data: $ZEROTUNE_DATA, else ../shared/data beside the project. Skips where there is none."""
    folder = Path(os.environ.get("ZEROTUNE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ZEROTUNE_DATA")
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs from all but `pytest -m gpu`, here and in what tests start: what they find depends on no machine."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts training processes without the seconds that imports take."""
    from tests.support.fault_runs import Zygote

    warm = Zygote()
    yield warm
    warm.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none, with the reason."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs `pytest -m gpu` and a CUDA device"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew and print what changed")
    parser.addoption("--no-processes", action="store_true", help="skip each test that starts a process")


@pytest.fixture(autouse=True)
def _no_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For `make quick`: a test that starts a process takes seconds."""
    if request.config.getoption("--no-processes"):

        def skip(*arguments: object, **options: object) -> None:
            pytest.skip("starts a process")

        monkeypatch.setattr("subprocess.Popen.__init__", skip)
        monkeypatch.setattr("multiprocessing.process.BaseProcess.start", skip)

"""The package as pip installs it, in an environment of its own, used from an empty folder. Nothing is downloaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from tests.support.training_runs import BIN, ROOT, build_operator
from train.engine import deepspeed_ops

TOOLS = {found.name.lower() for found in distributions()}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not {"pip", "setuptools"} <= TOOLS, reason="pip and setuptools build the package; they are missing"
    ),
]

PACKAGES = ("train", "eval", "zerotune")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "recipes", "accelerate_configs", "ds_configs", "slurm", "examples")
TRAIN = ("qwen2.5-0.5b-lora", "cpu", "--duration.max_steps", "2", "--validation.samples", "1")


def pip(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools writes beside what it builds. A private file lies where it could be taken along."""
    source = tmp_path_factory.mktemp("source")
    for path in (ROOT / name for name in (*PACKAGES, *SOURCES)):
        if path.is_dir():
            shutil.copytree(path, source / path.name, symlinks=True)
        else:
            shutil.copy(path, source / path.name)
    (source / "slurm/site.sh").write_text("export WANDB_API_KEY=x\n", encoding="utf-8")
    pip(source, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(source / "out"), ".")
    [made] = (source / "out").glob("zerotune-*.whl")
    return made


class Installed:
    """The command in an environment of its own, and the folder, empty at first, in which it is used."""

    def __init__(self, home: Path, folder: Path, wheel: Path) -> None:
        self.folder, self.command = folder, home / "bin/zerotune"
        venv.create(home, with_pip=False, symlinks=True)
        pip(folder, "--python", str(home / "bin/python"), "install", "--no-deps", "--no-index", str(wheel))
        [self.packages] = home.glob("lib/python*/site-packages")
        # The libraries are those of this environment.
        libraries = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (self.packages / "libraries.pth").write_text(libraries, encoding="utf-8")
        self.variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RANK")} | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(home / "hf"),
            # The operator that other tests have compiled, and the ninja that compiled it.
            "TORCH_EXTENSIONS_DIR": str(deepspeed_ops.folder()),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def run(self, *words: str, code: int = 0) -> str:
        """All that the command says; nothing of the checkout is used."""
        done = subprocess.run(
            [self.command, *words], cwd=self.folder, env=self.variables, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        assert str(ROOT) not in done.stdout.replace(sys.prefix, "")  # which may lie inside
        return done.stdout

    def read(self, file: str) -> dict[str, Any]:
        """A file of JSON that it wrote."""
        found: dict[str, Any] = json.loads((self.folder / file).read_text(encoding="utf-8"))
        return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty"), wheel)


def test_the_wheel_holds_every_file_and_no_private_one(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    listed = subprocess.run(["git", "ls-files", "-z", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git repository")
    tracked = {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    shipped = {
        f"zerotune/shipped/{path.relative_to(ROOT)}"
        for pattern in ("recipes/**/*.yaml", "accelerate_configs/*", "ds_configs/*", "slurm/*", "examples/data/*")
        for path in ROOT.glob(pattern)
        if path.is_file() and path.name != "site.sh"
    }
    assert len(shipped) > 70
    assert not (tracked | shipped) - names
    assert "zerotune/shipped/slurm/site.sh" not in names


def test_recipes_are_found_by_name(installed: Installed) -> None:
    assert installed.run("--version") == "zerotune 0.1.0\n"
    listed = installed.run("recipes")
    assert "\n  demo " in listed
    assert "\n  eval/gsm8k " in listed
    assert "max_steps: 6" in installed.run("recipes", "cpu")
    assert "did you mean qlora?" in installed.run("train", "qloar", code=64)


def test_env_says_what_is_installed(installed: Installed) -> None:
    said = installed.run("env")
    assert "not run from a repository" in said
    assert "cannot be" not in said
    assert "deepspeed " in said


def test_train_merge_evaluate_report(installed: Installed) -> None:
    """In one process, and every other command on what it wrote."""
    installed.run("train", *TRAIN, "--run.folder", "runs/one")
    assert installed.read("runs/one/status.json")["state"] == "finished"
    assert installed.read("runs/one/run.json")["command"] == ["zerotune", "train", *TRAIN, "--run.folder", "runs/one"]
    installed.run("merge", "runs/one", "merged")
    assert (installed.folder / "merged/model.safetensors").is_file()
    assert "runs/one/report.md" in installed.run("report", "runs/one")
    data = str(installed.packages / "zerotune/shipped/examples/data/qa_heldout.jsonl")
    words = ("--tasks", "perplexity,qa", "--max_rows", "2", "--max_new_tokens", "4", "--out", "out")
    installed.run("eval", "--model", "merged", "--data", data, *words)
    assert (installed.folder / "out/report.html").is_file()


@pytest.mark.parametrize("config", ["cpu", "zero2"])
def test_train_through_a_launcher(config: str, installed: Installed) -> None:
    if config == "zero2":
        build_operator()
    run = f"runs/{config}"
    installed.run("train", "--accelerate", config, *TRAIN, "--run.folder", run, "--merge.at_end", "false")
    assert installed.read(f"{run}/status.json")["state"] == "finished"
    assert installed.read(f"{run}/run.json")["command"][:2] == ["accelerate", "launch"]

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
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.support.training_runs import ROOT, build_operator

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
Zerotune = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools writes beside what it builds. A private file lies where it could be taken along."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, *SOURCES):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"symlinks": True} if (ROOT / name).is_dir() else {}))
    (source / "slurm/site.sh").write_text("export WANDB_API_KEY=x\n", encoding="utf-8")
    pip(source, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(source / "out"), ".")
    [made] = (source / "out").glob("zerotune-*.whl")
    return made


def pip(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def zerotune(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Zerotune:
    """The installed command, in one folder that is empty at first. The libraries are those of this environment."""
    home, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty")
    venv.create(home, with_pip=False, symlinks=True)
    pip(folder, "--python", str(home / "bin/python"), "install", "--no-deps", "--no-index", str(wheel))
    place = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    (Path(place) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RANK")}
    variables = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "COLUMNS": "80"}

    def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(home / "bin/zerotune"), *words]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert str(ROOT) not in done.stdout + done.stderr  # nothing of the checkout is used
        return done

    run.folder = folder  # type: ignore[attr-defined]
    return run


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


def test_recipes_are_found_by_name(zerotune: Zerotune) -> None:
    assert zerotune("--version").stdout == "zerotune 0.1.0\n"
    listed = zerotune("recipes").stdout
    assert "\n  demo " in listed
    assert "\n  eval/gsm8k " in listed
    assert "max_steps: 6" in zerotune("recipes", "cpu").stdout
    assert "did you mean qlora?" in zerotune("train", "qloar", code=64).stderr


def test_env_says_what_is_installed(zerotune: Zerotune) -> None:
    said = zerotune("env").stdout
    assert "not run from a repository" in said
    assert "cannot be" not in said
    assert "deepspeed " in said


def test_train_merge_evaluate_report(zerotune: Zerotune) -> None:
    """In one process, and every command behind it on what it wrote."""
    folder: Path = zerotune.folder  # type: ignore[attr-defined]
    zerotune("train", *TRAIN, "--run.folder", "runs/one")
    assert json.loads((folder / "runs/one/status.json").read_text())["state"] == "finished"
    facts = json.loads((folder / "runs/one/run.json").read_text())
    assert facts["command"] == ["zerotune", "train", *TRAIN, "--run.folder", "runs/one"]
    zerotune("merge", "runs/one", "merged")
    assert (folder / "merged/model.safetensors").is_file()
    assert "runs/one/report.md" in zerotune("report", "runs/one").stdout
    words = ("--tasks", "perplexity,qa", "--max_rows", "2", "--max_new_tokens", "4", "--out", "out")
    examples = next(folder.parent.glob("environment*/lib/python*/site-packages/zerotune/shipped/examples/data"))
    zerotune("eval", "--model", "merged", "--data", str(examples / "qa_heldout.jsonl"), *words)
    assert (folder / "out/report.html").is_file()


@pytest.mark.parametrize("config", ["cpu", "zero2"])
def test_train_through_a_launcher(config: str, zerotune: Zerotune) -> None:
    folder: Path = zerotune.folder  # type: ignore[attr-defined]
    if config == "zero2":
        build_operator()
    zerotune("train", "--accelerate", config, *TRAIN, "--run.folder", f"runs/{config}", "--merge.at_end", "false")
    assert json.loads((folder / f"runs/{config}/status.json").read_text())["state"] == "finished"
    facts = json.loads((folder / f"runs/{config}/run.json").read_text())
    assert facts["command"][:2] == ["accelerate", "launch"]

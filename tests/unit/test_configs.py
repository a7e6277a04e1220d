"""Every recipe, accelerate_config and ds_config is found, loaded and checked; none is forgotten."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.config import parse as evaluation
from train.config import Config
from train.preflight import check_inputs
from train.recipe import parse
from train.search.space import check_values, read_space
from zerotune.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in ("eval", "spaces"))
SPACES = sorted((ROOT / "recipes" / "spaces").rglob("*.yaml"))
EVALUATIONS = sorted((ROOT / "recipes" / "eval").rglob("*.yaml"))
ACCELERATE = sorted((ROOT / "accelerate_configs").rglob("*.yaml"))
DEEPSPEED = sorted((ROOT / "ds_configs").rglob("*.json"))
CPU = ROOT / "recipes" / "cpu.yaml"
PARTS = [path for path in RECIPES if path == CPU or path.parent.name == "data"]  # put after a recipe, never alone
WHOLE = [path for path in RECIPES if path not in PARTS]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def recipe(*paths: Path) -> Config:
    return parse([word for path in paths for word in ("--config", str(path))])


def small(path: Path, *parts: Path) -> Config:
    """With the stand-ins of CPU."""
    return recipe(path, *parts, CPU)


def test_there_is_something_to_look_at() -> None:
    """A new file raises a number here; a moved folder does not pass in silence."""
    assert (len(WHOLE), len(PARTS), len(EVALUATIONS), len(ACCELERATE), len(DEEPSPEED)) == (18, 6, 13, 12, 5)


class TestRecipes:
    @pytest.mark.parametrize("path", WHOLE, ids=name)
    def test_alone(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        config = recipe(path)
        assert config.run.folder.startswith("runs/")
        for source in (*config.data.train, *config.data.validation):
            assert Path(source.path).is_file(), f"{name(path)} starts from the small data in examples"

    @pytest.mark.parametrize("path", WHOLE, ids=name)
    def test_with_small_stand_ins(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The tiny model, few steps, and what is learned, how, and on what stays the recipe's own."""
        monkeypatch.chdir(ROOT)
        alone, tried = recipe(path), small(path)
        assert tried.model.family or (Path(tried.model.path) / "config.json").is_file()
        assert tried.duration.max_steps is not None
        assert tried.duration.max_steps <= 10
        assert (tried.objective, tried.tuning.kind, tried.data.train, tried.optim) == (
            alone.objective,
            alone.tuning.kind,
            alone.data.train,
            alone.optim,
        )

    @pytest.mark.parametrize("path", WHOLE, ids=name)
    def test_run_folders_differ(self, path: Path) -> None:
        assert [recipe(other).run.folder for other in WHOLE].count(recipe(path).run.folder) == 1

    @pytest.mark.parametrize("part", [p for p in PARTS if p != CPU], ids=name)
    def test_data_parts_go_with_every_language_model(self, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        models = [path for path in WHOLE if recipe(path).objective == "causal_lm"]
        assert len(models) == 10
        for whole in models:
            config = small(whole, part)
            assert [source.format for source in config.data.train] == [config.data.train[0].format]
            assert Path(config.data.train[0].path).is_file()

    @pytest.mark.parametrize("part", PARTS, ids=name)
    def test_a_part_alone_is_refused(self, part: Path) -> None:
        with pytest.raises(UserError, match=r"model\.path|data\.train"):
            recipe(part)

    def test_every_row_format_has_a_part(self) -> None:
        plain = next(path for path in WHOLE if path.stem == "demo")
        formats = {recipe(plain, part).data.train[0].format for part in PARTS if part != CPU}
        assert formats == {"text", "qa", "pr", "io", "chat"}


class TestSpaces:
    @pytest.mark.parametrize("path", SPACES, ids=name)
    def test_fits_the_recipe_that_it_names(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        named = re.findall(r"^# python -m train\.search (\S+) --space (\S+)$", path.read_text(encoding="utf-8"), re.M)
        assert [space for _, space in named] == [name(path)]
        check_values(read_space(path), ["--config", named[0][0]], check_inputs)

    def test_the_grid_of_tinystories_is_the_published_one(self) -> None:
        space = read_space(ROOT / "recipes" / "spaces" / "tinystories-grid.yaml")
        points = [space.settings(space.grid_point(number)) for number in range(space.trials)]
        keys = ("duration.max_epochs", "data.train.0.fraction")
        assert [tuple(point[key] for key in keys) for point in points] == [(2, 0.9), (2, 0.6), (1, 0.9)]


class TestEvaluations:
    @pytest.mark.parametrize("path", EVALUATIONS, ids=name)
    def test_it_is_understood(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its keys and tasks; the models and most data are the user's to bring."""
        monkeypatch.chdir(ROOT)
        config = evaluation(["--config", str(path)])
        assert config.out == f"runs/eval/{path.stem}"
        assert config.model
        for task in config.chosen_tasks:
            for data in config.data_of(task.name):
                assert not data.startswith("examples/") or (ROOT / data).is_file()

    @pytest.mark.parametrize("path", EVALUATIONS, ids=name)
    def test_the_header_shows_its_own_command(self, path: Path) -> None:
        assert f"# python -m eval --config recipes/eval/{path.name}" in path.read_text(encoding="utf-8")


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


class TestAccelerateConfigs:
    @pytest.mark.parametrize("path", ACCELERATE, ids=name)
    def test_accelerate_reads_it(self, path: Path) -> None:
        """Its own loader, which refuses unknown keys."""
        from accelerate.commands.config.config_args import load_config_from_file

        config = load_config_from_file(str(path))
        assert config.distributed_type.value == loaded(path)["distributed_type"]

    @pytest.mark.parametrize("path", ACCELERATE, ids=name)
    def test_its_deepspeed_file_is_there(self, path: Path) -> None:
        settings = loaded(path)
        wants = settings["distributed_type"] == "DEEPSPEED"
        assert wants == ("deepspeed_config" in settings)
        if wants:
            file = ROOT / settings["deepspeed_config"]["deepspeed_config_file"]
            assert file in DEEPSPEED
            assert path.name.startswith(file.stem)
            # Beside a DeepSpeed file, Accelerate ignores or refuses settings of its own.
            assert set(settings["deepspeed_config"]) <= {"deepspeed_config_file", "deepspeed_multinode_launcher"}

    @pytest.mark.parametrize("path", ACCELERATE, ids=name)
    def test_precision_and_accumulation_come_from_the_recipe(self, path: Path) -> None:
        assert not {"mixed_precision", "fp16", "bf16", "gradient_accumulation_steps"} & set(loaded(path))

    @pytest.mark.parametrize("path", ACCELERATE, ids=name)
    def test_the_header_shows_its_own_command(self, path: Path) -> None:
        assert f"--config_file accelerate_configs/{path.name} " in path.read_text(encoding="utf-8").replace("\\\n#", "")

    @pytest.mark.parametrize("path", ACCELERATE, ids=name)
    def test_several_nodes(self, path: Path) -> None:
        """DeepSpeed's default launcher writes the environment, tokens included, into a file."""
        settings = loaded(path)
        several = settings["num_machines"] > 1
        assert several == path.stem.endswith("_multi_node")
        if several and settings["distributed_type"] == "DEEPSPEED":
            assert settings["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"

    def test_every_deepspeed_file_is_used(self) -> None:
        used = {loaded(path).get("deepspeed_config", {}).get("deepspeed_config_file") for path in ACCELERATE}
        assert {name(path) for path in DEEPSPEED} == used - {None}


class TestDeepSpeedConfigs:
    @pytest.mark.parametrize("path", DEEPSPEED, ids=name)
    def test_every_key_is_deepspeeds(self, path: Path) -> None:
        from deepspeed.runtime import constants
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        settings = json.loads(path.read_text(encoding="utf-8"))
        known = {value for value in vars(constants).values() if isinstance(value, str)}
        assert set(settings) <= known | {"zero_optimization"}
        zero = DeepSpeedZeroConfig(**settings["zero_optimization"])  # refuses unknown keys itself
        assert int(zero.stage) == int(path.stem[4])
        assert path.stem.endswith("_offload") == (zero.offload_optimizer is not None)

    @pytest.mark.parametrize("path", DEEPSPEED, ids=name)
    def test_what_our_loop_relies_on(self, path: Path) -> None:
        settings = json.loads(path.read_text(encoding="utf-8"))
        assert settings["gradient_accumulation_steps"] == 1  # the loop accumulates, over exact counts
        assert settings["gradient_clipping"] == "auto"
        assert settings["bf16"]["enabled"] == settings["fp16"]["enabled"] == "auto"
        assert settings["zero_allow_untested_optimizer"] is True
        assert settings["zero_force_ds_cpu_optimizer"] is False

    @pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
    @pytest.mark.parametrize("path", DEEPSPEED, ids=name)
    def test_accelerate_fills_in_the_precision(self, path: Path, precision: str) -> None:
        from accelerate.utils import DeepSpeedPlugin

        plugin = DeepSpeedPlugin(hf_ds_config=str(path))
        plugin.set_mixed_precision(precision)
        chosen = [kind for kind in ("fp16", "bf16") if plugin.deepspeed_config[kind]["enabled"]]
        assert chosen == ([] if precision == "no" else [precision])


def test_the_stand_in_is_complete_and_small(project: Path) -> None:
    files = list((project / "examples" / "models" / "tiny-qwen2").iterdir())
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} == {f.name for f in files}
    assert all(f.stat().st_size < 300_000 for f in files)

"""The command `zerotune`: what each of its commands hands on, to this process or to a launcher."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import seconds_of
from tests.support.slurm_stubs import Stubs
from train.cli import COMMANDS, environment, run
from train.cli.init import COPIED
from train.cli.recipes import listing
from train.command_words import split, with_recipes
from train.launcher import FOR_SEVERAL, default_config, launch_command
from train.merge import __main__ as merge
from zerotune import shipped
from zerotune.common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
START = [sys.executable, "-m", "train.cli"]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No launcher has started us, Accelerate has no configuration of its own, and there is no GPU."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("train.launcher.gpus", lambda: 0)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that this process was to become."""
    found: list[str] = []

    def execv(_: str, command: list[str]) -> None:
        found.extend(command)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    return found


class TestHelp:
    @pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]], ids=str)
    def test_lists_every_command(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert run(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines if line.startswith("  ")][: len(COMMANDS)] == list(COMMANDS)
        assert max(map(len, lines)) <= 80

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_a_command_fits_80_columns(
        self, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as ended:
            run([command, "--help"])
        assert not ended.value.code
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"usage: zerotune {command} ")
        assert max(map(len, lines)) <= 80

    @pytest.mark.parametrize("word", ["--help", "--version", "recipes"])
    def test_comes_within_half_a_second(self, word: str) -> None:
        assert seconds_of([*START, word])[0] < 0.5

    def test_loads_no_library(self) -> None:
        code = "import sys; from train.cli import run; run([]); print(sorted(m for m in sys.modules if '.' not in m))"
        said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert "'train'" in said
        for heavy in ("torch", "transformers", "numpy", "jsonargparse", "accelerate", "yaml"):
            assert f"'{heavy}'" not in said


class TestCommands:
    @pytest.mark.parametrize(("word", "meant"), [("trian", "train"), ("evaluate", "eval"), ("recipe", "recipes")])
    def test_unknown_command_gives_one_message(self, word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run([word]) == 64
        assert capsys.readouterr().err == f"error: unknown command {word!r}; did you mean {meant}?\n"

    def test_unsimilar_command_lists_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["\x1b]0;训练"]) == 64
        listed = f"the commands are {', '.join(COMMANDS)}"
        assert capsys.readouterr().err == f"error: unknown command '\\x1b]0;训练'; {listed}\n"

    def test_a_mistyped_option_is_answered(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["merge", "runs/demo", "out", "--chekpoint", "best"]) == 64
        assert "did you mean --checkpoint?" in capsys.readouterr().err

    def test_help_of_a_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            run(["help", "report"])
        assert capsys.readouterr().out.startswith("usage: zerotune report")

    def test_version_and_commit(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["--version"]) == 0
        assert capsys.readouterr().out.startswith("zerotune 0.1.0")

    def test_merge_and_report_are_called_by_their_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command in ("merge", "report"):
            assert run([command]) == 64
            assert f"; `zerotune {command} --help` shows the usage\n" in capsys.readouterr().err
        assert merge.parser().prog == "python -m train.merge"

    def test_closed_pipe_gives_no_traceback(self) -> None:
        done = subprocess.run(
            ["bash", "-c", f"'{sys.executable}' -m train.cli recipes | true"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""


class TestRecipes:
    def test_all_are_listed_in_80_columns(self) -> None:
        text = listing()
        for path in RECIPES:
            name = path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
            assert f"\n  {name} " in text, name
        lines = text.splitlines()[:-1]  # the last one is the folder
        assert max(map(len, lines)) <= 80

    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
    def test_each_says_what_it_is_for(self, path: Path) -> None:
        assert 20 <= len(shipped.about(path)) <= 160

    def test_one_is_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["recipes", "eval/gsm8k"]) == 0
        assert capsys.readouterr().out == (ROOT / "recipes/eval/gsm8k.yaml").read_text(encoding="utf-8")

    def test_a_mistyped_name_is_answered(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["recipes", "qloar"]) == 64
        assert capsys.readouterr().err == "error: qloar: there is no such recipe; did you mean qlora?\n"

    def test_the_name_of_an_evaluation_is_answered(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["recipes", "gsm8k"]) == 64
        assert "did you mean eval/gsm8k?" in capsys.readouterr().err


class TestRecipeNames:
    @pytest.mark.parametrize(
        ("words", "files"),
        [
            (["demo"], ["demo"]),
            (["demo.yaml", "cpu"], ["demo", "cpu"]),
            (["recipes/demo.yaml"], ["demo"]),  # as the guides write it
            (["qlora", "--config", "data/chat", "--config=cpu"], ["qlora", "data/chat", "cpu"]),
        ],
        ids=str,
    )
    def test_in_front_and_after_config(
        self, words: list[str], files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        expected = [word for name in files for word in ("--config", str(ROOT / "recipes" / f"{name}.yaml"))]
        assert with_recipes([*words, "--optim.learning_rate", "1e-4"]) == [*expected, "--optim.learning_rate", "1e-4"]

    def test_evaluations_need_no_folder(self) -> None:
        assert with_recipes(["gsm8k"], "eval/") == ["--config", str(ROOT / "recipes/eval/gsm8k.yaml")]
        assert with_recipes(["eval/gsm8k"], "eval/") == with_recipes(["gsm8k"], "eval/")

    def test_port_0_is_any_free_port(self) -> None:
        assert split(["--main_process_port", "0"]) == ({"main_process_port": "0"}, [])

    def test_a_folder_does_not_hide_a_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("demo").mkdir()
        assert with_recipes(["demo"])[1].endswith("recipes/demo.yaml")

    @pytest.mark.parametrize("name", ["demo", "我的配置.yaml", "run one.yaml"])
    def test_a_file_of_the_user_s_comes_first(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path(name).write_text("{}", encoding="utf-8")
        assert with_recipes([name]) == ["--config", name]

    @pytest.mark.parametrize(
        ("word", "meant"),
        [
            ("dmeo", "demo"),
            ("qwen2.5-0.5b-lor", "qwen2.5-0.5b-lora"),
            ("data/chta", "data/chat"),
            ("recipes/dmeo.yaml", "demo"),
        ],
    )
    def test_a_mistyped_one_is_answered(
        self, word: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=f"^{word}: there is no such recipe; did you mean {meant}[?]$"):
            with_recipes([word])

    def test_examples_are_found_from_any_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from train.recipe import parse

        monkeypatch.chdir(tmp_path)
        config = parse(with_recipes(["sft-full", "cpu"]))
        assert [Path(source.path) for source in config.data.train] == [
            ROOT / "examples/data/io.json",
            ROOT / "examples/data/chat.jsonl",
        ]
        assert config.model.path == str(ROOT / "examples/models/tiny-qwen2")
        assert config.run.folder == "runs/cpu"

    def test_examples_of_the_current_folder_come_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        recipe = ROOT / "recipes/demo.yaml"
        assert shipped.with_examples({"path": "examples/data/qa.jsonl"}, recipe) == {"path": "examples/data/qa.jsonl"}

    def test_a_recipe_of_the_user_s_is_taken_as_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        value = {"data": {"train": [{"path": "examples/data/qa.jsonl"}]}}
        assert shipped.with_examples(value, tmp_path / "mine.yaml") == value

    def test_evaluations_find_the_examples_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from eval.config import parse

        monkeypatch.chdir(tmp_path)
        config = parse([*with_recipes(["chinese-qa"], "eval/"), "--model", "M"])
        assert config.data_of("qa") == [str(ROOT / "examples/data/qa_heldout.jsonl")]


class TestInit:
    def test_the_guides_commands_work_in_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = tmp_path / "my 工作"
        assert run(["init", str(place)]) == 0
        assert str(place) in capsys.readouterr().out
        stubs = Stubs(tmp_path / "stubs")
        stubs.environment["PYTHONPATH"] = str(ROOT)  # stands for an installation
        (stubs.folder / "training").write_text(
            'mkdir -p runs/cpu; printf \'{\\n "state": "finished",\\n}\\n\' >runs/cpu/status.json\n'
        )
        words = ["slurm/job.sh", "--accelerate", "zero2", "recipes/sft-full.yaml", "--config", "recipes/cpu.yaml"]
        assert stubs.run(*words, place=place) == 0, stubs.said
        assert stubs.launched is not None
        after = stubs.launched[stubs.launched.index("--module") :]
        assert after == ["--module", "train.main", "--config", *words[3:]]
        assert stubs.launched[stubs.launched.index("--config_file") + 1] == "accelerate_configs/zero2.yaml"
        assert (place / "ds_configs/zero2.json").is_file()

    def test_nothing_is_overwritten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("slurm").mkdir()
        assert run(["init", "."]) == 64
        assert capsys.readouterr().err == (
            "error: slurm: already exists, and nothing is overwritten; choose another folder\n"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["slurm"]

    def test_a_private_file_is_not_copied(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in COPIED:
            (tmp_path / "shipped" / name).mkdir(parents=True)
        (tmp_path / "shipped/slurm/site.sh").touch()
        (tmp_path / "shipped/slurm/job.sh").touch()
        monkeypatch.setattr(shipped, "HERE", tmp_path / "shipped")
        assert run(["init", str(tmp_path / "new")]) == 0
        assert [path.name for path in (tmp_path / "new/slurm").iterdir()] == ["job.sh"]

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").touch()
        assert run(["init", str(tmp_path / "file")]) == 73
        assert "cannot be written" in capsys.readouterr().err


class TestLauncher:
    def test_launcher_options_at_any_position(self) -> None:
        words = ["--accelerate", "zero3", "demo", "--num_processes=8", "--optim.learning_rate", "1e-4"]
        assert split(words) == (
            {"accelerate": "zero3", "num_processes": "8"},
            ["demo", "--optim.learning_rate", "1e-4"],
        )

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--accelerate"], "--accelerate needs a value"),
            (["--num_processes", "two"], "--num_processes two: must be a whole number from 1 on"),
            (["--num_processes", "0"], "--num_processes 0: must be a whole number from 1 on"),
        ],
        ids=str,
    )
    def test_a_wrong_value_is_refused(self, words: list[str], message: str) -> None:
        with pytest.raises(UserError, match=f"^{message}$"):
            split(words)

    @pytest.mark.parametrize(
        ("word", "meant"), [("--acelerate", "--accelerate"), ("--num_proceses=2", "--num_processes")]
    )
    def test_misspelled_launcher_options_are_answered(
        self, word: str, meant: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for command in ("train", "eval"):
            assert run([command, word, "zero3"]) == 64
            name = word.partition("=")[0]
            assert capsys.readouterr().err == f"error: unknown option {name}; did you mean {meant}?\n"

    def test_a_deepspeed_file_is_found_from_any_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        command = launch_command({"accelerate": "zero2_offload"})
        assert command[command.index("--deepspeed_config_file") + 1] == str(ROOT / "ds_configs/zero2_offload.json")
        assert command[command.index("--config_file") + 1] == str(ROOT / "accelerate_configs/zero2_offload.yaml")

    def test_a_file_of_the_user_s(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "ds_configs").mkdir()
        (tmp_path / "ds_configs/zero3.json").write_text("{}", encoding="utf-8")
        text = (ROOT / "accelerate_configs/zero3.yaml").read_text(encoding="utf-8")
        (tmp_path / "我的.yaml").write_text(text, encoding="utf-8")
        command = launch_command({"accelerate": "我的.yaml", "num_processes": "4"})
        assert command[-6:] == [
            "--config_file", "我的.yaml", "--num_processes", "4", "--deepspeed_config_file", "ds_configs/zero3.json",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("gpus", "options", "name", "processes"),
        [
            (0, {"accelerate": "cpu"}, "cpu", None),  # the file says how many
            (0, {"accelerate": "cpu_ddp"}, "cpu_ddp", None),
            (0, {"accelerate": "zero2"}, "zero2", "1"),
            (8, {"accelerate": "zero3"}, "zero3", "8"),
            (8, {"accelerate": "zero3", "num_processes": "4"}, "zero3", "4"),
            (8, {}, "ddp", "8"),
            (8, {"num_processes": "1"}, "one_gpu", "1"),
            (0, {"num_processes": "2"}, "cpu_ddp", "2"),
        ],
    )
    def test_the_config_and_the_processes(
        self, gpus: int, options: dict[str, str], name: str, processes: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("train.launcher.gpus", lambda: gpus)
        command = launch_command(options)
        assert command[command.index("--config_file") + 1] == str(ROOT / "accelerate_configs" / f"{name}.yaml")
        said = command[command.index("--num_processes") + 1] if "--num_processes" in command else None
        assert said == processes

    def test_several_machines(self) -> None:
        options = {"accelerate": "zero3", "num_machines": "2", "num_processes": "16"}
        with pytest.raises(UserError, match=r"^--num_machines 2: --machine_rank, --main_process_ip missing; add them$"):
            launch_command(options)
        command = launch_command(options | {"machine_rank": "0", "main_process_ip": "node1"})
        for words in ("--main_process_port 29500", "--machine_rank 0", " ".join(FOR_SEVERAL)):
            assert words in " ".join(command)

    def test_accelerate_understands_it(self) -> None:
        from accelerate.commands.launch import launch_command_parser

        machines = {"num_machines": "2", "num_processes": "4", "machine_rank": "1", "main_process_ip": "node1"}
        for name in shipped.names(shipped.ACCELERATE):
            options = {"accelerate": name, **(machines if name not in ("cpu", "one_gpu") else {})}
            command = launch_command(options)
            words = command[command.index("accelerate.commands.launch") + 1 :]
            given = launch_command_parser().parse_args([*words, "main.py", "--config", "x", "--num_processes", "7"])
            assert given.training_script == "main.py"
            assert given.training_script_args == ["--config", "x", "--num_processes", "7"]

    def test_one_process_is_not_several(self) -> None:
        with pytest.raises(UserError, match="starts one process, not 4; use ddp"):
            launch_command({"accelerate": "one_gpu", "num_processes": "4"})

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("zreo3", "--accelerate zreo3: there is no such accelerate config; did you mean zero3?"),
            ("x", "--accelerate x: there is no such accelerate config; use a file, or one of cpu, cpu_ddp, ddp"),
        ],
    )
    def test_an_unknown_config(self, name: str, message: str) -> None:
        with pytest.raises(UserError) as refused:
            launch_command({"accelerate": name})
        assert str(refused.value).startswith(message)

    def test_file_that_is_no_accelerate_config(self, tmp_path: Path) -> None:
        (tmp_path / "list.yaml").write_text("- a\n", encoding="utf-8")
        with pytest.raises(UserError, match="not an accelerate config"):
            launch_command({"accelerate": str(tmp_path / "list.yaml")})

    def test_the_default_config_is_accelerate_s(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code = "from accelerate.commands.config.config_args import default_config_file as f; print(f)"
        for variables in ({"HF_HOME": "/a/b"}, {"XDG_CACHE_HOME": "/c"}, {}):
            monkeypatch.delenv("HF_HOME", raising=False)
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            assert str(default_config()) == said.strip()


class TestTrain:
    WORDS = ("qwen2.5-0.5b-lora", "cpu")

    def test_goes_to_the_launcher_as_it_was_given(
        self, executed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        strange = "a  'b' $(touch X) `touch X`; é 漢 🙂\n"
        with pytest.raises(SystemExit):
            run(["train", "--accelerate", "zero2", *self.WORDS, "--data.system_prompt", strange])
        assert executed[:4] == [sys.executable, "-P", "-m", "accelerate.commands.launch"]
        place = executed.index(str(ROOT / "train/main.py"))
        assert executed[place + 1 :] == [*with_recipes(self.WORDS), "--data.system_prompt", strange]

    def test_no_recipe_is_one_message(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["train"]) == 64
        assert capsys.readouterr().err.startswith("error: no recipe: ")

    def test_invalid_options_start_no_launcher(
        self, executed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run(["train", "--accelerate", "zero2", *self.WORDS, "--data.train.0.path", "no.jsonl"]) == 64
        assert "no.jsonl" in capsys.readouterr().err
        assert executed == []

    def test_print_config_starts_none(
        self, executed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit):
            run(["train", "--accelerate", "zero2", *self.WORDS, "--print_config"])
        assert "max_steps: 6" in capsys.readouterr().out
        assert executed == []

    @pytest.mark.parametrize(("gpus", "launched"), [(0, False), (1, False), (2, True)])
    def test_several_gpus_are_used(
        self, gpus: int, launched: bool, executed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("train.launcher.gpus", lambda: gpus)
        monkeypatch.setattr("train.main.main", lambda words: 7)
        if not launched:
            assert run(["train", *self.WORDS]) == 7
            return
        with pytest.raises(SystemExit):
            run(["train", *self.WORDS])
        assert executed[executed.index("--num_processes") + 1] == "2"

    def test_accelerate_s_own_configuration_is_followed(
        self, executed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        file = default_config()
        file.parent.mkdir(parents=True)
        file.write_text((ROOT / "accelerate_configs/cpu.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        with pytest.raises(SystemExit):
            run(["train", *self.WORDS])
        assert executed[executed.index("--config_file") + 1] == str(file)

    def test_launched_process_starts_no_launcher(
        self, executed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setattr("train.launcher.gpus", lambda: 2)
        monkeypatch.setattr("train.main.main", lambda words: 7)
        assert run(["train", *self.WORDS]) == 7
        assert run(["train", *self.WORDS, "--accelerate", "ddp"]) == 64
        assert "a launcher has already started this command" in capsys.readouterr().err
        assert executed == []


class TestEval:
    def test_one_process_unless_a_config_is_named(
        self, executed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("train.launcher.gpus", lambda: 2)
        monkeypatch.setattr("eval.main.main", lambda words: words)
        monkeypatch.setattr("eval.preflight.check_inputs", lambda config: None)
        words = ["--model", "M", "--tasks", "qa", "--data", "examples/data/qa_heldout.jsonl"]
        assert run(["eval", *words]) == words
        with pytest.raises(SystemExit):
            run(["eval", *words, "--accelerate", "ddp"])
        assert executed[executed.index(str(ROOT / "eval/main.py")) + 1 :] == words
        assert executed[executed.index("--num_processes") + 1] == "2"


class TestEnvironment:
    @pytest.fixture
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "IMPORTED", {"pyyaml": "yaml"})
        monkeypatch.setattr(environment, "DEVICES", "import json; print(json.dumps({'GPUs': 0}))")

    def test_hides_secrets(
        self, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("HF_TOKEN", "hf_secret_one")
        monkeypatch.setenv("WANDB_API_KEY", "key_secret_two")
        monkeypatch.setenv("https_proxy", "http://me:secret_three@proxy:8080")
        monkeypatch.setenv("HF_ENDPOINT", "https://secret_four@mirror/\x1b]0;x\x07````")
        monkeypatch.setenv("CUDA_HOME", f"{tmp_path}/cuda")
        monkeypatch.setenv("HF_HOME", f"{tmp_path}/hf")
        default_config().parent.mkdir(parents=True)
        default_config().write_text("a: hf_secret_one\nb: 2\n", encoding="utf-8")
        assert run(["env"]) == 0
        text = capsys.readouterr().out
        assert "secret" not in text
        assert "\x1b" not in text
        assert str(tmp_path) not in text
        for line in ("HF_TOKEN ", "~/cuda", "http://***@proxy:8080", "  a: ***\n  b: 2\n"):
            assert line in text
        assert text.count("````") % 2 == 0
        assert text.count("````") == 2 * text.count("````text")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("raise ImportError('undefined symbol: _ZN3c10')", "ImportError: undefined symbol: _ZN3c10"),
            ("import os; os.abort()", "exit code -6"),
            ("import sys; sys.exit(3)", "SystemExit: 3"),
            ("import time; time.sleep(60)", "no result within 2 s"),
        ],
    )  # fmt: skip
    def test_a_broken_package_is_told(
        self, text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "broken_one.py").write_text(f"print('hello')\n{text}\n", encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(environment, "SECONDS", 2)
        assert environment._faults(["json", "broken_one", "wave"]) == {"json": "", "broken_one": expected, "wave": ""}

    def test_a_torch_that_is_missing_or_broken(self, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "DEVICES", "import no_such_module")
        monkeypatch.setattr(environment, "_memory", lambda: 1 / 0)
        monkeypatch.setenv("PATH", "")
        text = environment.report()
        assert "failed: exit code 1: ModuleNotFoundError: No module named 'no_such_module'" in text
        assert "unknown (ZeroDivisionError: division by zero)" in text
        assert "not found" in text

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("HF_PAT", "canary"), ("HF_TOKEN", "can"), ("NCCL_AUTH", "canary"), ("CUDA_PASSPHRASE", "canary"),
            ("HTTPS_PROXY", "bob:canary@proxy:8080"), ("HTTPS_PROXY", "http://bob:can/ary@proxy"),
            ("HF_ENDPOINT", "https://hub.example/x?token=canary"), ("TORCH_HOME", "hf_canary00000000"),
            ("TORCH_HOME", "glpat-canary000000"),
        ],
    )  # fmt: skip
    def test_no_secret_of_the_environment_is_shown(
        self, name: str, value: str, quick: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        text = environment.report()
        assert name in text
        assert not re.search("canary|can/ary|can$", text, re.MULTILINE)

    def test_no_secret_of_the_accelerate_config_is_shown(
        self, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        default_config().parent.mkdir(parents=True)
        default_config().write_text("hub:\n  hub_token: canary\n  aws_secret: 'canary'\nmixed_precision: bf16\n")
        text = environment.report()
        assert "canary" not in text
        assert "mixed_precision: bf16" in text

    def test_no_library_is_needed(self) -> None:
        code = "import sys; sys.path.insert(0, '.'); from train.cli import run; sys.exit(run(['env']))"
        done = subprocess.run(
            [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONNOUSERSITE": "1"},
        )  # fmt: skip
        assert re.search("^torch +not installed$", done.stdout, re.MULTILINE)

    def test_the_devices_of_this_machine(self) -> None:
        found = dict(environment._devices())
        assert found["GPUs"].isdecimal()
        assert json.loads(found["threads"]) >= 1

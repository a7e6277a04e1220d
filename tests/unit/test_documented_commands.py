"""Every command, piece of a recipe and name of a key in the guides is one that the programs accept."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from train.config import Config, SourceConfig
from train.fingerprint import flat
from train.recipe import parse

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PROGRAMS = (
    "accelerate",
    "zerotune",
    "python",
    "make",
    "sbatch",
    "bash",
    "...",
)  # what the guides' other commands start is not ours
# Words that stand for the reader's own.
NAMES = {"recipes/NAME.yaml": "recipes/demo.yaml", "RECIPE": "recipes/demo.yaml", "GPUS": "8"}


def commands() -> Iterator[tuple[str, list[str]]]:
    """(file:line, words) of each command that the guides and the recipes' headers show."""
    for path in [*GUIDES, *RECIPES]:
        indent = "# " if path.suffix == ".yaml" else "    "
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.startswith(indent) or (number > 1 and lines[number - 2].endswith("\\")):
                continue
            shown, following = line.removeprefix(indent), number
            while shown.endswith("\\") or (following < len(lines) and lines[following].lstrip().startswith("[--")):
                shown = shown.removesuffix("\\") + lines[following].removeprefix(indent)
                following += 1
            words = words_of(shown)
            if words and words[0] in PROGRAMS:
                yield f"{path.relative_to(ROOT)}:{number}", words


def words_of(shown: str) -> list[str]:
    """The words of a shell command without remarks; of what is optional or a choice, the first."""
    shown = re.sub(r"\s{2,}\(.*\)$", "", shown)
    shown = re.sub(r"\[([^\]]*)\]", lambda found: found[1].replace(" ...", ""), shown)
    try:
        words = shlex.split(shown, comments=True)
    except ValueError:  # no command: a quote that never ends
        return []
    words = [NAMES.get(word, word.partition("|")[0]) for word in words]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    return words


ALL = list(commands())


def kind(words: list[str]) -> str:
    if words[0] == "...":
        return "train"
    if words[0] in ("sbatch", "bash"):
        return "slurm"
    modules = {
        "train.merge": "merge",
        "train.report": "report",
        "train.search": "search",
        "train.plan": "plan",
        "train.check": "check",
        "eval": "eval",
    }
    if words[:2] == ["python", "-m"]:
        return modules[words[2]]
    scripts = {"train/main.py": "train", "eval/main.py": "eval"}
    return next((scripts[word] for word in words if word in scripts), words[0])


def check_train(words: list[str]) -> None:
    parse([word for word in words if word not in ("...", "--print_config")])  # which would print and end


def check_eval(words: list[str]) -> None:
    from eval.config import parse

    more = ["--tasks", "perplexity", "--data", "rows.jsonl"] if "..." in words else []
    parse([word for word in words if word != "..."] + more)


def check_merge(words: list[str]) -> None:
    from train.merge.__main__ import parser

    parser().parse_args(words)


def check_report(words: list[str]) -> None:
    from train.report.__main__ import parser

    parser().parse_args(words)


def check_search(words: list[str]) -> None:
    from train.search.__main__ import options
    from train.search.space import check_values, read_space

    found = options(words)
    check_values(read_space(Path(found.space)), found.recipe, lambda config: None)


def check_plan(words: list[str]) -> None:
    from train.plan.__main__ import options
    from train.plan.launch import read_files

    found = options(words)
    read_files(found.accelerate)
    check_train(list(found.recipe))


def check_check(words: list[str]) -> None:
    from train.check.__main__ import options

    parse(options(words).recipe)


def check_zerotune(words: list[str]) -> None:
    from train.cli import COMMANDS
    from train.command_words import split, with_recipes
    from train.launcher import launch_command

    command, *rest = words
    assert command in COMMANDS
    if command in ("search", "plan", "check"):
        CHECKS[command](rest)
    if command in ("train", "eval"):
        options, rest = split(rest)
        if options:
            launch_command({"num_processes": "1"} | options)
        {"train": check_train, "eval": check_eval}[command](with_recipes(rest, "eval/" if command == "eval" else ""))


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words) <= set(targets)


def check_python(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file()


def check_slurm(words: list[str]) -> None:
    """A batch script, after sbatch's options; the chain has these after its own name."""
    place = next(i for i, word in enumerate(words) if word.startswith("slurm/"))
    script, rest = words[place], words[place + 1 :]
    assert (ROOT / script).is_file()
    if script == "slurm/chain.sh":
        end = rest.index("--")
        check_eval(["--model", "RUN/merged", *rest[end + 1 :]])
        rest = rest[next(i for i, word in enumerate(rest) if not word.startswith("--")) : end]
    if rest[0] == "--accelerate":
        assert (ROOT / "accelerate_configs" / f"{rest[1]}.yaml").is_file()
        del rest[:2]
    if script == "slurm/sweep.sh" and "--space" in rest:
        check_search(rest)
        return
    if script == "slurm/sweep.sh":
        assert len(rest) == 2
        del rest[1]
    if script in ("slurm/job.sh", "slurm/sweep.sh", "slurm/chain.sh"):
        check_train(["--config", *rest])
    else:
        {"slurm/eval.sh": check_eval, "slurm/merge.sh": check_merge}[script](rest)


CHECKS = {
    "train": check_train,
    "eval": check_eval,
    "merge": check_merge,
    "report": check_report,
    "search": check_search,
    "plan": check_plan,
    "check": check_check,
    "zerotune": check_zerotune,
    "make": check_make,
    "python": check_python,
    "slurm": check_slurm,
}


def test_there_is_something_to_look_at() -> None:
    """At least so many; a guide that is moved or written otherwise does not pass in silence."""
    found = Counter(kind(words) for _, words in ALL)
    assert found["train"] >= 17
    assert found["eval"] >= 6
    assert found["merge"] >= 3
    assert found["report"] >= 3
    assert found["make"] >= 6
    assert found["zerotune"] >= 11
    assert found["slurm"] >= 6


@pytest.mark.parametrize(("place", "words"), ALL, ids=[place for place, _ in ALL])
def test_the_program_accepts_it(place: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = after_launcher(words) if words[0] == "accelerate" else words[1:]
    if words[:2] == ["python", "-m"]:
        options = words[3:]
    elif words[:2] == ["python", "train/main.py"]:
        options = words[2:]
    CHECKS[kind(words)](options)


def after_launcher(words: list[str]) -> list[str]:
    """What `accelerate launch` hands on, after its own parser has read the rest."""
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_args(words[2:])
    assert words[1] == "launch"
    assert (ROOT / given.training_script).is_file()
    assert given.config_file is None or (ROOT / given.config_file).is_file()
    return list(given.training_script_args)


def pieces() -> Iterator[tuple[str, str]]:
    """(file:line, text) of each piece of a recipe in the guides; own-task.md describes tasks, which have their test."""
    for path in (guide for guide in GUIDES if guide.name != "own-task.md"):
        text = path.read_text(encoding="utf-8")
        for found in re.finditer(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}", found[1]


PIECES = list(pieces())


def test_there_are_pieces_of_recipes() -> None:
    assert len(PIECES) >= 4


@pytest.mark.parametrize("piece", [text for _, text in PIECES], ids=[place for place, _ in PIECES])
def test_a_piece_goes_into_a_recipe(piece: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "piece.yaml").write_text(piece, encoding="utf-8")
    recipe = ["--config", "recipes/qwen2.5-0.5b-lora.yaml"]
    if "\nparameters:\n" in piece:  # a space
        from train.search.space import check_values, read_space

        check_values(read_space(tmp_path / "piece.yaml"), recipe, lambda config: None)
    else:
        parse([*recipe, "--config", str(tmp_path / "piece.yaml")])


KEY = re.compile(r"`(?:--)?([a-z]+(?:\.[a-z0-9_]+)+)\b[^`]*`")
FILES = (".json", ".jsonl", ".md", ".py", ".safetensors", ".sh", ".yaml")


def keys() -> Iterator[tuple[str, str]]:
    """(file:line, dotted key) of each key of a recipe that a guide names."""
    sections = {field.name for field in dataclasses.fields(Config)}
    for path in GUIDES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for key in KEY.findall(line):
                if key.partition(".")[0] in sections and not key.endswith(FILES):
                    yield f"{path.relative_to(ROOT)}:{number}", key


def test_keys_named_in_the_guides_are_keys_of_a_recipe() -> None:
    named = list(keys())
    assert len(named) >= 50
    fields = {field.name for field in dataclasses.fields(SourceConfig)}
    known = {part for key in flat(Config()) for part in (key, key.rpartition(".")[0])}
    for source in ("data.train.0", "data.validation.0"):
        known |= {source, *(f"{source}.{field}" for field in fields)}
    assert not [f"{place} {key}" for place, key in named if re.sub(r"\.[0-9]+(?=\.|$)", ".0", key) not in known]


def test_the_fault_suite_is_what_its_table_says() -> None:
    rows = re.findall(r"^\| (F[0-9]+.*?):.*?\| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    numbers = [int(number) for faults, _ in rows for number in re.findall(r"F([0-9]+)", faults)]
    assert sorted(numbers) == list(range(1, 26))
    [suite] = re.findall(r"^FAULTS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    run = [place for place in suite.split() if place != "\\"]
    for _, files in rows:
        for file in re.findall(r"`([a-z_/]+\.py)`", files):
            assert (ROOT / "tests" / file).exists(), file
            assert any(f"tests/{file}".startswith(place) for place in run), file

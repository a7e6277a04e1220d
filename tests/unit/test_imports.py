"""The house's rules of direction, over every import of train, eval and zerotune, inside functions too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for room in ("train", "eval", "zerotune") for path in (ROOT / room).rglob("*.py"))

# Top to bottom; a module may import from its own floor and the floors below. The longest prefix counts.
FLOORS = [
    ("train.cli",),
    ("train.main", "train.session", "train.search", "train.plan", "train.check"),
    ("train.objectives", "train.merge", "train.report", "train.preflight", "train.new_model"),
    ("train.checkpoint",),
    ("train.engine",),
    ("train.data", "train.tuning", "train.models"),
    ("train.failure",),
    ("train",),  # config, recipe, protocols, errors and what they are made of
    ("eval",),
    ("zerotune.inference",),
    ("zerotune.models",),
    ("zerotune.data",),
    ("zerotune.common", "zerotune"),
]
ONLY_IN = {
    "accelerate": ("train.engine", "train.checkpoint"),
    "deepspeed": ("train.engine", "train.checkpoint", "train.models.changed_weights"),
    "peft": ("train.tuning", "train.merge"),
    "optuna": ("train.search",),
    "bitsandbytes": ("train.tuning", "train.merge", "train.engine.optimizer"),
}
# `--help` answers in under a second: these load nothing heavy.
LIGHT = (
    "train.main",
    "train.cli",
    "train.cli.launch",
    "train.config",
    "train.plan.__main__",
    "train.search.__main__",
    "train.check.__main__",
    "train.recipe",
    "train.protocols",
    "train.errors",
    "eval.main",
    "eval.config",
)
HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "peft",
    "bitsandbytes",
    "datasets",
    "trl",
    "numpy",
    "pandas",
}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imported(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, module) of every import anywhere in the tree; `from a import b` gives a.b where that is a module."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((node.lineno, full if full in MODULES else str(node.module)))
    return found


@cache
def imported_for_types(tree: ast.Module) -> set[int]:
    """Lines under `if TYPE_CHECKING:`; they import nothing at run time."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    nodes = [node for block in blocks for child in block.body for node in ast.walk(child)]
    return {node.lineno for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)}


def is_under(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def floor(module: str) -> int:
    matches = [(len(p), i) for i, prefixes in enumerate(FLOORS) for p in prefixes if is_under(module, p)]
    return max(matches)[1]


def arrows() -> Iterator[tuple[str, int, str]]:
    """(module, line, imported module) between modules of ours."""
    for module, path in MODULES.items():
        for line, target in imported(tree_of(path)):
            if target.split(".")[0] in ("train", "eval", "zerotune"):
                yield module, line, target


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 20
    assert len(list(arrows())) > 50


def test_no_arrow_points_up() -> None:
    wrong = [f"{m}:{line} imports {t}" for m, line, t in arrows() if floor(t) < floor(m)]
    assert not wrong


def test_eval_imports_nothing_of_train() -> None:
    assert not [f"{m}:{line}" for m, line, t in arrows() if is_under(m, "eval") and is_under(t, "train")]


def test_metrics_import_no_torch() -> None:
    metrics = [module for module in MODULES if is_under(module, "eval.metrics")]
    assert metrics
    for module in metrics:
        assert not [t for _, t in imported(tree_of(MODULES[module])) if t.split(".")[0] == "torch"], module


def circle(graph: dict[str, set[str]]) -> str:
    """One circle of the graph, or nothing."""
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> str:
        if node in trail:
            return " -> ".join((*trail[trail.index(node) :], node))
        if node not in done:
            for target in sorted(graph[node]):
                if found := visit(target, (*trail, node)):
                    return found
            done.add(node)
        return ""

    return next(filter(None, (visit(node, ()) for node in graph)), "")


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, _, target in arrows():
        while target not in MODULES and "." in target:
            target = target.rpartition(".")[0]
        if target in MODULES and target != module:
            graph[module].add(target)
    assert not circle(graph)


def test_there_is_no_circle_between_folders() -> None:
    """As one would draw them; what lies in train, eval or zerotune itself is in none."""
    graph: dict[str, set[str]] = {}
    for module, _, target in arrows():
        one, other = (str(MODULES[name].relative_to(ROOT).parent) for name in (module, target) if name in MODULES)
        inside = f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
        if "/" in one and "/" in other and not inside:
            graph.setdefault(one, set()).add(other)
            graph.setdefault(other, set())
    assert len(graph) > 10
    assert not circle(graph)
    assert circle(graph | {"zerotune/common": {"train/merge"}})


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    wrong = []
    for module, path in MODULES.items():
        if not any(is_under(module, room) for room in ONLY_IN[library]):
            tree = tree_of(path)
            typing_only = imported_for_types(tree)
            wrong += [
                f"{module}:{line}"
                for line, target in imported(tree)
                if target.split(".")[0] == library and line not in typing_only
            ]
    assert not wrong


def test_eval_is_never_imported_as_a_name() -> None:
    """`import eval` would hide the builtin."""
    for path in [*FILES, *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                assert "eval" not in [alias.name.split(".")[0] for alias in node.names], f"{path}:{node.lineno}"


def test_no_module_hides_a_library() -> None:
    """Run as a script, train/ comes first on sys.path."""
    libraries = (
        set(sys.stdlib_module_names) | HEAVY | {"evaluate", "tensorboard", "safetensors", "yaml", "rich", "tokenizers"}
    )
    assert not [m for m in MODULES if m.count(".") == 1 and m.split(".")[1] in libraries]


@pytest.mark.parametrize("package", ["eval", "train"])
def test_a_script_finds_the_packages_and_hides_no_library(package: str) -> None:
    """Its own folder, which Python puts first, goes: eval/images.py is no `import images`."""
    folder = str(ROOT / package)
    code = f"import runpy, sys; sys.path[0] = {folder!r}; runpy.run_path({folder!r} + '/main.py'); print(sys.path)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    path = ast.literal_eval(found.stdout)
    assert path[0] == str(ROOT)
    assert folder not in path


@pytest.mark.parametrize("module", [m for m in LIGHT if m in MODULES])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    """At module level, followed through our own modules."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        tree = tree_of(MODULES[name])
        skipped = imported_for_types(tree)
        for statement in ast.walk(tree):
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                skipped |= {n.lineno for n in ast.walk(statement) if isinstance(n, ast.Import | ast.ImportFrom)}
        for line, target in imported(tree):
            if line not in skipped:
                assert target.split(".")[0] not in HEAVY, f"{name}:{line} imports {target}"
                waiting += [".".join(target.split(".")[:n]) for n in range(1, target.count(".") + 2)]


def test_objectives_name_no_launcher_and_no_signal() -> None:
    for module, path in MODULES.items():
        if is_under(module, "train.objectives"):
            roots = {target.split(".")[0] for _, target in imported(tree_of(path))}
            assert not roots & {"accelerate", "deepspeed", "signal"}, module


def test_objectives_import_nothing_of_the_engine_and_the_engine_nothing_of_them() -> None:
    for module, line, target in arrows():
        for engine in ("train.engine", "train.checkpoint"):
            assert not (is_under(module, "train.objectives") and is_under(target, engine)), f"{module}:{line}"
            for package in ("train.objectives", "train.tuning", "train.models", "train.data"):
                assert not (is_under(module, engine) and is_under(target, package)), f"{module}:{line} {target}"

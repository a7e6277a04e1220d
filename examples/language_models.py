"""An RNN, an LSTM and a Transformer from scratch on the same text, compared on one page (docs/from-scratch.md).

    make experiment-language-models                                    # small stand-ins: some minutes on 2 cores
    python examples/language_models.py --data.train.0.path ptb.train.txt --inside ptb.test.txt --outside news.txt \\
        --out runs/penn-treebank --trials 12 --duration.max_epochs 10

For each family: a search over learning rate and dropout (recipes/spaces/language-model.yaml), a run of the best recipe,
then for all three the perplexity of each row inside and outside the domain, the words that distinguish both texts, and
continuations of "the meaning of life is". Further options belong to recipes/language-model.yaml. The same command
continues what was interrupted.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the project can be imported without installation

from train.report.compare import columns
from train.report.run import Run, read_run

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("rnn", "lstm", "transformer")
PROMPT = "the meaning of life is"
RECIPE, SPACE = "recipes/language-model.yaml", "recipes/spaces/language-model.yaml"


def main() -> int:
    given, options = arguments()
    out = Path(given.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        best = search(family, out, given.trials, options)
        train(best, out / family)
    texts = [rows(Path(given.inside), out / "inside.jsonl"), rows(Path(given.outside), out / "outside.jsonl")]
    evaluate(out, texts, given.temperatures)
    path = out / "index.html"
    path.write_text(page(out), encoding="utf-8")
    print(f"Report: {path}")
    return 0


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inside", default="examples/data/corpus_heldout.jsonl", help="a test text of the domain")
    parser.add_argument("--outside", default="examples/data/news.jsonl", help="a text of another domain")
    parser.add_argument("--out", default="runs/language-models")
    parser.add_argument("--trials", type=int, default=4, help="of the search of each family")
    parser.add_argument("--temperatures", nargs=2, type=float, default=[0.5, 1.2], metavar=("LOW", "HIGH"))
    return parser.parse_known_args()


def rows(text: Path, out: Path) -> Path:
    """A file with a row for each sentence: of a plain text, each line that is not blank."""
    if text.suffix != ".txt":
        return text.resolve()
    lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
    out.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines if line), encoding="utf-8")
    return out


def run(*words: str | Path) -> None:
    """A command of the project, as a user gives it; ends this one with the same exit code if it fails."""
    done = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def search(family: str, out: Path, trials: int, options: Sequence[str]) -> Path:
    """Search for the family's best recipe. Returns its file."""
    space = out / f"space-{family}.yaml"
    content = yaml.safe_load((ROOT / SPACE).read_text(encoding="utf-8"))
    space.write_text(yaml.safe_dump({**content, "trials": trials}), encoding="utf-8")
    study = out / f"search-{family}"
    run("train.search", RECIPE, "--space", space, "--study", study, "--model.family", family,
        "--run.folder", out / family, *options)  # fmt: skip
    return study / "best.yaml"


def train(recipe: Path, folder: Path) -> None:
    """Train and merge the best recipe in a run of its own."""
    run("accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml", "train/main.py",
        "--config", recipe, "--run.folder", folder, "--merge.at_end", "true")  # fmt: skip


def evaluate(out: Path, texts: Sequence[Path], temperatures: Sequence[float]) -> None:
    """Perplexity of each row of both texts, and continuations, of all models in one report."""
    prompts = out / "prompts.jsonl"
    prompts.write_text(json.dumps({"text": PROMPT}) + "\n", encoding="utf-8")
    options = {
        "model": [str(out / family / "merged") for family in FAMILIES],
        "tasks": ["perplexity", "samples"],
        "data": {"perplexity": [str(path) for path in texts], "samples": str(prompts)},
        "temperatures": list(temperatures),
        "out": str(out / "eval"),
    }
    (out / "eval.yaml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    run("eval", "--config", out / "eval.yaml")


def page(out: Path) -> str:
    """The page: the runs and their curves, the searches, and the whole report of the evaluation inside."""
    runs = [read_run(out / family) for family in FAMILIES]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("language_models.html.jinja").render(
        columns=columns(runs),
        rows=range(len(runs)),
        curves=base64.b64encode(curves(runs)).decode(),
        searches=[(family, f"search-{family}/report.html") for family in FAMILIES],
        evaluation=(out / "eval/report.html").read_text(encoding="utf-8"),
    )


def curves(runs: Sequence[Run]) -> bytes:
    """The loss of all runs in one figure (SVG): faint in training, with dots on held-out rows."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(runs):
        training, held_out = one.curve("train/loss"), one.curve("validation/loss")
        axes.plot(list(training), list(training.values()), color=f"C{number}", alpha=0.3)
        axes.plot(list(held_out), list(held_out.values()), "o-", color=f"C{number}", label=one.folder.name)
    axes.set(xlabel="optimizer step", ylabel="loss, nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())

"""An RNN, an LSTM and a Transformer from scratch on the same text, compared on one page (docs/from-scratch.md).

    make experiment-language-models                                    # small stand-ins: some minutes on 2 cores
    python examples/language_models.py --data.train.0.path ptb.train.txt --data.validation.0.path ptb.valid.txt \\
        --inside ptb.test.txt --outside news.txt --tokenizer.kind word --out runs/penn-treebank --trials 12

For each family: a search over learning rate and dropout (recipes/spaces/language-model.yaml), whose best run is merged;
then for all three the perplexity of each row inside and outside the domain, the words that distinguish both texts,
and continuations of "the meaning of life is". Further options belong to recipes/language-model.yaml. The same command
continues what was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the project can be imported without installation

from examples.commands import ROOT, run
from examples.language_models_page import FAMILIES, best_trial, page
from zerotune.data.labelled_lines import is_labelled
from zerotune.data.read_text import DOCUMENT_END
from zerotune.data.text_files import whole

PROMPT = "the meaning of life is"
RECIPE, SPACE = "recipes/language-model.yaml", "recipes/spaces/language-model.yaml"
BAD_INPUT = 64  # exit code, as of the project's commands


def main() -> int:
    given, options = arguments()
    out = Path(given.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    texts = [rows(Path(given.inside), out / "inside.jsonl"), rows(Path(given.outside), out / "outside.jsonl")]
    for family in FAMILIES:
        run("train.merge", search(family, out, given.trials, options), out / family / "merged")
    evaluate(out, texts, given.temperatures)
    path = out / "index.html"
    path.write_text(page(out, texts), encoding="utf-8")
    print(f"Report: {path}")
    return 0


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inside", help="a test text of the domain: .txt, each line of which is a row, or rows")
    parser.add_argument("--outside", help="a text of another domain")
    parser.add_argument("--out", default="runs/language-models")
    parser.add_argument("--trials", type=int, default=4, help="of the search of each family")
    parser.add_argument("--temperatures", nargs=2, type=float, default=[0.5, 1.2], metavar=("LOW", "HIGH"))
    given, options = parser.parse_known_args()
    own = {word.partition("=")[0] for word in options}
    lacks = [word for word in ("--inside", "--outside") if not getattr(given, word[2:])]
    lacks += [word for word in ("--data.validation.0.path",) if word not in own]
    if "--data.train.0.path" in own and lacks:
        parser.error(f"--data.train.0.path: a text of your own needs {' and '.join(lacks)} as well")
    given.inside = given.inside or str(ROOT / "examples/data/corpus_heldout.jsonl")
    given.outside = given.outside or str(ROOT / "examples/data/news.jsonl")
    return given, options


def rows(text: Path, out: Path) -> Path:
    """A file of rows: of a plain text, each line that is not blank. Rows and sentence@label lines
    (UTF-8 or ISO-8859-1) are read by the evaluation itself.
    """
    if not text.is_file():
        fail(f"{text}: no such file")
    if text.suffix != ".txt" or is_labelled(text):
        return text.resolve()
    content, problem = whole(text)
    if problem:
        fail(f"{text}: {problem}. Convert it: iconv -f ISO-8859-1 -t UTF-8 {text} > {text.stem}-utf8.txt")
    lines = [line.strip() for line in content.splitlines()]
    written = [json.dumps({"text": line}) + "\n" for line in lines if line and line != DOCUMENT_END]
    out.write_text("".join(written), encoding="utf-8")
    return out


def fail(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(BAD_INPUT)


def search(family: str, out: Path, trials: int, options: Sequence[str]) -> Path:
    """Search for the family's best recipe. Returns the run of the best trial."""
    space = out / f"space-{family}.yaml"
    content = yaml.safe_load((ROOT / SPACE).read_text(encoding="utf-8"))
    space.write_text(yaml.safe_dump({**content, "trials": trials}, sort_keys=False), encoding="utf-8")
    study = out / f"search-{family}"
    run("train.search", RECIPE, "--space", space, "--study", study, "--model.family", family,
        "--run.folder", out / family, *options)  # fmt: skip
    return best_trial(study)


def evaluate(out: Path, texts: Sequence[Path], temperatures: Sequence[float]) -> None:
    """Perplexity of each row of both texts, and continuations, of all models in one report."""
    prompts = out / "prompts.jsonl"
    prompts.write_text(json.dumps({"text": PROMPT}) + "\n", encoding="utf-8")
    options = {
        "model": [str(out / family / "merged") for family in FAMILIES],
        "tasks": ["perplexity", "samples"],
        "data": {"perplexity": [str(path) for path in texts], "samples": str(prompts)},
        "temperatures": list(temperatures),
        "precision": "fp32",  # small models: exact numbers cost little
        "out": str(out / "eval"),
    }
    (out / "eval.yaml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    run("eval", "--config", out / "eval.yaml")


if __name__ == "__main__":
    sys.exit(main())

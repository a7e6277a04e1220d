"""report.md: results, curves, costs, samples, and how to reproduce the run."""

from __future__ import annotations

from pathlib import Path

from train.report import figures, words
from train.report.run import Run, read_run
from zerotune.common.files import write_atomically
from zerotune.common.markdown import bold, table
from zerotune.common.mask_secrets import mask, printable

_CELL_CHARACTERS = 800
_EPOCH_ROWS = 50


def write_report(run_folder: Path) -> Path:
    """Write RUN/report.md and RUN/report/*.png from the files of the run. Returns the path of report.md.

    Raises UserError if `run_folder` is not a run folder, CannotWriteError if the disk is full.
    """
    run = read_run(run_folder)
    drawn = figures.draw(run, run_folder / "report")
    parts = [
        f"# {run_folder.resolve().name}",
        f"**{words.headline(run)}**",
        _before_and_after(run),
        _over_epochs(run),
        "\n\n".join(f"![{caption}](report/{path.name})" for caption, path in drawn),
        _table("The run", words.overview(run)),
        _samples(run),
        _table("Reproduction", words.provenance(run)),
    ]
    path = run_folder / "report.md"
    write_atomically(path, mask("\n\n".join(part for part in parts if part) + "\n"))
    return path


def _before_and_after(run: Run) -> str:
    changes = run.changes()
    if not changes:
        return ""
    numbers = ["before", f"after (step {run.merge_step})", "change", f"at the end (step {run.last_step})"]
    rows = [
        [
            words.title(c.name),
            words.number(c.before, c.scale),
            bold(words.number(c.chosen, c.scale)),
            words.difference(c),
            words.number(c.last, c.scale),
        ]
        for c in changes
    ]
    note = f"*after* is {words.merge_choice(run)}."
    if run.setting("tuning.quantization") not in (None, "none"):
        note += " All numbers are of the quantised model; *Checked* compares the merged model with it."
    return f"{table(['on held-out rows', *numbers], rows, right=numbers)}\n\n{note}"


def _over_epochs(run: Run) -> str:
    heads, rows = words.over_epochs(run, _EPOCH_ROWS)
    if not rows:
        return ""
    share = words.trained_share(run)
    note = f"\\* {words.merge_choice(run)}{'; ' * bool(share)}{share}."
    return f"## Over epochs\n\n{table(heads, rows, right=heads)}\n\n{note}"


def _table(heading: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    return f"## {heading}\n\n{table(('', ''), [(name, _shortened(printable(text))) for name, text in rows])}"


def _samples(run: Run) -> str:
    heads, rows = words.samples(run)
    if not rows:
        return ""
    return f"## Samples\n\n{table(heads, [[_shortened(text) for text in row] for row in rows], right=('reward',))}"


def _shortened(text: str) -> str:
    return words.shortened(words.readable(text), _CELL_CHARACTERS)

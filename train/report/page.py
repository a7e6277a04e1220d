"""report.md: the answer first, then the curves, what it cost, samples, and how to repeat it."""

from __future__ import annotations

from pathlib import Path

from train.report import figures, words
from train.report.run import Run, read_run
from zerotune.common.files import write_atomically
from zerotune.common.markdown import bold, table
from zerotune.common.masking import mask, printable

_CELL_CHARACTERS = 800
_EPOCH_ROWS = 50


def write_report(run_folder: Path) -> Path:
    """Write RUN/report.md and RUN/report/*.png from what the run wrote. Returns report.md.

    Raises UserError where `run_folder` is no run folder, CannotWriteError where the disk is full.
    """
    run = read_run(run_folder)
    drawn = figures.draw(run, run_folder / "report")
    parts = [
        f"# {run_folder.resolve().name}",
        f"**{words.headline(run)}**",
        _before_and_after(run),
        _over_epochs(run),
        "\n\n".join(f"![{caption}](report/{path.name})" for caption, path in drawn),
        _table("The run", words.facts(run)),
        _samples(run),
        _table("To repeat it", words.provenance(run)),
    ]
    path = run_folder / "report.md"
    write_atomically(path, mask("\n\n".join(part for part in parts if part) + "\n"))
    return path


def _before_and_after(run: Run) -> str:
    changes = run.changes()
    if not changes:
        return ""
    numbers = ["before", f"after (step {run.handed_over_step})", "change", f"at the end (step {run.last_step})"]
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
    note = f"*after* is {words.handed_over(run)}."
    if run.setting("tuning.quantization") not in (None, "none"):
        note += " All numbers are of the quantised model; how far the merged one is from it stands under *Checked*."
    return f"{table(['on held-out rows', *numbers], rows, right=numbers)}\n\n{note}"


def _over_epochs(run: Run) -> str:
    heads, rows = words.over_epochs(run, _EPOCH_ROWS)
    if not rows:
        return ""
    share = words.trained_share(run)
    note = f"\\* {words.handed_over(run)}{'; ' * bool(share)}{share}."
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

"""What `--dry_run` prints: the trials that are known before the first result, and the steps of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from train.recipe import parse
from train.search.draw import draw
from train.search.schedule import Rungs
from train.search.space import Label, Space
from train.search.study import Record
from zerotune.common.console import counted
from zerotune.common.errors import UserError
from zerotune.common.markdown import table


def preview(space: Space, arguments: Sequence[str]) -> str:
    """A table of the trials, and the total steps."""
    config = space.config
    known = min(space.trials, config.startup_trials) if config.method == "tpe" else space.trials
    names = [parameter.name for parameter in space.parameters]
    rows, steps, drawn = [], [], list[Record]()
    for number in range(known):
        values = draw(space, number, drawn, 1).values
        drawn.append(Record(number, "running", values, 0, (), {}, None, 0, 0.0, ""))
        found, refused = _steps(space, arguments, values)
        steps.append(found)
        shown = refused or ("-" if found is None else f"{found:,}")
        rows.append([str(number), *(str(values[name]) for name in names), shown])
    lines = [table(["trial", *names, "steps"], rows, right=["trial", "steps"], escape=str), ""]
    if space.is_exhausted:
        points = counted(space.trials, "point")
        many = counted(space.trials, "trial")
        verb = "is" if space.trials == 1 else "are"
        lines.append(f"The space has only {points}, so there {verb} {many}, not {config.trials}.")
    if rest := space.trials - known:
        verb = "depends" if rest == 1 else "depend"
        lines.append(f"The other {counted(rest, 'trial')} {verb} on the results of these.")
    lines.append(_total(space, steps))
    return "\n".join(lines) + "\n"


def _steps(space: Space, arguments: Sequence[str], values: Mapping[str, Label]) -> tuple[int | None, str]:
    """(duration.max_steps of a trial, why its recipe is refused)."""
    try:
        settings = space.settings(values)
        return parse(arguments, [(k, v, "the search") for k, v in settings.items()]).duration.max_steps, ""
    except UserError as error:
        return None, f"refused: {str(error).splitlines()[0]}"


def _total(space: Space, steps: Sequence[int | None]) -> str:
    rungs = Rungs.of(space.config)
    if None in steps or not steps:
        return "The steps of a trial are known once it has read its data (duration.max_epochs)."
    known = [count for count in steps if count is not None]
    total = sum(known) / len(known) * space.trials
    what = f"Total: {total:,.0f} steps if every trial trains to its end"
    if len(rungs.shares) == 1:
        return f"{what}{'; fewer, since the median stops some' * (space.config.pruner == 'median')}."
    least = sum(rungs.shares[rungs.first(number)] for number in range(space.trials)) / space.trials
    return (
        f"{what}; the first rungs need {total * least:,.0f}, and 1 of {rungs.reduction} trials goes on from each rung."
    )

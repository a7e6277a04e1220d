"""Which class of a head a row's label means: by its name or by its number, the same whatever type a file gives it."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 9  # digits of a number


class AmbiguousLabelError(ValueError):
    """A label that is the name of one class and the number of another."""


def class_number(label: str | int, names: Sequence[str]) -> int | None:
    """The number of the class that a label names; None where there is none.

    Raises AmbiguousLabelError where classes are called by other numbers than their own: 1 of the classes 1 to 5.
    """
    said = str(label)
    number = int(said) if said.isdecimal() and len(said) <= LONGEST and int(said) < len(names) else None
    if said not in names:
        return number
    place = names.index(said)
    if number is not None and number != place:
        raise AmbiguousLabelError(
            f"label {said!r} is the name of class {place} (from 0) and the number of class {names[number]!r}; give the "
            "classes names that are no numbers, and the rows these names"
        )
    return place

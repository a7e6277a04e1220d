"""Reads several sources as one stream, in proportion to their sizes and weights, from any position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from train.data.rows import sampled
from train.data.sources import START, NumberedRow, Place, Source


@dataclass(frozen=True)
class Mark:
    """Position in one source within an epoch: passes done, place in the current pass, rows given."""

    turn: int = 0
    place: Place = START
    given: int = 0


@dataclass
class Mixture:
    """The rows of one epoch. A source of weight w is read w times (0.5: another half each epoch), and all sources
    progress at the same pace. Their sizes are estimates, so one may end a little earlier than the others.

    marks: position in each source; those of an earlier mixture continue there.
    """

    sources: Sequence[Source]
    seed: int
    epoch: int
    marks: list[Mark]

    def __post_init__(self) -> None:
        self.wanted = [s.config.weight * s.config.fraction * max(s.guess_rows(), 1.0) for s in self.sources]
        self.streams = [self._passes(source, mark) for source, mark in zip(self.sources, self.marks, strict=True)]
        self.next = [next(stream, None) for stream in self.streams]

    def _passes(self, source: Source, mark: Mark) -> Iterator[tuple[NumberedRow, Mark]]:
        config, given = source.config, mark.given
        for turn in range(mark.turn, math.ceil(config.weight)):
            place = mark.place if turn == mark.turn else START
            rows = sampled(source.rows(place), config.fraction, self.seed, "fraction")
            share = min(1.0, config.weight - turn)
            for row in sampled(rows, share, self.seed, "weight", turn=self.epoch * share):
                given += 1
                yield row, Mark(turn, row.after, given)

    def take(self, count: int) -> list[list[NumberedRow]]:
        """The next `count` rows by source; fewer at the end of the epoch."""
        taken: list[list[NumberedRow]] = [[] for _ in self.sources]
        for _ in range(count):
            left = [number for number, ahead in enumerate(self.next) if ahead]
            if not left:
                break
            number = min(left, key=lambda n: self.marks[n].given / self.wanted[n])
            ahead = self.next[number]
            assert ahead
            taken[number].append(ahead[0])
            self.marks[number] = ahead[1]
            self.next[number] = next(self.streams[number], None)
        return taken

    @property
    def is_over(self) -> bool:
        """Whether every source has given all its rows."""
        return not any(self.next)


def marks_to_json(marks: Sequence[Mark]) -> list[list[object]]:
    return [[mark.turn, list(mark.place), mark.given] for mark in marks]


def marks_from_json(values: Sequence[Sequence[object]]) -> list[Mark]:
    return [replace(Mark(), turn=turn, place=Place(*place), given=given) for turn, place, given in values]  # type: ignore[arg-type,misc]

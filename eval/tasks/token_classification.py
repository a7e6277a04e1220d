"""Tags of words (named entities) by a token-classification head, scored like seqeval; every tag of the data counts."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.metrics.entities import F1, PRECISION, RECALL, TOKEN_ACCURACY, Counts, count_by_type
from eval.protocols import Sample, Table, Task
from zerotune.common.errors import UserError
from zerotune.data.fields import Fields
from zerotune.data.hub import Hub
from zerotune.data.tagged import KNOWN_TAGS, TAG, read_tagged
from zerotune.data.word_windows import Place
from zerotune.inference.requests import Answer, Request, Tag, Tagged

if TYPE_CHECKING:
    from zerotune.data.raw_row import Row
    from zerotune.inference.prompt import Prompter

OUTSIDE = "O"
BIONLP2004 = (  # the order of the data set's own label2id
    OUTSIDE,
    *(f"{mark}-{name}" for name in ("DNA", "protein", "cell_type", "cell_line", "RNA") for mark in "BI"),
)


@dataclass(frozen=True)
class Sentence:
    """A sentence; `bind` adds what depends on the checkpoint.

    labels: its class names. windows: token ids of its inputs. places: (window, position) of each word's first token;
    None for a word without tokens.
    """

    id: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]  # names, or class indices in digits
    labels: tuple[str, ...] = ()
    windows: tuple[tuple[int, ...], ...] = ()
    places: tuple[Place | None, ...] = ()


def load(row: Row) -> Sentence:
    """`tokens`, and `tags` with a tag or class index for each token."""
    read = read_tagged(Fields(row.value))
    return Sentence(row.place, read.words, tuple(map(str, read.tags)))


def bind(sentence: Sentence, prompter: Prompter) -> Sentence:
    """Add the checkpoint's token ids and class names. Raises UserError."""
    for number, name in enumerate(prompter.labels):
        if not TAG.fullmatch(name):
            raise UserError(
                f"{prompter.name}: its class {number} is called {name!r} (id2label in config.json); known are "
                f"{KNOWN_TAGS}"
            )
    sentence = dataclasses.replace(sentence, tags=tuple(_named(sentence, tag, prompter) for tag in sentence.tags))
    _require_types(sentence, prompter)
    words, size = prompter.words(sentence.tokens), prompter.window_tokens
    return dataclasses.replace(
        sentence, labels=prompter.labels, windows=tuple(words.windows(size)), places=tuple(words.places(size))
    )


def _named(sentence: Sentence, tag: str, prompter: Prompter) -> str:
    """The tag; for a class index, its name."""
    if not tag.isdecimal():
        return tag
    if int(tag) < len(prompter.labels):
        return prompter.labels[int(tag)]
    raise UserError(
        f"{sentence.id}: has the tag {tag}, but {prompter.name} has only {len(prompter.labels)} classes "
        "(id2label in config.json)"
    )


def _require_types(sentence: Sentence, prompter: Prompter) -> None:
    """Compare types, not tags: data and checkpoint may use different schemes (IOB1, IOB2, IOBES)."""
    known = {name.partition("-")[2] for name in prompter.labels}
    for place, tag in enumerate(sentence.tags):
        if tag != OUTSIDE and tag.partition("-")[2] not in known:
            raise UserError(
                f"{sentence.id}: tag {place} (from 0) is {tag!r}, a type that {prompter.name} has no class for; it has "
                f"{', '.join(sorted(known - {''})) or 'none'} (id2label in config.json)"
            )


def ask(sentence: Sentence, prompter: Prompter) -> Sequence[Request]:
    """One request for each window; a sentence that fits into the context has one."""
    return [Tag(window) for window in sentence.windows]


def score(sentence: Sentence, answers: Sequence[Answer]) -> Sample:
    """A word's class is that of its first token; a word without tokens is tagged O."""
    classes = [answer.classes for answer in answers if isinstance(answer, Tagged)]
    predicted = [OUTSIDE if p is None else sentence.labels[classes[p[0]][p[1]]] for p in sentence.places]
    counts = sum(count_by_type(sentence.tags, predicted).values(), Counts())
    values = {
        "right_entities": counts.correct,
        "predicted_entities": counts.predicted,
        "gold_entities": counts.expected,
        "right_tokens": sum(a == b for a, b in zip(predicted, sentence.tags, strict=True)),
        "tokens": len(predicted),
    }
    shown = {"text": " ".join(sentence.tokens), "answer": " ".join(predicted), "reference": " ".join(sentence.tags)}
    return Sample(sentence.id, {name: float(number) for name, number in values.items()}, shown)


def tables(samples: Sequence[Sample]) -> list[Table]:
    """Precision, recall and F1 of each type of entity."""
    total: defaultdict[str, Counts] = defaultdict(Counts)
    for sample in samples:
        for name, counts in count_by_type(sample.shown["reference"].split(), sample.shown["answer"].split()).items():
            total[name] += counts
    rows = [
        (name, c.expected, c.precision, c.recall, c.f1, c.predicted, c.correct) for name, c in sorted(total.items())
    ]
    head = ("type", "entities", "precision", "recall", "F1", "predicted", "correct")
    return [Table("Entities", head, rows, shared=2, shares=(2, 3, 4))]


TASK = Task(
    name="token_classification",
    version=2,
    about="entities by a token-classification head",
    load=load,
    bind=bind,
    ask=ask,
    score=score,
    metrics=(PRECISION, RECALL, F1, TOKEN_ACCURACY),
    tables=tables,
    head="tokens",
    source=Hub(  # the original needs a loading script; the hub's converted copy does not
        "tner/bionlp2004",
        split="test",
        name="bionlp2004",
        revision="refs/convert/parquet",
        files="{name}/{split}/*.parquet",
        classes={"tags": BIONLP2004},
    ),
)

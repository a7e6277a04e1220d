"""ScienceQA (arXiv:2209.09513): multiple-choice questions with an image, by option letter's likelihood or generated.

Rows: the published problems.json beside its images folder, or any file with question, choices, answer (the number of
the right one, from 0), image and perhaps hint. Asked are the questions with an image, of the test split where rows name
one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.metrics.json_answer import json_answers
from eval.metrics.letters import read_letter
from eval.protocols import Sample, SampleMetric, Task
from zerotune.common.errors import UserError
from zerotune.data.hub import Hub
from zerotune.data.readers import Row
from zerotune.data.rows import BadExampleError, text_in
from zerotune.inference.requests import Answer, Generate, Generated, Request, Score, Scored

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

LETTERS = "ABCDEFGHIJ"
DIGITS = re.compile(r"[0-9]{1,2}")
GROUPS = ("subject", "topic")
SOURCE = Hub("derek-thomas/ScienceQA", split="test")
ASK_LETTER = "Answer with the letter of the right option and nothing else."
ASK_JSON = """Answer with one JSON object in a fenced code block and nothing else:

```json
{"answer": "<the letter of the right option>", "explanation": "<one sentence>"}
```"""
ACCURACY = SampleMetric("accuracy", higher_is_better=True, is_share=True)


@dataclass(frozen=True)
class ImageChoiceItem:
    """One row. text: hint, question and options. image: a file; None where it has none. answer: the right letter."""

    id: str
    text: str
    options: int
    answer: str
    image: str | None
    split: str
    groups: Mapping[str, str]


def load(row: Row) -> ImageChoiceItem:
    """Raises BadExampleError for a row that does not fit."""
    value = row.value
    choices = _choices(value.get("choices"))
    right = _place(value.get("answer"), len(choices))
    hint = f"Context: {value['hint']}\n" if value.get("hint") else ""
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    return ImageChoiceItem(
        id=row.place,
        text=f"{hint}Question: {text_in(value, 'question')}\nOptions:\n{options}",
        options=len(choices),
        answer=LETTERS[right],
        image=_image(row),
        split=str(value.get("split") or ""),
        groups={name: str(value[name]) for name in GROUPS if value.get(name)},
    )


def arrange(items: list[ImageChoiceItem]) -> list[ImageChoiceItem]:
    """Those with an image; of the test split, where any row is of it. Raises UserError where files are missing."""
    of_test = [item for item in items if item.split == "test"] or items
    asked = [(item, item.image) for item in of_test if item.image]
    missing = [f"{item.id}: {image}" for item, image in asked if not Path(image).is_file()]
    if missing:
        raise UserError(f"scienceqa: {len(missing)} of {len(asked)} images are not there, the first of {missing[0]}")
    return [item for item, _ in asked]


def ask_letters(item: ImageChoiceItem, prompter: Prompter) -> Sequence[Request]:
    """How probable each letter is."""
    images = (item.image,) if item.image else ()
    prefix = prompter.image_prompt(images, item.text + ASK_LETTER)
    return [Score(prefix, prompter.response_start(letter), images=images) for letter in LETTERS[: item.options]]


def score_letters(item: ImageChoiceItem, answers: Sequence[Answer]) -> Sample:
    """Right where the right letter is the most probable one; of equals the first counts."""
    log_probs = [answer.log_prob for answer in answers if isinstance(answer, Scored)]
    chosen = LETTERS[log_probs.index(max(log_probs))]
    shown = {"chosen": chosen, "log_probs": dict(zip(LETTERS, log_probs, strict=False))}
    return _sample(item, {"accuracy": float(chosen == item.answer)}, shown)


def ask_generated(item: ImageChoiceItem, prompter: Prompter) -> Sequence[Request]:
    """An answer as JSON."""
    images = (item.image,) if item.image else ()
    prompt = prompter.image_prompt(images, item.text + ASK_JSON)
    return [Generate(prompt, prompter.max_new_tokens, prompter.stop_ids, images=images)]


def score_generated(item: ImageChoiceItem, answers: Sequence[Answer]) -> Sample:
    """Right where the JSON's answer (or else the text) names the right letter; one that names none is counted apart."""
    (answer,) = answers
    assert isinstance(answer, Generated)
    stated = json_answers(answer.text)
    letters = {read_letter(text, item.options) for text in stated or [answer.text]}
    chosen = letters.pop() if len(letters) == 1 else None
    values = {
        "accuracy": float(chosen == item.answer),
        "no_letter": float(chosen is None),
        "no_json": float(not stated),
    }
    return _sample(item, values, {"chosen": chosen, "output": answer.text, "finished": answer.finished})


def _sample(item: ImageChoiceItem, values: Mapping[str, float], shown: Mapping[str, object]) -> Sample:
    asked = {"question": item.text, "image": item.image, "answer": item.answer}
    return Sample(item.id, values, {**asked, **shown}, item.groups)


def _choices(given: Any) -> Sequence[Any]:
    """The options; a CSV can hold them only as a JSON list in text."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            given = None
    if not isinstance(given, (list, tuple)) or not 2 <= len(given) <= len(LETTERS):
        raise BadExampleError(f"choices is not a list of 2 to {len(LETTERS)} texts")
    return given


def _place(given: Any, count: int) -> int:
    """The number of the right option; a CSV can hold it only as digits in text."""
    place = int(given) if isinstance(given, str) and DIGITS.fullmatch(given.strip()) else given
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < count:
        said = json.dumps(given) if isinstance(given, bool) else repr(given)  # true, as the file has it
        raise BadExampleError(f"answer is {said}, not the number of a choice from 0 to {count - 1}")
    return place


def _image(row: Row) -> str | None:
    """The file of the row's image, whether it is there or not; None where it has none."""
    image = row.value.get("image")
    if not image:
        return None
    if not isinstance(image, str):
        return _kept(image)
    folder, own, split = Path(row.file).parent, str(row.value.get("id", "")), str(row.value.get("split", ""))
    places = [folder / "images" / own / image, folder / "images" / split / own / image, folder / image]
    return str(next((place for place in places if place.is_file()), places[0] if own else places[-1]))


def _kept(image: Any) -> str:
    """A file for an image that stands in the row itself: bytes (Parquet), or opened by Pillow (hub)."""
    if isinstance(image, Mapping):
        content = image.get("bytes")
    else:
        buffer = BytesIO()
        image.save(buffer, format="PNG")
        content = buffer.getvalue()
    if not isinstance(content, bytes):
        raise BadExampleError("image is neither a file's name nor an image")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zerotune" / "images"
    file = cache / f"{hashlib.sha256(content).hexdigest()}.image"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(file)
    return str(file)


TASK = Task(
    name="scienceqa",
    version=1,
    about="questions with an image, option letter's likelihood",
    load=load,
    arrange=arrange,
    ask=ask_letters,
    score=score_letters,
    metrics=(ACCURACY,),
    head="vision",
    source=SOURCE,
)
GENERATION = Task(
    name="scienceqa_generation",
    version=2,
    about="questions with an image, answers as JSON",
    load=load,
    arrange=arrange,
    ask=ask_generated,
    score=score_generated,
    metrics=(
        ACCURACY,
        SampleMetric("no_letter", higher_is_better=False, is_share=True),
        SampleMetric("no_json", higher_is_better=False, is_share=True),
    ),
    head="vision",
    source=SOURCE,
    max_new_tokens=256,
)

"""ScienceQA (arXiv:2209.09513): multiple-choice questions with an image, by log-likelihood or generation.

Data: the published problems.json beside its images folder, or any file with question, choices, answer (index of the
correct choice, from 0), image and optionally hint. Only questions with an image are used; if rows have a split, only
those of the test split.
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
from zerotune.data.fields import Fields, RowError
from zerotune.data.hub import Hub
from zerotune.data.raw_row import Row
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
    """A question. text: hint, question and options. image: a file, if there is one. answer: the correct letter."""

    id: str
    text: str
    options: int
    answer: str
    image: str | None
    split: str
    groups: Mapping[str, str]


def load(row: Row) -> ImageChoiceItem:
    """Raises RowError."""
    value = row.value
    choices = _choices(value.get("choices"))
    correct = _index(value.get("answer"), len(choices))
    hint = f"Context: {value['hint']}\n" if value.get("hint") else ""
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    return ImageChoiceItem(
        id=row.place,
        text=f"{hint}Question: {Fields(value).text('question')}\nOptions:\n{options}",
        options=len(choices),
        answer=LETTERS[correct],
        image=_image(row),
        split=str(value.get("split") or ""),
        groups={name: str(value[name]) for name in GROUPS if value.get(name)},
    )


def arrange(items: list[ImageChoiceItem]) -> list[ImageChoiceItem]:
    """Items with an image, of the test split if any row belongs to it. Raises UserError if files are missing."""
    test_items = [item for item in items if item.split == "test"] or items
    with_image = [(item, item.image) for item in test_items if item.image]
    missing = [f"{item.id}: {image}" for item, image in with_image if not Path(image).is_file()]
    if missing:
        raise UserError(f"scienceqa: {len(missing)} of {len(with_image)} images are missing, first {missing[0]}")
    return [item for item, _ in with_image]


def ask_letters(item: ImageChoiceItem, prompter: Prompter) -> Sequence[Request]:
    """One request for each option letter."""
    images = (item.image,) if item.image else ()
    prefix = prompter.image_prompt(images, item.text + ASK_LETTER)
    return [Score(prefix, prompter.response_start(letter), images=images) for letter in LETTERS[: item.options]]


def score_letters(item: ImageChoiceItem, answers: Sequence[Answer]) -> Sample:
    """Choose the most probable letter; of equals the first."""
    log_probs = [answer.log_prob for answer in answers if isinstance(answer, Scored)]
    chosen = LETTERS[log_probs.index(max(log_probs))]
    shown = {"chosen": chosen, "log_probs": dict(zip(LETTERS, log_probs, strict=False))}
    return _sample(item, {"accuracy": float(chosen == item.answer)}, shown)


def ask_generated(item: ImageChoiceItem, prompter: Prompter) -> Sequence[Request]:
    """Generate an answer as JSON."""
    images = (item.image,) if item.image else ()
    prompt = prompter.image_prompt(images, item.text + ASK_JSON)
    return [Generate(prompt, prompter.max_new_tokens, prompter.stop_ids, images=images)]


def score_generated(item: ImageChoiceItem, answers: Sequence[Answer]) -> Sample:
    """Choose the letter in the JSON answer, else in the text; none counts as wrong and in `no_letter`."""
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
    row = {"question": item.text, "image": item.image, "answer": item.answer}
    return Sample(item.id, values, {**row, **shown}, item.groups)


def _choices(value: Any) -> Sequence[Any]:
    """The options; in CSV they are a JSON list in text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, (list, tuple)) or not 2 <= len(value) <= len(LETTERS):
        raise RowError(f"choices is not a list of 2 to {len(LETTERS)} texts")
    return value


def _index(value: Any, count: int) -> int:
    """The index of the correct option; in CSV it is text."""
    index = int(value) if isinstance(value, str) and DIGITS.fullmatch(value.strip()) else value
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        text = json.dumps(value) if isinstance(value, bool) else repr(value)  # true, as in the file
        raise RowError(f"answer is {text}, not the number of a choice from 0 to {count - 1}")
    return index


def _image(row: Row) -> str | None:
    """The file of the row's image, existing or not; None if the row has no image."""
    image = row.value.get("image")
    if not image:
        return None
    if not isinstance(image, str):
        return _save(image)
    folder, own, split = Path(row.file).parent, str(row.value.get("id", "")), str(row.value.get("split", ""))
    paths = [folder / "images" / own / image, folder / "images" / split / own / image, folder / image]
    return str(next((path for path in paths if path.is_file()), paths[0] if own else paths[-1]))


def _save(image: Any) -> str:
    """Write an image of the row itself to a cached file. image: bytes (Parquet) or a Pillow image (hub)."""
    if isinstance(image, Mapping):
        content = image.get("bytes")
    else:
        buffer = BytesIO()
        image.save(buffer, format="PNG")
        content = buffer.getvalue()
    if not isinstance(content, bytes):
        raise RowError("image is neither a file's name nor an image")
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
    about="questions with an image, log-likelihood of the option letters",
    load=load,
    arrange=arrange,
    ask=ask_letters,
    score=score_letters,
    metrics=(ACCURACY,),
    head="vision",
    source=SOURCE,
    own_columns=True,
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
    own_columns=True,
    max_new_tokens=256,
)

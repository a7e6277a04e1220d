"""TRL's training templates: copies of known chat templates that write a turn independently of later turns, and mark
the assistant's parts with {% generation %}.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zerotune.common.errors import UserError

TRL = "1.16"  # as in pyproject.toml; another version may have other pairs
ENDING = "_training"


def training_template(own: str) -> tuple[str, str] | None:
    """(TRL's name of the family, its training template) for the tokenizer's `own` template; None if TRL has none.

    `own` must equal TRL's original, apart from line ends and one line feed at the end, which Jinja ignores. Raises
    UserError if TRL is missing or of another version.
    """
    return _pairs().get(_canonical(own))


@cache
def _pairs() -> dict[str, tuple[str, str]]:
    """own template -> (name, training template).

    TRL stores them as NAME.jinja and NAME_training.jinja. They are read from there, since importing TRL's function
    (`trl.chat_template_utils.get_training_chat_template`) also loads datasets, for about a second on every rank;
    tests/unit/train/test_training_templates.py checks that both give the same pairs.
    """
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder().glob("*.jinja")}
    pairs = {_canonical(own): (name, texts[name + ENDING]) for name, own in texts.items() if name + ENDING in texts}
    if not pairs:
        raise UserError(f"{folder()} has no training templates; install trl again: pip install 'trl=={TRL}.*'")
    return pairs


def folder() -> Path:
    """The folder of TRL's templates. Raises UserError if TRL is missing or of another version."""
    try:
        found = f"trl {version('trl')}"
    except PackageNotFoundError:
        found = "no trl"
    if not f"{found}.".startswith(f"trl {TRL}."):
        raise UserError(
            f"data.chat_template: tokenizer needs the training templates of trl {TRL}, but {found} is installed:"
            f" pip install 'trl=={TRL}.*', or choose another template (chatml, plain, a .jinja file)"
        )
    spec = importlib.util.find_spec("trl")  # finds it without importing it
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


def _canonical(text: str) -> str:
    """The text with Jinja's line ends."""
    return re.sub(r"\r\n?", "\n", text).removesuffix("\n")

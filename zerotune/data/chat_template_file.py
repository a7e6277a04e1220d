"""The chat template that a model's folder has, wherever it keeps it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zerotune.common.errors import UserError

FOLDER = Path(__file__).with_name("chat_templates")  # templates of our own: plain, chatml, raw
# What a generation prompt may end with: thoughts that it opens, or opens and closes.
OPENED_THOUGHTS = re.compile(r"<think>\s*(</think>\s*)?$")


def own_template(tokenizer: Any, folder: Path) -> str | dict[str, str] | None:
    """That of the tokenizer, or several by name. Older vision models have it in a file of its own.

    Raises UserError where that file is broken.
    """
    found: str | dict[str, str] | None = tokenizer.chat_template
    path = folder / "chat_template.json"
    if not found and path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["chat_template"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}: holds no chat_template that can be read ({error}); fetch it again") from error
    return found


def default_template(template: str | Mapping[str, str] | None) -> str | None:
    """The one for conversations without tools; None where there is none."""
    return template.get("default") if isinstance(template, Mapping) else template


def tool_template(template: str | Mapping[str, str] | None) -> str | None:
    """The one for conversations with tools, where it is another than the default (transformers' name: tool_use)."""
    return template.get("tool_use") if isinstance(template, Mapping) else None

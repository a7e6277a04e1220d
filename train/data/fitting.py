"""Messages as the template in use can write them, and the check that it wrote everything they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from train.data.conversations import Conversation, tool_calls
from train.data.fields import RowError


def fitted(text: str, conversation: Conversation) -> list[dict[str, Any]]:
    """Calls of functions as this template can write them: as `tool_calls` if it knows these, else as JSON text."""
    knows_calls = "tool_calls" in text
    messages = []
    for message in conversation.messages:
        fitted = {key: value for key, value in message.items() if key != "function_call"}
        if knows_calls and message.get("function_call"):
            calls = tool_calls(message["content"])
            if calls:
                fitted = {**fitted, "content": "", "tool_calls": calls}
        elif not knows_calls and message.get("tool_calls") and not message["content"]:
            calls = [call.get("function", call) for call in message["tool_calls"]]
            fitted["content"] = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
        messages.append(fitted)
    return messages


def checked(text: str, messages: Sequence[dict[str, Any]]) -> str:
    """The text, if everything said is in it: templates of image models pass over plain text without a word."""
    for index, message in enumerate(messages):
        said = message["content"].split("</think>")[-1].strip()  # templates may set thoughts apart
        if said not in text:
            raise RowError(f"the chat template leaves out what the {message['role']} says in message {index}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("a nested field holds half a surrogate pair") from None
    return text

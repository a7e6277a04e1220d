"""Chat templates: which one is used, and which stretch of the rendered text is learned."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from eval.files import nearest
from train.data.completeness import checked
from train.data.conversations import Conversation
from train.data.fields import RowError
from train.data.fitting import fitted, learned_turns
from train.data.preference import Continuation
from train.errors import UserError

FOLDER = Path(__file__).with_name("chat_templates")
NAMED = ("plain", "chatml", "raw")
DEFAULT = "plain"
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]  # first character, and the one after the last


@dataclass(frozen=True)
class ChatTemplate:
    """A template in use.

    name: for messages. text: Jinja source. special_tokens: what the text may name, such as eos_token.
    """

    name: str
    text: str
    special_tokens: Mapping[str, str]

    @property
    def hash(self) -> str:
        """sha256 of the source: a checkpoint is only good with the template that it learned."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def resolve(choice: str, tokenizer: Any) -> ChatTemplate:
    """The template that `data.chat_template` names; it is set on the tokenizer too, so that checkpoints carry it.

    Raises:
        UserError: Unknown name, bad Jinja, or a template that needs tokens which the tokenizer lacks.
    """
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, Mapping) else own
    if choice == "tokenizer" and own:
        name, text = "the tokenizer's own template", own
    else:
        name = DEFAULT if choice == "tokenizer" else choice
        text = _source(name)
    _check(name, text)
    special_tokens = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    if name in NAMED:
        text = _for_tokenizer(name, text, tokenizer)
    tokenizer.chat_template = text
    return ChatTemplate(name, text, special_tokens)


def _source(name: str) -> str:
    path = FOLDER / f"{name}.jinja" if name in NAMED else Path(name).expanduser()
    if path.suffix != ".jinja":
        raise UserError(
            f"data.chat_template: unknown template `{name}`; known are tokenizer, {', '.join(NAMED)}, or a .jinja file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"data.chat_template: {name} cannot be read: {reason}{nearest(path)}") from error


def _check(name: str, text: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template(conversations=[], chat_template=text)  # compiles, renders nothing
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"data.chat_template: {name}, line {error.lineno}: {error.message}") from error


def _for_tokenizer(name: str, text: str, tokenizer: Any) -> str:
    """A named template fitted to one tokenizer: a first token where it always writes one, an end that exists."""
    if name == "chatml":
        lacking = [mark for mark in ("<|im_start|>", "<|im_end|>") if mark not in tokenizer.get_added_vocab()]
        if lacking:
            raise UserError(
                f"data.chat_template: chatml needs the tokens {' and '.join(lacking)}, which this tokenizer lacks;"
                f" use `{DEFAULT}`, which needs no new tokens"
            )
        return text
    if tokenizer.eos_token is None:
        raise UserError(f"data.chat_template: `{name}` ends answers with eos_token, which this tokenizer lacks")
    return "{{- bos_token -}}\n" + text if starts_with_bos(tokenizer) else text


def starts_with_bos(tokenizer: Any) -> bool:
    """Whether this tokenizer puts its bos token before every text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def render(template: ChatTemplate, conversation: Conversation, left: set[str] | None = None) -> tuple[str, list[Span]]:
    """The conversation as text, and the stretches of it that are learned: each of the assistant's turns with the token
    that ends it, without white space after that.

    Templates with {% generation %} marks say so themselves. For others, what the template writes for the turns before
    (with a generation prompt) must begin what it writes with the turn, and the difference is the turn.

    Of a conversation without an answer nothing is learned; its text ends where that of an answer would begin.
    left: gets what the template leaves out.

    Raises:
        RowError: The template refuses this conversation.
        UserError: The template writes earlier turns differently once later ones follow.
    """
    messages = fitted(template.text, conversation)
    text, spans = _written(template, messages, conversation.tools, conversation.is_answered)
    return checked(template.text, text, messages, conversation.tools, left), learned_turns(conversation, text, spans)


def _written(
    template: ChatTemplate, messages: Sequence[dict[str, Any]], tools: list[Any] | None, is_answered: bool
) -> tuple[str, list[Span]]:
    """See `render`, for messages as the template takes them."""
    if not is_answered:
        return _asking(template, messages, tools), []
    if GENERATION_MARK.search(template.text):
        text, marked = _render(template, messages, tools, marks=True)
        return text, [_trimmed(text, span) for span in marked]
    text, _ = _render(template, messages, tools)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = _render(template, messages[:index], tools, prompt=True)
        last = index == len(messages) - 1
        through = text if last else _render(template, messages[: index + 1], tools)[0]
        if not through.startswith(before) or not text.startswith(through):
            raise UserError(_not_a_prefix(template, index))
        spans.append(_trimmed(text, (len(before), len(through))))
    return text, spans


def _asking(template: ChatTemplate, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> str:
    """What stands before an answer. A template with marks need not know generation prompts: it writes an answer."""
    if not GENERATION_MARK.search(template.text):
        return _render(template, messages, tools, prompt=True)[0]
    text, marked = _render(template, [*messages, {"role": "assistant", "content": "?"}], tools, marks=True)
    if not marked:
        raise RowError("the chat template marks no answer behind it")
    return text[: marked[-1][0]]


def continued(template: ChatTemplate, text: Continuation, with_bos: bool) -> tuple[str, list[Span]]:
    """A text as it stands, between the tokens that begin and end one; how it goes on is learned, with the end."""
    before = (template.special_tokens["bos_token"] if with_bos else "") + text.prompt
    whole = before + text.answer + template.special_tokens.get("eos_token", "")
    return whole, [(len(before), len(whole))]


def _not_a_prefix(template: ChatTemplate, turn: int) -> str:
    return (
        f"data.chat_template: {template.name} writes the conversation before message {turn} differently once that"
        " message follows, so the tokens to learn cannot be told apart. Put {% generation %} ... {% endgeneration %}"
        " around the assistant's part in a copy of it and name that file (TRL ships such copies of well-known"
        " templates, trl/chat_templates/*_training.jinja), or use chatml or plain"
    )


def _render(
    template: ChatTemplate,
    messages: Sequence[dict[str, Any]],
    tools: list[Any] | None,
    prompt: bool = False,
    marks: bool = False,
) -> tuple[str, list[Span]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, marked = render_jinja_template(
            conversations=[list(messages)],
            tools=tools,
            chat_template=template.text,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=prompt,
            **template.special_tokens,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise RowError(f"the chat template refuses it: {error}") from None
    return texts[0], marked[0] if marks else []


def _trimmed(text: str, span: Span) -> Span:
    start, end = span
    return start, start + len(text[start:end].rstrip())

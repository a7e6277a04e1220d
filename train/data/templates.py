"""Chat templates: which one is used, and which parts of the rendered text are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from os.path import commonprefix
from pathlib import Path
from typing import Any

import jinja2

from train.data.training_templates import training_template
from zerotune.common.errors import UserError
from zerotune.common.files import nearest
from zerotune.data.chat_template_file import FOLDER, OPENED_THOUGHTS
from zerotune.data.completeness import GENERATION_MARK, checked
from zerotune.data.conversations import Conversation
from zerotune.data.fields import RowError
from zerotune.data.fit_messages import Span, fitted, learned_turns, rendered
from zerotune.data.preference import Continuation
from zerotune.data.template_date import dated, reads_clock

NAMED = ("plain", "chatml", "raw")
DEFAULT = "plain"
OTHER_PROMPT = "another prompt"  # the prompt before a row's last answer differs from the prompt at inference


@dataclass(frozen=True)
class ChatTemplate:
    """A template in use.

    name: for messages. text: Jinja source that renders training rows, with the run's day. special_tokens: its
    variables, such as eos_token. saved_text: the source in checkpoints. inference_text: the same, with the run's day.
    with_tools: the template of rows with tools, for tokenizers that have a separate one.
    """

    name: str
    text: str
    special_tokens: Mapping[str, str]
    saved_text: str
    inference_text: str
    with_tools: ChatTemplate | None = None

    @property
    def trains_apart(self) -> bool:
        """Whether rows are rendered with another template than prompts at inference."""
        return self.text != self.inference_text

    @property
    def reads_clock(self) -> bool:
        """Whether its texts depend on the day."""
        return reads_clock(self.saved_text) or (self.with_tools is not None and self.with_tools.reads_clock)

    @property
    def hash(self) -> str:
        """sha256 of the source in checkpoints: a model works only with the template of its training."""
        return hashlib.sha256(self.saved_text.encode()).hexdigest()

    @property
    def identity(self) -> str:
        """sha256 of all sources that render rows."""
        texts = [self.text, *([self.with_tools.text] if self.with_tools else [])]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()

    def of(self, conversation: Conversation) -> ChatTemplate:
        """The template for this conversation."""
        return self.with_tools if self.with_tools and conversation.tools else self


def resolve(choice: str, tokenizer: Any, day: date | None = None) -> ChatTemplate:
    """The template that `data.chat_template` names; it is set on the tokenizer too, so that checkpoints have it.

    The tokenizer's own template is not changed. Rows are rendered with TRL's training template for it, if there is one.
    day: the date for templates that read the clock; by default today.

    Raises:
        UserError: Unknown name, bad Jinja, or a template that needs tokens which the tokenizer lacks.
    """
    special_tokens = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    own = tokenizer.chat_template
    owned = own if isinstance(own, Mapping) else {"default": own}
    if choice == "tokenizer" and owned.get("default"):
        template = _own(owned["default"], special_tokens, day)
        for_tools = owned.get("tool_use")  # transformers' name for it
        return replace(template, with_tools=_own(for_tools, special_tokens, day)) if for_tools else template
    name = DEFAULT if choice == "tokenizer" else choice
    text = _source(name)
    _check(name, text)
    if name in NAMED:
        text = _for_tokenizer(name, text, tokenizer)
    tokenizer.chat_template = text
    return _made(name, text, text, special_tokens, day)


def _own(text: str, special_tokens: Mapping[str, str], day: date | None) -> ChatTemplate:
    name = "the tokenizer's own template"
    _check(name, text)
    pair = None if GENERATION_MARK.search(text) else training_template(text)
    if pair is None:
        return _made(name, text, text, special_tokens, day)
    family, training = pair
    return _made(f"trl's {family}_training.jinja", training, text, special_tokens, day)


def _made(name: str, text: str, saved: str, special_tokens: Mapping[str, str], day: date | None) -> ChatTemplate:
    day = day or date.today()
    try:
        return ChatTemplate(name, dated(text, day), special_tokens, saved, dated(saved, day))
    except UserError as error:
        raise UserError(f"data.chat_template: {name}: {error}") from error


def require_template(choice: str) -> None:
    """Raise UserError if `data.chat_template` names neither a template nor a file."""
    if choice != "tokenizer":
        _source(choice)


def _source(name: str) -> str:
    path = FOLDER / f"{name}.jinja" if name in NAMED else Path(name).expanduser()
    if path.suffix != ".jinja":
        raise UserError(
            f"data.chat_template: unknown template `{name}`; known are tokenizer, {', '.join(NAMED)}, or a .jinja file;"
            " a model's own template is the default, tokenizer"
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
    """A named template adapted to a tokenizer: with bos if the tokenizer adds it. Raises UserError without an end."""
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
    """Whether the tokenizer adds its bos token to every text."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def render(template: ChatTemplate, conversation: Conversation, left: set[str] | None = None) -> tuple[str, list[Span]]:
    """(text of the conversation, learned spans): each of the assistant's turns with its end token, without white space
    after it.

    Templates with {% generation %} marks give the spans. For others, the text of the earlier turns (with a generation
    prompt) must be a prefix of the text with the turn; the difference is the turn.

    A conversation without an answer has no spans; its text ends where an answer would begin.
    left: collects the parts that the template omits, and OTHER_PROMPT if the prompt before the last answer differs
    from that at inference.

    Raises:
        RowError: The template refuses this conversation, omits a part of it, or does not give its spans.
    """
    template = template.of(conversation)
    messages = fitted(template.text if conversation.is_answered else template.inference_text, conversation.messages)
    text, spans = _text_and_spans(template, messages, conversation.tools, conversation.is_answered)
    if template.trains_apart and spans:
        shown = fitted(template.inference_text, conversation.messages)
        spans, is_same_prompt = _after_prompts(template, shown, conversation.tools, text, spans)
        if not is_same_prompt and left is not None:
            left.add(OTHER_PROMPT)
    source = template.text if conversation.is_answered else template.inference_text
    text = checked(source, text, spans, messages, conversation.tools, left)
    return text, learned_turns(conversation, text, [(a, a + len(text[a:b].rstrip())) for a, b in spans])


def prompt_text(template: ChatTemplate, conversation: Conversation) -> str:
    """The prompt for the answer to a conversation, as at inference. Raises RowError."""
    template = template.of(conversation)
    return _prompt(template, fitted(template.inference_text, conversation.messages), conversation.tools)


def full_text(template: ChatTemplate, conversation: Conversation, left: set[str] | None = None) -> str:
    """The complete conversation without a generation prompt, for a reward model. Raises RowError.

    left: collects the parts that the template omits.
    """
    template = template.of(conversation)
    messages = fitted(template.inference_text, conversation.messages)
    text = _render(template, messages, conversation.tools, inference=True)[0]
    return checked(template.inference_text, text, (), messages, conversation.tools, left)


def _text_and_spans(
    template: ChatTemplate, messages: Sequence[dict[str, Any]], tools: list[Any] | None, is_answered: bool
) -> tuple[str, list[Span]]:
    """See `render`; messages: in the form that the template expects."""
    if not is_answered:
        return _prompt(template, messages, tools), []
    if GENERATION_MARK.search(template.text):
        text, marked = _render(template, messages, tools, marks=True)
        return text, _joined(marked)
    text, _ = _render(template, messages, tools)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = _render(template, messages[:index], tools, prompt=True)
        last = index == len(messages) - 1
        through = text if last else _render(template, messages[: index + 1], tools)[0]
        if not through.startswith(before) or not text.startswith(through):
            raise RowError(
                "the chat template writes earlier turns differently when later ones follow: in "
                f"{template.name} the text before message {index} changes, so the tokens to learn cannot be found. Set "
                "data.chat_template to a copy with {% generation %} ... {% endgeneration %} around the assistant's "
                "part, or to chatml or plain"
            )
        spans.append((len(before), len(through)))
    return text, spans


def _prompt(template: ChatTemplate, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> str:
    """The prompt before an answer. A template with marks may not have generation prompts: it renders an answer."""
    if not GENERATION_MARK.search(template.inference_text):
        return _render(template, messages, tools, prompt=True)[0]
    text, marked = _render(template, [*messages, {"role": "assistant", "content": "?"}], tools, marks=True)
    if not marked:
        raise RowError(
            "the chat template marks no answer ({% generation %}) after this prompt; use another data.chat_template"
        )
    return text[: marked[-1][0]]


def _joined(spans: Sequence[Span]) -> list[Span]:
    """The spans without empty ones; adjacent spans are joined."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return joined


def _after_prompts(
    template: ChatTemplate,
    messages: Sequence[dict[str, Any]],
    tools: list[Any] | None,
    text: str,
    spans: list[Span],
) -> tuple[list[Span], bool]:
    """(spans that begin where the prompt at inference ends, whether the last one follows such a prompt).

    TRL's marks may begin within or before the generation prompt (`<|start|>assistant`, `<think>`), which the model
    never generates, or after a part that it has to generate.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(turns) != len(spans):
        return spans, True
    found, is_same_prompt = list[Span](), True
    for index, (start, end) in zip(turns, spans, strict=True):
        begins, is_same_prompt = _end_of_prompt(template, messages[:index], tools, text, start)
        free = found[-1][1] if found else 1
        found.append((begins if free <= begins < end else start, end))
    return found, is_same_prompt


def _end_of_prompt(
    template: ChatTemplate, before: Sequence[dict[str, Any]], tools: list[Any] | None, text: str, start: int
) -> tuple[int, bool]:
    """(end of the prompt of the turn that is marked from `start` on, 0 if unknown; whether it is the prompt at
    inference, apart from earlier turns).
    """
    try:
        prompt = _render(template, before, tools, prompt=True)[0]
        if text.startswith(prompt):
            return len(prompt), True
        history = _render(template, before, tools, inference=True)[0]
    except RowError:  # not possible at inference, but TRL's template can render it
        return 0, True
    # Earlier turns are rendered differently; the generation prompt is the part after them.
    opening = prompt[len(commonprefix([prompt, history])) :]  # noqa: RUF071 - characters are meant
    end = _end_of(opening, text, start)
    return (end, True) if end else (_end_of(OPENED_THOUGHTS.sub("", opening), text, start), not opening)


def _end_of(opening: str, text: str, start: int) -> int:
    """The end of `opening`, if it begins at `start` or overlaps it from before; else 0."""
    for before in range(min(len(opening), start), -1, -1):
        if opening and text.startswith(opening, start - before):
            return start - before + len(opening)
    return 0


def continuation_text(template: ChatTemplate, text: Continuation, with_bos: bool) -> tuple[str, list[Span]]:
    """(prompt and answer between bos and eos tokens, span of the answer with eos)."""
    before = (template.special_tokens["bos_token"] if with_bos else "") + text.prompt
    whole = before + text.answer + template.special_tokens.get("eos_token", "")
    return whole, [(len(before), len(whole))]


def _render(
    template: ChatTemplate,
    messages: Sequence[dict[str, Any]],
    tools: list[Any] | None,
    prompt: bool = False,
    marks: bool = False,
    inference: bool = False,
) -> tuple[str, list[Span]]:
    """prompt: with a generation prompt, as at inference. inference: as at inference, without a generation prompt."""
    source = template.inference_text if prompt or inference else template.text
    return rendered(source, messages, tools, prompt, marks, template.special_tokens)

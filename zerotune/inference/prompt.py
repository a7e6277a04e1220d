"""Text and conversations as token ids, with one checkpoint's tokenizer and chat template."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from zerotune.common.errors import UserError
from zerotune.data.conversations import Message, said_in
from zerotune.data.fitting import fitted, without_thought
from zerotune.data.own_template import FOLDER, OPENED_THOUGHTS
from zerotune.data.template_clock import dated, reads_clock
from zerotune.data.word_windows import Words, glues_words, untruncated

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from zerotune.inference.images import Images

Ids = tuple[int, ...]
Tools = list[Any] | None
RAW = FOLDER / "raw.jinja"
NO_LABELS: Mapping[int, str] = {}


@dataclass(frozen=True)
class Passage:
    """Token ids of which those from `first` on are to be scored, and the UTF-8 bytes that these stand for."""

    ids: Ids
    first: int
    bytes: int


def beginning(texts: Sequence[str]) -> tuple[str, str] | None:
    """A text and another that begins with it, if there are any: in sorted order two such stand side by side."""
    return next(((one, other) for one, other in pairwise(sorted(set(texts))) if other.startswith(one)), None)


class Prompter:
    """Encodes for one checkpoint.

    Args:
        tokenizer: A transformers tokenizer.
        template: A Jinja chat template; None where the checkpoint has none, and conversations are refused.
        raw: Use none of them: the messages one after another, and the end token after each answer.
        context_tokens: The longest sequence that the model can take; None where it has no bound.
        max_new_tokens: Length limit of generated answers.
        window_tokens: Longest window in which a document is scored; 0 is the whole context.
        end_ids: Tokens that end an answer by the checkpoint's own generation settings.
        name: What messages call the checkpoint.
        labels: The names of its head's classes, by their numbers.
        day: What a template that reads the clock is told; today, where none is given.
        tool_template: The template of conversations with tools, where the checkpoint has another one for these.
        images: Gives what turns images into tokens; it raises UserError for a checkpoint that takes none.

    wrote_conversations: whether any prompt depended on the chat template, or on there being none.
    asked: the conversation that `question` was last given, for who wants it as messages.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        raw: bool,
        context_tokens: int | None,
        max_new_tokens: int,
        window_tokens: int,
        end_ids: Sequence[int],
        name: str,
        labels: Mapping[int, str] = NO_LABELS,
        images: Callable[[], Images] | None = None,
        day: date | None = None,
        tool_template: str | None = None,
    ) -> None:
        self.tokenizer, self.name, self._images = tokenizer, name, images
        self.labels = tuple(labels[number] for number in sorted(labels))
        self.raw, self.template = raw, None if raw else template
        self._tool_template = tool_template or self.template
        self._day = day or date.today()
        self.max_new_tokens = max_new_tokens
        self.context_tokens = context_tokens
        sizes = [size for size in (window_tokens, context_tokens) if size]
        self.window_tokens: int | None = min(sizes) if sizes else None
        self.wrote_conversations = False
        self.asked: tuple[Message, ...] = ()
        self._start = self._start_ids()
        self._lead: Ids = self._start if raw else ()  # a template writes its own start token
        self.stop_ids = self._stop_ids(end_ids)

    def question(self, messages: Sequence[Message], tools: Tools = None) -> Ids:
        """The conversation up to where the assistant answers. tools: JSON schemas of functions."""
        self.asked = tuple(messages)
        return self._lead + self._encode(self._written(messages, tools, add_generation_prompt=True))

    def shown(self, images: Sequence[str], text: str) -> Ids:
        """A user's turn with images (files) and the text below them, up to where the assistant answers."""
        if self.raw or self._images is None:
            raise UserError(f"{self.name}: only a chat template says where images stand; --template raw has none")
        return self._images().ids(self._shown(len(images), text), images)

    def reply(self, text: str) -> Ids:
        """The beginning of an answer to `shown`: behind a space, where the template's prompt ends in none."""
        return self._encode(text if self._shown(0, "?")[-1:].isspace() else f" {text}")

    def answers(self, messages: Sequence[Message], tools: Tools = None) -> list[Passage]:
        """Each turn of the assistant that training would learn, given everything before it; its end-of-turn token is
        scored too.
        """
        turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
        return [self._answer(messages[: k + 1], tools) for k in turns if messages[k].get("learned", True)]

    def sequence(self, sentences: Sequence[str]) -> tuple[Ids, int]:
        """One sentence or two as a classification head reads them, with the tokenizer's special tokens; and where the
        second begins, if the tokenizer numbers them (token_type_ids), else 0.
        """
        encoded = self.tokenizer(*sentences, truncation=False, verbose=False)
        numbers = list(encoded.get("token_type_ids") or ())
        return tuple(encoded["input_ids"]), numbers.index(1) if 1 in numbers else 0

    def whole(self, said: str | Sequence[Message], tools: Tools = None) -> Ids:
        """A text with its end token, or a conversation, as a reward model reads it: up to the last token that is no
        padding, where transformers' heads read.
        """
        if isinstance(said, str):
            ids = list(self.tokenizer(said, truncation=False, verbose=False)["input_ids"])
            end = self.tokenizer.eos_token_id
            ids += [] if end is None or ids[-1:] == [end] else [end]
        else:
            ids = list(self._encode(self._written(said, tools, add_generation_prompt=False)))
        while ids and ids[-1] == self.tokenizer.pad_token_id:
            ids.pop()
        return tuple(ids)

    def shortened(self, ids: Ids) -> Ids:
        """The end of what is longer than the context, behind the tokens that the tokenizer puts before every text."""
        if self.context_tokens is None or len(ids) <= self.context_tokens:
            return ids
        start = self._start if ids[: len(self._start)] == self._start else ()
        return start + ids[len(ids) - self.context_tokens + len(start) :]

    def words(self, words: Sequence[str]) -> Words:
        """A sentence that is split into words already, with the tokenizer's special tokens around it."""
        if not self.tokenizer.is_fast:
            raise UserError(f"{self.name}: only a fast tokenizer (tokenizer.json) tells which word a token belongs to")
        return Words.encoded(self._plain_tokenizer, words, self._glues_words)

    def document(self, text: str) -> Passage:
        """A text. Its first token is scored only if the tokenizer puts a start token from which to predict it."""
        if self._start or not self.tokenizer.is_fast:
            ids = self._start + self._encode(text)
            return Passage(ids, max(len(self._start), 1), len(text.encode()))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = tuple(encoded["input_ids"])
        begin = encoded["offset_mapping"][1][0] if len(ids) > 1 else len(text)
        return Passage(ids, 1, len(text[begin:].encode()))

    def choices(self, context: str, continuations: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """A plain text's ids (it may not be blank), and those of each text that could continue it.

        As lm-evaluation-harness encodes them, so that log-probabilities agree with its: spaces at the context's end
        belong to the continuation, and a continuation is what the whole has beyond the context's number of tokens.
        """
        given = context.rstrip()
        prefix = self._start + self._encode(given)
        wholes = [self._start + self._encode(context + continuation) for continuation in continuations]
        tails = [whole[len(prefix) :] for whole in wholes]
        spaces = context[len(given) :]  # merged away where the whole is no longer than the context: encode it apart
        return prefix, [tail or self._encode(spaces + c) for tail, c in zip(tails, continuations, strict=True)]

    def with_ends(self, continuations: Sequence[Ids], texts: Sequence[str]) -> list[Ids]:
        """Each continuation with the end token, if one of the texts begins another: else the shorter one, which holds
        all that begins with it, could not lose. Raises UserError where the tokenizer has no end token.
        """
        pair = beginning(texts)
        if pair is None:
            return list(continuations)
        end = self.tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"{self.name}: {pair[0]!r} begins {pair[1]!r}, and the tokenizer has no end token by which to tell "
                "them apart; write them so that none begins another"
            )
        return [(*ids, end) for ids in continuations]

    def begun(self, messages: Sequence[Message], answer: str) -> Ids:
        """The conversation and the beginning of the assistant's answer, to be continued."""
        ids = self.question(messages) + self._encode(answer)
        if answer:  # half of one is no message
            self.asked = ()
        return ids

    def _answer(self, messages: Sequence[Message], tools: Tools) -> Passage:
        self.asked = tuple(messages[:-1])
        before, answer = self._answered(messages, tools)
        asked = self._lead + self._encode(before)
        return Passage(asked + self._encode(answer), len(asked), len(said_in(messages[-1]).encode()))

    def _written(self, messages: Sequence[Message], tools: Tools, add_generation_prompt: bool) -> str:
        """The conversation by the template, as training writes it."""
        self.wrote_conversations = True
        source = self._source(tools)
        return self._rendered(fitted(source, messages) if messages else (), add_generation_prompt, source, tools)

    def _shown(self, images: int, text: str) -> str:
        self.wrote_conversations = True
        parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
        return self._rendered([{"role": "user", "content": parts}], True, self._source(None), None)

    def _answered(self, messages: Sequence[Message], tools: Tools) -> tuple[str, str]:
        """The prompt, and what the model should say: the answer and its end of turn, without the white space that
        follows these. Where the prompt opens thoughts and the answer has none, the prompt is without them, as training
        learns such rows. Where it opens thoughts that the template drops from answers (DeepSeek-R1), they are put back.
        """
        asked = self._written(messages[:-1], tools, add_generation_prompt=True)
        whole = self._written(messages, tools, add_generation_prompt=False)
        unopened = OPENED_THOUGHTS.sub("", asked)
        thought = messages[-1].get("reasoning_content") or without_thought(messages[-1]["content"])[0]
        is_lost = thought.strip() not in whole
        if is_lost and (asked == unopened or "</think>" in asked[len(unopened) :]):
            raise UserError(f"{self.name}: its chat template leaves out the reasoning of message {len(messages) - 1}")
        for before in (asked, unopened):
            if whole.startswith(before):
                answer = whole[len(before) :].rstrip()
                return (asked, f"{thought.strip()}\n</think>\n\n{answer.lstrip()}") if is_lost else (before, answer)
        raise UserError(
            f"{self.name}: its chat template does not continue a question's prompt with the answer, so answers "
            "cannot be scored; give another with --template FILE.jinja, or --template raw"
        )

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool, source: str, tools: Tools) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise UserError(f"{self.name}: its chat template refuses this conversation: {error}") from error
        return text

    def _source(self, tools: Tools) -> str:
        """The Jinja text of the template in use, on its day."""
        return self._sources[bool(tools)]

    @cached_property
    def _sources(self) -> tuple[str, str]:
        """Without tools, and with."""
        if self.raw:
            return (RAW.read_text(encoding="utf-8"),) * 2
        if self.template is None or self._tool_template is None:
            raise UserError(
                f"{self.name}: its tokenizer has no chat template, and these rows are conversations; give --template "
                "raw (nothing between messages) or FILE.jinja, for example the other model's chat_template.jinja"
            )
        try:
            return dated(self.template, self._day), dated(self._tool_template, self._day)
        except UserError as error:
            raise UserError(f"{self.name}: {error}, and give the file with --template") from error

    @property
    def told_day(self) -> date | None:
        """The day that prompts depended on; None where they depended on none."""
        depends = self.wrote_conversations and self.template is not None and reads_clock(self.template)
        return self._day if depends else None

    def _stop_ids(self, end_ids: Sequence[int]) -> Ids:
        """The checkpoint's end tokens, and the template's end of turn: a base model's settings do not know that one."""
        stops = {*end_ids, self.tokenizer.eos_token_id} - {None}
        if self.template is not None:
            stops |= {i for i in self._encode(self._end_of_turn())[:1] if i in self.tokenizer.added_tokens_decoder}
        return tuple(sorted(stops))

    def _end_of_turn(self) -> str:
        """What the template writes after an answer; nothing where it refuses every conversation made up here."""
        mark = "zerotune-answer"
        for roles in (("user", "assistant"), ("system", "user", "assistant")):  # one may insist on a system message
            with contextlib.suppress(UserError, TypeError):
                source = self._source(None)
                said = fitted(source, [{"role": role, "content": mark} for role in roles])
                whole = self._rendered(said, False, source, None)
                if mark in whole:
                    return whole.rpartition(mark)[2]
        return ""

    @cached_property
    def _plain_tokenizer(self) -> Tokenizer:
        return untruncated(self.tokenizer.backend_tokenizer)

    @cached_property
    def _glues_words(self) -> bool:
        return glues_words(self._plain_tokenizer)

    def _encode(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _start_ids(self) -> Ids:
        """The tokens that the tokenizer puts before every text."""
        bare, full = self._encode("a"), tuple(self.tokenizer("a")["input_ids"])
        starts = [k for k in range(len(full)) if full[k : k + len(bare)] == bare]
        return full[: starts[0]] if starts else ()

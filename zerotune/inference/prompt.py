"""Encodes texts and conversations with a checkpoint's tokenizer and chat template."""

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
from zerotune.data.own_template import OPENED_THOUGHTS
from zerotune.data.rows import Message
from zerotune.data.template_clock import dated, reads_clock
from zerotune.data.word_windows import Words, glues_words, untruncated

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from zerotune.inference.images import Images

Ids = tuple[int, ...]
NO_LABELS: Mapping[int, str] = {}


@dataclass(frozen=True)
class Passage:
    """Token ids, of which those from `first` on are scored, and the UTF-8 bytes of the scored part."""

    ids: Ids
    first: int
    bytes: int


def find_prefix_pair(texts: Sequence[str]) -> tuple[str, str] | None:
    """A text and another one that starts with it, if there are any; sorting makes such texts adjacent."""
    return next(((one, other) for one, other in pairwise(sorted(set(texts))) if other.startswith(one)), None)


class Prompter:
    """Encodes prompts for one checkpoint.

    Args:
        tokenizer: A transformers tokenizer.
        template: A Jinja chat template; with None, conversations raise UserError.
        raw: Use no template: concatenate the messages, with an end token after each assistant message.
        context_tokens: Maximum sequence length of the model; None if unlimited.
        max_new_tokens: Length limit of generated answers.
        window_tokens: Maximum window for scoring a document; 0 is the whole context.
        end_ids: End tokens of the checkpoint's generation settings.
        name: Name of the checkpoint in messages.
        labels: Class names of its head, by index.
        day: The date for a template that reads the clock; default: today.
        images: Returns the image processor; raises UserError for a checkpoint that takes no images.

    used_chat_template: whether any prompt depended on the chat template, or on its absence.
    last_messages: the conversation last passed to `chat_prompt`.
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
    ) -> None:
        self.tokenizer, self.name, self._images = tokenizer, name, images
        self.labels = tuple(labels[number] for number in sorted(labels))
        self.raw, self.template = raw, None if raw else template
        self._day = day or date.today()
        self.max_new_tokens = max_new_tokens
        self.context_tokens = context_tokens
        sizes = [size for size in (window_tokens, context_tokens) if size]
        self.window_tokens: int | None = min(sizes) if sizes else None
        self.used_chat_template = False
        self.last_messages: tuple[Message, ...] = ()
        self._bos = self._bos_ids()
        self._chat_bos: Ids = self._bos if raw else ()  # a template writes its own start token
        self.stop_ids = self._stop_ids(end_ids)

    def chat_prompt(self, messages: Sequence[Message]) -> Ids:
        """Encode a conversation, up to where the assistant's response begins."""
        self.last_messages = tuple(messages)
        return self._chat_bos + self._encode(self._prompt_text(messages))

    def image_prompt(self, images: Sequence[str], text: str) -> Ids:
        """Encode a user's turn of images (files) and a text, up to where the assistant's response begins."""
        if self.raw or self._images is None:
            raise UserError(f"{self.name}: images need a chat template, not --template raw")
        return self._images().ids(self._image_prompt_text(len(images), text), images)

    def response_start(self, text: str) -> Ids:
        """Encode the start of a response to `image_prompt`, with a leading space unless the prompt ends with one."""
        return self._encode(text if self._image_prompt_text(0, "?")[-1:].isspace() else f" {text}")

    def assistant_turns(self, messages: Sequence[Message]) -> list[Passage]:
        """Encode each assistant turn after everything before it; its end-of-turn token is scored too."""
        turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
        return [self._turn(messages[:k], messages[k]) for k in turns]

    def classifier_input(self, sentences: Sequence[str]) -> tuple[Ids, int]:
        """Encode one sentence or two for a classification head, with special tokens.

        Returns token ids and the start of the second sentence (0 if the tokenizer has no token_type_ids).
        """
        encoded = self.tokenizer(*sentences, truncation=False, verbose=False)
        types = list(encoded.get("token_type_ids") or ())
        return tuple(encoded["input_ids"]), types.index(1) if 1 in types else 0

    def reward_input(self, text: str | Sequence[Message]) -> Ids:
        """Encode a text with its end token, or a conversation, for a reward model.

        Trailing padding tokens are removed, since transformers' heads read the last token that is not padding.
        """
        if isinstance(text, str):
            ids = list(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
            end = self.tokenizer.eos_token_id
            ids += [] if end is None or ids[-1:] == [end] else [end]
        else:
            self.used_chat_template = True
            ids = list(self._encode(self._render(text, add_generation_prompt=False)))
        while ids and ids[-1] == self.tokenizer.pad_token_id:
            ids.pop()
        return tuple(ids)

    def truncated(self, ids: Ids) -> Ids:
        """Truncate `ids` to the context from the left, but keep the start tokens."""
        if self.context_tokens is None or len(ids) <= self.context_tokens:
            return ids
        start = self._bos if ids[: len(self._bos)] == self._bos else ()
        return start + ids[len(ids) - self.context_tokens + len(start) :]

    def words(self, words: Sequence[str]) -> Words:
        """Encode a sentence that is already split into words, with special tokens."""
        if not self.tokenizer.is_fast:
            raise UserError(f"{self.name}: needs a fast tokenizer (tokenizer.json), which maps tokens to words")
        return Words.encoded(self._plain_tokenizer, words, self._glues_words)

    def document(self, text: str) -> Passage:
        """Encode a text. Its first token is scored only if the tokenizer puts a start token before it."""
        if self._bos or not self.tokenizer.is_fast:
            ids = self._bos + self._encode(text)
            return Passage(ids, max(len(self._bos), 1), len(text.encode()))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = tuple(encoded["input_ids"])
        second = encoded["offset_mapping"][1][0] if len(ids) > 1 else len(text)
        return Passage(ids, 1, len(text[second:].encode()))

    def choices(self, context: str, continuations: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """Encode a plain context (not blank) and each of its possible continuations.

        Equal to lm-evaluation-harness, so that log-probabilities agree: trailing spaces of the context belong to the
        continuation, whose tokens are those of context + continuation after the number of tokens of the context.
        """
        stripped = context.rstrip()
        prefix = self._bos + self._encode(stripped)
        wholes = [self._bos + self._encode(context + continuation) for continuation in continuations]
        tails = [whole[len(prefix) :] for whole in wholes]
        spaces = context[len(stripped) :]
        # A tail is empty if the tokens of the continuation merge into the context: then encode it by itself.
        return prefix, [tail or self._encode(spaces + c) for tail, c in zip(tails, continuations, strict=True)]

    def with_ends(self, continuations: Sequence[Ids], texts: Sequence[str]) -> list[Ids]:
        """Append the end token to each continuation if one of `texts` is a prefix of another one.

        Otherwise the shorter text would always be at least as probable. Raises UserError without an end token.
        """
        pair = find_prefix_pair(texts)
        if pair is None:
            return list(continuations)
        end = self.tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"{self.name}: {pair[0]!r} is the start of {pair[1]!r}, and the tokenizer has no end token to tell "
                "them apart; write choices of which none is the start of another"
            )
        return [(*ids, end) for ids in continuations]

    def chat_prefix(self, messages: Sequence[Message], answer: str) -> Ids:
        """Encode a conversation and the start of the assistant's response, to be continued."""
        ids = self.chat_prompt(messages) + self._encode(answer)
        if answer:  # an incomplete response is not a message
            self.last_messages = ()
        return ids

    def _turn(self, history: Sequence[Message], message: Message) -> Passage:
        self.last_messages = tuple(history)
        before, response = self._prompt_and_response(history, message)
        prompt = self._chat_bos + self._encode(before)
        return Passage(prompt + self._encode(response), len(prompt), len(message["content"].encode()))

    def _prompt_text(self, messages: Sequence[Message]) -> str:
        self.used_chat_template = True
        if self.raw:
            return "".join(m["content"] + self._end(m["role"]) for m in messages)
        return self._render(messages, add_generation_prompt=True)

    def _image_prompt_text(self, images: int, text: str) -> str:
        self.used_chat_template = True
        parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
        return self._render([{"role": "user", "content": parts}], add_generation_prompt=True)

    def _prompt_and_response(self, history: Sequence[Message], message: Message) -> tuple[str, str]:
        """The prompt, and the reference response with its end of turn, without trailing white space.

        If the prompt opens reasoning and the response has none, the opening mark is removed, as in training.
        """
        prompt = self._prompt_text(history)
        if self.raw:
            return prompt, message["content"] + self._end("assistant")
        whole = self._render([*history, message], add_generation_prompt=False)
        for before in (prompt, OPENED_THOUGHTS.sub("", prompt)):
            if whole.startswith(before):
                return before, whole[len(before) :].rstrip()
        raise UserError(
            f"{self.name}: its chat template renders an answered conversation differently from its prompt, so answers "
            "cannot be scored; pass another one: --template FILE.jinja, or --template raw"
        )

    def _end(self, role: str) -> str:
        return self.tokenizer.eos_token or "" if role == "assistant" else ""

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        if self.template is None:
            raise UserError(
                f"{self.name}: its tokenizer has no chat template, and these rows are conversations; pass --template "
                "raw (nothing between messages) or FILE.jinja, for example the other model's chat_template.jinja"
            )
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._dated_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise UserError(f"{self.name}: its chat template rejects this conversation: {error}") from error
        return text

    @cached_property
    def _dated_template(self) -> str:
        try:
            return dated(self.template or "", self._day)
        except UserError as error:
            raise UserError(f"{self.name}: {error}, and pass the file with --template") from error

    @property
    def template_date(self) -> date | None:
        """The date that prompts depended on; None if the template does not read the clock."""
        depends = self.used_chat_template and self.template is not None and reads_clock(self.template)
        return self._day if depends else None

    def _stop_ids(self, end_ids: Sequence[int]) -> Ids:
        """The checkpoint's end tokens and the template's end of turn, which a base model's settings lack."""
        stops = {*end_ids, self.tokenizer.eos_token_id} - {None}
        if self.template is not None:
            stops |= {i for i in self._encode(self._end_of_turn())[:1] if i in self.tokenizer.added_tokens_decoder}
        return tuple(sorted(stops))

    def _end_of_turn(self) -> str:
        """What the template writes after a response; "" if it rejects every trial conversation."""
        mark = "zerotune-answer"
        parts = [{"type": "text", "text": mark}]  # some vision templates accept only this form
        for roles in (("user", "assistant"), ("system", "user", "assistant")):  # some require a system message
            for content in (mark, parts):
                messages = [{"role": role, "content": content} for role in roles]
                with contextlib.suppress(UserError, TypeError):
                    whole = self._render(messages, add_generation_prompt=False)
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

    def _bos_ids(self) -> Ids:
        """The start tokens that the tokenizer puts before every text."""
        bare, full = self._encode("a"), tuple(self.tokenizer("a")["input_ids"])
        starts = [k for k in range(len(full)) if full[k : k + len(bare)] == bare]
        return full[: starts[0]] if starts else ()

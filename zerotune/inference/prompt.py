"""Encodes texts and conversations with a checkpoint's tokenizer and chat template."""

from __future__ import annotations

import contextlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from zerotune.common.errors import UserError
from zerotune.data.chat_template_file import FOLDER, OPENED_THOUGHTS
from zerotune.data.completeness import REASONING, TemplateProblem, left_out, problems
from zerotune.data.conversations import Message, answered_turns, said_in, with_system
from zerotune.data.fields import RowError
from zerotune.data.fit_messages import fitted, without_thought
from zerotune.data.number_tokens import NumberTokens, is_number, value_of
from zerotune.data.numbers_in_text import NUM, NumberedText, find_numbers
from zerotune.data.template_date import dated, reads_clock
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
    """Token ids, of which those from `first` on are scored, and the UTF-8 bytes of the scored part.

    text: written by the ids from `start` on, among which are all scored ones.
    """

    ids: Ids
    first: int
    bytes: int
    text: str = ""
    start: int = 0


class Numbers(NamedTuple):
    """Numbers among the scored ids of a passage. values: index of the token where each begins -> its value. inside:
    indices of further tokens of its digits.
    """

    values: Mapping[int, float]
    inside: Sequence[int]


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
        tool_template: The template of conversations with tools, if the checkpoint has a separate one.
        system_prompt: The system message of conversations that have none.
        reads_numbers: Whether the checkpoint reads numbers as values.
        images: Returns the image processor; raises UserError for a checkpoint that takes no images.

    reads_numbers: see above.
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
        tool_template: str | None = None,
        system_prompt: str = "",
        reads_numbers: bool = False,
    ) -> None:
        self.tokenizer, self.name, self._images = tokenizer, name, images
        self.reads_numbers = reads_numbers
        self._number_tokens = NumberTokens(tokenizer.backend_tokenizer) if reads_numbers else None
        self.labels = tuple(labels[number] for number in sorted(labels))
        self.raw, self.template = raw, None if raw else template
        self.system_prompt = system_prompt
        self._tool_template = tool_template or self.template
        self._day = day or date.today()
        self.max_new_tokens = max_new_tokens
        self.context_tokens = context_tokens
        sizes = [size for size in (window_tokens, context_tokens) if size]
        self.window_tokens: int | None = min(sizes) if sizes else None
        self.used_chat_template = False
        self.last_messages: tuple[Message, ...] = ()
        self._problems: set[TemplateProblem] = set()
        self._bos = self._bos_ids()
        self._chat_bos: Ids = self._bos if raw else ()  # a template writes its own start token
        self.stop_ids = self._stop_ids(end_ids)

    def chat_prompt(self, messages: Sequence[Message], tools: Tools = None) -> Ids:
        """Encode a conversation, up to where the assistant's response begins. tools: JSON schemas of functions."""
        messages = with_system(messages, self.system_prompt)
        self.last_messages = tuple(messages)
        text = self._conversation_text(messages, tools, add_generation_prompt=True)
        return self._chat_bos + self._encode(text, self._answer_starts(text, messages, tools))

    def image_prompt(self, images: Sequence[str], text: str) -> Ids:
        """Encode a user's turn of images (files) and a text, up to where the assistant's response begins."""
        if self._number_tokens:
            raise UserError(f"{self.name}: reads numbers as values, which prompts with images do not support")
        if self.raw or self._images is None:
            raise UserError(f"{self.name}: images need a chat template, not --template raw")
        return self._images().ids(self._image_prompt_text(len(images), text), images)

    def response_start(self, text: str) -> Ids:
        """Encode the start of a response to `image_prompt`, with a leading space unless the prompt ends with one."""
        return self._encode(text if self._image_prompt_text(0, "?")[-1:].isspace() else f" {text}")

    def assistant_turns(self, messages: Sequence[Message], tools: Tools = None) -> list[Passage]:
        """Encode each assistant turn that answers something and is not marked, after everything before it.

        Its end-of-turn token is scored too.
        """
        return [self._turn(with_system(messages[: k + 1], self.system_prompt), tools) for k in answered_turns(messages)]

    def take_template_problems(self) -> set[str]:
        """What the chat template left out of the conversations since the last call, or wrote wrongly."""
        kinds = {problem.kind for problem in self._problems}
        self._problems.clear()
        return kinds

    def classifier_input(self, sentences: Sequence[str]) -> tuple[Ids, int]:
        """Encode one sentence or two for a classification head, with special tokens.

        Returns token ids and the start of the second sentence (0 if the tokenizer has no token_type_ids).
        """
        encoded = self.tokenizer(*sentences, truncation=False, verbose=False)
        types = list(encoded.get("token_type_ids") or ())
        return tuple(encoded["input_ids"]), types.index(1) if 1 in types else 0

    def reward_input(self, text: str | Sequence[Message], tools: Tools = None) -> Ids:
        """Encode a text with its end token, or a conversation, for a reward model.

        Trailing padding tokens are removed, since transformers' heads read the last token that is not padding.
        """
        if isinstance(text, str):
            ids = list(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
            end = self.tokenizer.eos_token_id
            ids += [] if end is None or ids[-1:] == [end] else [end]
        else:
            ids = list(self._encode(self._conversation_text(text, tools, add_generation_prompt=False)))
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
            return Passage(ids, max(len(self._bos), 1), len(text.encode()), text, len(self._bos))
        read = self._read(text)
        encoded = self.tokenizer(read.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = self._with_values(encoded["input_ids"], read)
        first = read.text[: encoded["offset_mapping"][1][0]] if len(ids) > 1 else read.text
        if read.values:
            first = NumberedText(first, spellings=read.spellings[: first.count(NUM)]).original
        return Passage(ids, 1, len(text[len(first) :].encode()), text)

    def numbers_of(self, passage: Passage) -> Numbers:
        """The numbers that are scored, as values or in digits. Raises UserError."""
        if self.reads_numbers:
            places = [at for at in range(passage.first, len(passage.ids)) if is_number(passage.ids[at])]
            return Numbers({at: value_of(passage.ids[at]) for at in places}, ())
        if not self.tokenizer.is_fast:
            raise UserError(f"{self.name}: needs a fast tokenizer (tokenizer.json), which says where its tokens stand")
        try:
            found = find_numbers(passage.text, NumberTokens(self.tokenizer.backend_tokenizer).fixed)
        except RowError as error:
            raise UserError(f"{self.name}: {error}") from error
        encoded = self.tokenizer(passage.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts, ends = zip(*encoded["offset_mapping"], strict=True) if found else ((), ())
        values, inside = dict[int, float](), list[int]()
        for number in found:  # a token may hold the space before a number, or a part of a character
            begin = bisect_right(ends, number.start)
            values[passage.start + begin] = number.value
            inside += range(passage.start + begin + 1, passage.start + bisect_left(starts, number.end))
        kept = {at: value for at, value in values.items() if at >= passage.first}
        return Numbers(kept, [at for at in inside if at >= passage.first])

    def choices(self, context: str, continuations: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """Encode a plain context (not blank) and each of its possible continuations.

        Equal to lm-evaluation-harness, so that log-probabilities agree: trailing spaces of the context belong to the
        continuation, whose tokens are those of context + continuation after the number of tokens of the context.
        """
        stripped = context.rstrip()
        prefix = self._bos + self._encode(stripped)
        wholes = [self._bos + self._encode(context + continuation, [len(context)]) for continuation in continuations]
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

    def _turn(self, messages: Sequence[Message], tools: Tools) -> Passage:
        self.last_messages = tuple(messages[:-1])
        before, response = self._prompt_and_response(messages, tools)
        prompt = self._chat_bos + self._encode(before, self._answer_starts(before, messages[:-1], tools))
        size = len(said_in(messages[-1]).encode())
        return Passage(prompt + self._encode(response), len(prompt), size, response, len(prompt))

    def _conversation_text(self, messages: Sequence[Message], tools: Tools, add_generation_prompt: bool) -> str:
        """Render a conversation with the template, as in training."""
        self.used_chat_template = True
        source = self._source(tools)
        messages = fitted(source, messages) if messages else ()
        text = self._render(messages, add_generation_prompt, source, tools)
        if messages:
            self._problems.update(problems(source, text, messages, tools))
        return text

    def _answer_starts(self, text: str, messages: Sequence[Message], tools: Tools) -> list[int]:
        """Where the earlier answers of a rendered conversation begin: there training lets no number cross."""
        if self._number_tokens is None:
            return []
        source = self._source(tools)
        befores = [self._render(fitted(source, messages[:k]), True, source, tools) for k in answered_turns(messages)]
        return [len(before) for before in befores if text.startswith(before)]

    def _image_prompt_text(self, images: int, text: str) -> str:
        self.used_chat_template = True
        parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
        return self._render([{"role": "user", "content": parts}], True, self._source(None), None)

    def _prompt_and_response(self, messages: Sequence[Message], tools: Tools) -> tuple[str, str]:
        """The prompt, and the reference response with its end of turn, without trailing white space.

        If the prompt opens reasoning and the response has none, the opening mark is removed, as in training. Reasoning
        that the template drops from responses (DeepSeek-R1) is put back if the prompt opens it.
        """
        prompt = self._conversation_text(messages[:-1], tools, add_generation_prompt=True)
        whole = self._conversation_text(messages, tools, add_generation_prompt=False)
        unopened = OPENED_THOUGHTS.sub("", prompt)
        thought = messages[-1].get("reasoning_content") or without_thought(messages[-1]["content"])[0]
        is_lost = thought.strip() not in whole
        if is_lost and (prompt == unopened or "</think>" in prompt[len(unopened) :]):
            raise UserError(f"{self.name}: its chat template leaves out the reasoning of message {len(messages) - 1}")
        self._problems.discard(left_out(REASONING, len(messages) - 1))  # it is put back
        for before in (prompt, unopened):
            if whole.startswith(before):
                answer = whole[len(before) :].rstrip()
                return (prompt, f"{thought.strip()}\n</think>\n\n{answer.lstrip()}") if is_lost else (before, answer)
        raise UserError(
            f"{self.name}: its chat template renders an answered conversation differently from its prompt, so answers "
            "cannot be scored; pass another one: --template FILE.jinja, or --template raw"
        )

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, source: str, tools: Tools) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise UserError(f"{self.name}: its chat template rejects this conversation: {error}") from error
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
            raise UserError(f"{self.name}: {error}, and pass the file with --template") from error

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for what the tokenizer does not know; None if it has none."""
        fast = self.tokenizer.backend_tokenizer.model if self.tokenizer.is_fast else self.tokenizer
        name = getattr(fast, "unk_token", self.tokenizer.unk_token) or "<unk>"  # the last: in a corpus with <unk>
        found = self.tokenizer.get_vocab().get(name)
        return None if found in self.stop_ids else found  # GPT-2 and others name their end token

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
        for roles in (("user", "assistant"), ("system", "user", "assistant")):  # some require a system message
            with contextlib.suppress(UserError, TypeError):
                source = self._source(None)
                messages = fitted(source, [{"role": role, "content": mark} for role in roles])
                whole = self._render(messages, False, source, None)
                if mark in whole:
                    return whole.rpartition(mark)[2]
        return ""

    @cached_property
    def _plain_tokenizer(self) -> Tokenizer:
        return untruncated(self.tokenizer.backend_tokenizer)

    @cached_property
    def _glues_words(self) -> bool:
        return glues_words(self._plain_tokenizer)

    def _encode(self, text: str, borders: Sequence[int] = ()) -> Ids:
        """borders: places that no number crosses."""
        read = self._read(text, borders)
        return self._with_values(self.tokenizer(read.text, add_special_tokens=False, verbose=False)["input_ids"], read)

    def _read(self, text: str, borders: Sequence[int] = ()) -> NumberedText:
        """The text, with its numbers apart if the checkpoint reads them as values."""
        if self._number_tokens is None:
            return NumberedText(text)
        try:
            return self._number_tokens(text, [(0, border) for border in borders])[0]
        except RowError as error:
            raise UserError(f"{self.name}: {error}") from error

    def _with_values(self, ids: Sequence[int], read: NumberedText) -> Ids:
        return self._number_tokens.with_values(ids, read.values) if self._number_tokens else tuple(ids)

    def _bos_ids(self) -> Ids:
        """The start tokens that the tokenizer puts before every text."""
        bare, full = self._encode("a"), tuple(self.tokenizer("a")["input_ids"])
        starts = [k for k in range(len(full)) if full[k : k + len(bare)] == bare]
        return full[: starts[0]] if starts else ()

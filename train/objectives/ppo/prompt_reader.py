"""Reads the prompts of a run: of its rows, or of an evaluation task over them (`ppo.task`)."""

from __future__ import annotations

from collections.abc import Sequence

from train.config import Config, SourceConfig
from train.data.sources import Source, find
from train.data.token_dataset import Encoded
from train.objectives.base_model import BaseModel
from train.objectives.ppo.conversations import MessagesByRow, read_conversations
from train.objectives.ppo.prompts import NO_MESSAGES, Prompt, fitting_prompts, row_prompts
from train.objectives.ppo.task import TaskRows
from train.objectives.row_data import RowData
from zerotune.data.chat_template_file import default_template, tool_template
from zerotune.data.formats import known_as
from zerotune.inference.checkpoint import end_ids
from zerotune.inference.prompt import Prompter
from zerotune.models.folder import resolve


class PromptReader:
    """task: the evaluation task, if there is one. stop_ids: the tokens that end a response: the model's end tokens and
    the chat template's. context: the most tokens of a prompt with its response.
    """

    def __init__(self, config: Config, base: BaseModel, data: RowData) -> None:
        self.config, self.tokenizer, self.data = config, base.tokenizer, data
        model, limits = config.model, base.empty.config.get_text_config()
        context = int(getattr(limits, "max_position_embeddings", None) or 2**31)
        self.context = context - config.tuning.extra_positions
        folder = resolve(model.path, model.revision, code=model.trust_remote_code)
        self.stop_ids = tuple(sorted({*end_ids(folder, base.empty.config), *data.corpus.stop_ids}))
        self.task = self._task() if config.settings.task else None

    def prompts(self, with_messages: bool) -> tuple[list[Prompt], list[Prompt]]:
        """(prompts to train on, held-out prompts). with_messages: whether a reward model reads messages.

        Adds messages about skipped rows to the lines of `data`. Raises UserError if no prompt is left.
        """
        data, held_out = self.config.data, self.data.corpus.validation
        messages = self._messages("train") if with_messages else NO_MESSAGES
        train = self._read(self.data.train, data.train, messages, data.train[0].path)
        if not held_out:
            return train, []
        if data.validation and with_messages:
            messages = self._messages("validation")
        return train, self._read(held_out, data.validation or data.train, messages, "the validation data")

    def _read(self, rows: Encoded, sources: Sequence[SourceConfig], messages: MessagesByRow, name: str) -> list[Prompt]:
        own, row_tokens = self.config.settings, self.config.data.max_length_tokens
        if self.task:
            prompts = self.task.prompts(rows)
        else:
            corpora = [index for index, source in enumerate(sources) if known_as(source.format) == "text"]
            prompts = row_prompts(rows, corpora, own.prompt_tokens, row_tokens, messages)
        found, lines = fitting_prompts(prompts, name, own.response_tokens, self.context)
        self.data.lines.extend(lines)
        return found

    def _messages(self, name: str) -> MessagesByRow:
        return NO_MESSAGES if self.task else read_conversations(self._sources(name), self.config.data.system_prompt)

    def _sources(self, name: str) -> list[Source]:
        configs = getattr(self.config.data, name)
        return [find(source, f"data.{name}[{index}]") for index, source in enumerate(configs)]

    def _task(self) -> TaskRows:
        template = self.tokenizer.chat_template
        prompter = Prompter(
            self.tokenizer,
            default_template(template),
            False,
            self.context,
            self.config.settings.response_tokens,
            0,
            self.stop_ids,
            self.config.model.path,
            day=self.data.day,
            tool_template=tool_template(template),
            system_prompt=self.config.data.system_prompt or "",
        )
        sources = [*self._sources("train"), *self._sources("validation")]
        return TaskRows(self.config.settings.task, sources, prompter, skip=self.config.data.on_bad_row == "skip")

"""Settings from the recipe's data section and the tokenizer, before any row is read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from train.config import DataConfig, SourceConfig
from train.data.label_encoder import TO_PREDICT, LabelSpec
from train.data.rank_sync import share
from train.data.templates import ChatTemplate, resolve, starts_with_bos
from train.data.tokenize import Settings
from train.protocols import Ranks
from zerotune.common.errors import UserError
from zerotune.data.formats import known_as
from zerotune.data.numbers_in_text import NUM
from zerotune.data.word_windows import untruncated
from zerotune.models.run_facts import read_run_json, template_date_of

SILENT = ("text", "labelled", "tagged")  # formats without a chat template


@dataclass(frozen=True)
class Spec:
    """One source. key: its recipe key. number: its index in the list. settings: how rows become tokens."""

    config: SourceConfig
    key: str
    number: int
    settings: Settings


@dataclass(frozen=True)
class Setup:
    """The sources with their settings, and the chat template (None if no source needs one).

    day: the date for a template that reads the clock.
    """

    train: list[Spec]
    validation: list[Spec]
    template: ChatTemplate | None
    day: date

    @property
    def number_token(self) -> int | None:
        """See `Settings`."""
        return self.train[0].settings.number_token if self.train else None

    @property
    def template_hash(self) -> str:
        """sha256 of the chat template; empty without one."""
        return self.template.hash if self.template else ""

    @property
    def lines(self) -> list[str]:
        """Lines for the user about the chat template."""
        template, lines = self.template, []
        if template and template.trains_apart:
            lines.append(
                f"chat template: rows are rendered with {template.name}, the training version of the tokenizer's own;"
                " checkpoints keep the tokenizer's own, which renders prompts at inference"
            )
        if template and template.reads_clock:
            lines.append(f"chat template: it contains the current date; this run always uses {self.day}, its first day")
        return lines

    @property
    def reads_clock(self) -> bool:
        """Whether the tokens depend on the run's day."""
        return self.template is not None and self.template.reads_clock


def set_up(config: DataConfig, tokenizer: Any, label_spec: LabelSpec = TO_PREDICT, day: date | None = None) -> Setup:
    """Settings for every source. The tokenizer gets the chat template in use, and a pad token if it has none.

    Raises:
        UserError: An unusable tokenizer or template.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "model.tokenizer: this tokenizer cannot say which characters a token covers; use one with a tokenizer.json"
            " (AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it for most models)"
        )
    if tokenizer.pad_token_id is None:  # padding is never learned or attended to, so any existing token works
        has_unknown = tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token
        tokenizer.pad_token = tokenizer.unk_token if has_unknown else tokenizer.eos_token
    sources = [*config.train, *config.validation]
    uses_template = any(known_as(source.format) not in SILENT for source in sources)
    day = day or date.today()
    template = resolve(config.chat_template, tokenizer, day) if uses_template else None
    text = str(untruncated(tokenizer.backend_tokenizer).to_str())
    number_token = tokenizer.convert_tokens_to_ids(NUM) if label_spec.numbers else None
    marks = frozenset(tokenizer.get_added_vocab().values()) | frozenset(tokenizer.all_special_ids)
    bos = tokenizer.bos_token_id if starts_with_bos(tokenizer) else None

    def specs(name: str, listed: list[SourceConfig]) -> list[Spec]:
        return [
            Spec(
                source,
                f"data.{name}[{number}]",
                number,
                Settings(
                    tokenizer=text,
                    marks=marks - {number_token},
                    bos=bos,
                    eos=tokenizer.eos_token_id,
                    template=template,
                    format=source.format,
                    columns=source.columns,
                    system_prompt=config.system_prompt,
                    max_length=config.max_length_tokens,
                    label_spec=label_spec,
                    pad=tokenizer.pad_token_id,
                    numbers_pairs="token_type_ids" in tokenizer.model_input_names,
                    number_token=number_token,
                ),
            )
            for number, source in enumerate(listed)
        ]

    return Setup(specs("train", config.train), specs("validation", config.validation), template, day)


def run_day(folder: str, ranks: Ranks) -> date:
    """The day for chat templates that read the clock: of the run's first start, by its run.json, else today. All ranks
    get that of rank 0.
    """
    known = template_date_of(read_run_json(Path(folder))) if ranks.index == 0 else None
    return date.fromisoformat(share(ranks, (known or date.today()).isoformat() if ranks.index == 0 else ""))

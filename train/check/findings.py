"""What a check found: plain values, which become JSON as they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from train.data.proof import Proof

SHOWN = 3  # places of each finding

# What can be found in rows -> what it means.
KINDS = {
    "bad": "cannot be used",
    "empty": "a field is empty (among the bad rows)",
    "fully_masked": "nothing is learned (among the bad rows)",
    "truncated": "truncated at data.max_length_tokens",
    "no_end": "do not learn to stop: the last learned token does not end a turn",
    "other_prompt": "the last answer follows another prompt than at inference",
    "duplicate": "equal to an earlier row",
    "near_duplicate": "nearly equal to an earlier row",
    "overlap": "also in the validation data",
    "prompt_overlap": "the prompt is also in the validation data, with another answer",
    "unknown": "hold characters that the tokenizer does not know",
    "control": "hold control characters",
    "mojibake": "text decoded with a wrong encoding",
    "long_word": "a word of 100 or more characters",
    "template": "of the compared rows: not as at inference, or the end not learned",
}


@dataclass(frozen=True)
class Finding:
    """Rows of one source with one of KINDS. of: rows of the source. examples: `file:line`, some with details."""

    kind: str
    source: str
    count: int
    of: int
    examples: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.count / max(self.of, 1)


@dataclass(frozen=True)
class SourceFacts:
    """One source. rows: used, without bad ones. pieces: rows of tokens, of which a long text has several.

    tokens_per_byte: of the rows' own texts; the tokens are with the chat template's.
    left_out: parts of rows that are not used, and in how many rows. ends: tokens that end answers and texts.
    """

    name: str
    path: str
    format: str
    is_training: bool
    rows: int
    pieces: int
    tokens: int
    learned: int
    longest: int
    tokens_per_byte: float
    left_out: dict[str, int]
    ends: list[str]


@dataclass(frozen=True)
class LengthBin:
    """Rows of `low` to `high` tokens."""

    low: int
    high: int
    train: int
    validation: int


@dataclass(frozen=True)
class Packing:
    """Micro-batches of `length` tokens. fill: share of them that rows fill, packed. padding: share that is padding,
    padded. longer: share of the rows that have more tokens.
    """

    length: int
    fill: float
    padding: float
    longer: float


@dataclass(frozen=True)
class Language:
    """name: an ISO 639 code, `short` or `unclear`. rows: of the sampled ones. tokens_per_byte: of these."""

    name: str
    rows: int
    share: float
    tokens_per_byte: float


@dataclass(frozen=True)
class Classes:
    """labels: name -> how often, the most frequent first."""

    source: str
    labels: dict[str, int]


@dataclass(frozen=True)
class Values:
    """Numbers of a source: labels of a regression, or numbers in texts."""

    source: str
    count: int
    low: float
    median: float
    high: float
    zeros: int


@dataclass(frozen=True)
class Pairs:
    """Preference pairs. longer: share whose chosen side has more tokens than the rejected one."""

    source: str
    rows: int
    longer: float


@dataclass(frozen=True)
class RenderedRow:
    """pieces: (learned, read or omitted; text) of each stretch of tokens."""

    source: str
    place: str
    pieces: list[list[str]]


@dataclass(frozen=True)
class Report:
    """Everything a check found. language_rows: rows whose language was guessed. exceeded: a line for each limit of the
    recipe that is exceeded. notes: further lines.
    """

    objective: str
    model: str
    max_length: int
    sources: list[SourceFacts]
    findings: list[Finding]
    lengths: list[LengthBin]
    packing: list[Packing]
    languages: list[Language]
    language_rows: int
    classes: list[Classes]
    values: list[Values]
    pairs: list[Pairs]
    unknown_characters: dict[str, int]
    proofs: list[Proof]
    rendered: list[RenderedRow]
    exceeded: list[str]
    notes: list[str]
    seconds: float = 0.0

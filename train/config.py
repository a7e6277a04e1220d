"""The recipe: one typed, frozen configuration, read by `train.recipe` from YAML files and dotted command-line options.

A number carries its unit in its name. A default is what we would choose for a first run on unknown data.
This file imports nothing heavy: `--help` must answer in under a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, with_config

from train.config_ppo import PpoConfig
from train.registry import FAMILIES, OBJECTIVES, TUNINGS, FamilySpec, ObjectiveSpec, TuningSpec
from zerotune.common.schema import STRICT, Share, ShareBelowOne
from zerotune.data.formats import FORMATS

if TYPE_CHECKING:
    ObjectiveName = str
    TuningName = str
    FamilyName = str
    FormatName = str
else:
    ObjectiveName, TuningName = Literal[tuple(OBJECTIVES)], Literal[tuple(TUNINGS)]
    FamilyName = Literal[tuple(FAMILIES)]
    FormatName = Literal[tuple(FORMATS)]

Wanted = str | bool | int | float | list[str | bool | int | float | None] | None  # a value, or several, of a column


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives and how it starts and stops.

    Args:
        folder: Everything the run writes goes in here; its last part is the run's name.
        seed: Fixes the order of the data, dropout and new weights.
        resume: auto continues from the newest checkpoint that verifies, if there is one; must fails without one;
            never refuses a folder that holds checkpoints.
        extend: Continue to another end than the run had (duration.*), finished or not: from here on with the data and
            the learning rate that a run of that length has at this step. Free to change with it: optim.schedule,
            optim.learning_rate, optim.final_fraction, optim.warmup_*, validation.patience.
        stop_after_minutes: Save and stop cleanly after this many minutes (a deadline of the machine), or never.
        precision: Arithmetic of forward and backward. auto is bf16 where the hardware is fast at it, else fp32.
        hang_seconds: End the run (exit code 70), naming the rank to blame, when no rank gets on for this long; ten
            times as long before the first step and while saving or merging; null never does.
        max_skipped_steps: Updates in a row left out for a non-finite gradient, or by optim.spike_factor, before the run
            is given up (exit code 65).
    """

    folder: str = "runs/default"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    resume: Literal["auto", "must", "never"] = "auto"
    extend: bool = False
    stop_after_minutes: PositiveFloat | None = None
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    hang_seconds: PositiveFloat | None = 1800.0
    max_skipped_steps: NonNegativeInt = 10


@dataclass(frozen=True)
class ModelConfig:
    """The model that training starts from: an existing one, or a new one of a family.

    Args:
        path: A folder in Hugging Face layout (safetensors only) or a hub name.
        family: In place of a path, a new model from scratch: rnn, lstm or transformer.
        depth: Size of a new model: its width is 64 times this; a transformer also has this many layers.
        width: Width of its hidden states, where it is not to follow from depth.
        layers: Number of its layers; by default the depth of a transformer, at most 2 of an RNN or LSTM.
        heads: Attention heads of a transformer; by default one for each 64 of the width.
        feed_forward: Inner width of a transformer's feed-forward layers; by default 8/3 of the width.
        bptt_tokens: How many tokens the gradients of an RNN or LSTM go back; by default to the start of the row.
        dropout: Of an RNN or LSTM on embeddings and the output of each layer; of a transformer on attention weights.
        tie_embeddings: Use one matrix for input and output embeddings of a new model.
        revision: The hub revision (a commit is safest).
        init: pretrained loads the weights; random takes only the folder's config.json and starts from scratch, as a
            family always does.
        tokenizer: Another folder or hub name for the tokenizer; by default the model's own.
        weights: Storage of the weights. auto keeps weights that are trained in float32 and frozen ones in the
            precision of the run.
        attention: auto takes FlashAttention 3 or 2 where installed, else PyTorch's scaled-dot-product attention.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        trust_remote_code: Run Python code that comes with the model. Only accepted on the command line.
    """

    path: str = ""
    family: FamilyName | None = None
    depth: PositiveInt = 4
    width: PositiveInt | None = None
    layers: PositiveInt | None = None
    heads: PositiveInt | None = None
    feed_forward: PositiveInt | None = None
    bptt_tokens: PositiveInt | None = None
    dropout: ShareBelowOne = 0.0
    tie_embeddings: bool = True
    revision: str | None = None
    init: Literal["pretrained", "random"] = "pretrained"
    tokenizer: str | None = None
    weights: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "flash_attention_3", "flash_attention_2", "sdpa"] = "auto"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    @property
    def spec(self) -> FamilySpec | None:
        """The facts of its family; None of an existing model."""
        return FAMILIES[self.family] if self.family else None

    @property
    def name(self) -> str:
        """What a user calls it."""
        return self.path or str(self.family)

    def within(self, run: str | Path) -> ModelConfig:
        """The model to load: of a family, the new one in the folder of the run (`train.new_model`)."""
        if self.family is None:
            return self
        return replace(self, path=str(Path(run) / "base"), init="random")


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer of a new model (model.family), learned from the training rows.

    Args:
        kind: word takes what stands between white space as words, for text that is tokenised already, as the Penn
            Treebank is; bpe (byte-level byte pair encoding) takes any text of any language.
        vocabulary_size: At most so many tokens; rarer words become <unk>, bpe has none.
        lowercase: Make all text lower case.
        split_punctuation: With kind word, take punctuation as words of its own, for text that is not tokenised.
    """

    kind: Literal["word", "bpe"] = "bpe"
    vocabulary_size: Annotated[int, Field(ge=3)] = 10_000
    lowercase: bool = False
    split_punctuation: bool = False


@dataclass(frozen=True)
class SourceConfig:
    """One source of rows.

    Args:
        path: A JSON, JSONL, CSV, TSV, Parquet or text file (text also as .gz, .bz2, .xz, .zst), a folder or glob of
            them, a folder of save_to_disk, or a hub data set.
        format: How a row is read: text (corpus), qa (question, answer), pr (prompt, response),
            io (instruction, input, output), chat (messages or ShareGPT conversations), labelled (sentence or text, or
            sentence1 and sentence2, and label), tagged (tokens, tags), preference (prompt, chosen, rejected).
        columns: Our field name -> the column in this source, where they differ.
        weight: Passes over this source per epoch: 2 shows each row twice, 0.5 another half each epoch.
        fraction: Share of the rows that is used at all (drawn with the seed).
        split: The split of a hub data set, or of a folder of save_to_disk that holds several.
        revision: The revision of a hub data set.
        delimiter: What stands between the columns of CSV files, tab for a tab; by default a comma, in .tsv a tab.
        encoding: Of text files, for example gb18030, big5, utf-16, cp1252; by default UTF-8, or UTF-16 with its mark.
        filter: A column -> its value, or list of values, in the rows to use, for example {split: train}.
    """

    path: str
    format: FormatName
    columns: dict[str, str] = field(default_factory=dict)
    weight: PositiveFloat = 1.0
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    split: str = "train"
    revision: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    filter: dict[str, Wanted] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """Rows, and how they become tokens.

    Args:
        train: The sources to learn from.
        validation: Sources held out for validation.
        validation_fraction: Where no validation source is given: the share of training rows held out with the seed.
        max_length_tokens: Longer instruction rows are cut at this length, longer corpus texts continue in a new row.
        on_bad_row: error lists the first ten bad rows and stops before any training; skip counts and leaves them out.
        on_overlap: What to do with training rows that stand in the validation data too.
        chat_template: tokenizer (its own; a base model without one gets plain), plain, chatml, raw, or a .jinja file.
        system_prompt: Put before conversations that have no system message of their own.
        streaming: Tokenise window by window while training: for corpora that exceed memory, or to start at once.
            Needs duration.max_steps or duration.max_tokens, and checkpoint.every_steps.
        streaming_window_rows: Rows of one window; the order is shuffled inside it.
        cache_folder: Where tokenised data is kept, by content; by default $ZEROTUNE_CACHE or ~/.cache/zerotune.
        workers: Processes that tokenise; 0 takes one per core.
    """

    train: list[SourceConfig] = field(default_factory=list)
    validation: list[SourceConfig] = field(default_factory=list)
    validation_fraction: ShareBelowOne = 0.0
    max_length_tokens: Annotated[int, Field(ge=2)] = 1024
    on_bad_row: Literal["error", "skip"] = "error"
    on_overlap: Literal["warn", "error", "drop"] = "warn"
    chat_template: str = "tokenizer"
    system_prompt: str | None = None
    streaming: bool = False
    streaming_window_rows: PositiveInt = 20_000
    cache_folder: str | None = None
    workers: NonNegativeInt = 0


@dataclass(frozen=True)
class HeadConfig:
    """The classes that are learned, by a head or as words.

    Args:
        labels: Their names in the order of their numbers; by default all that the training data have, sorted, O first.
        class_weights: balanced makes all classes count the same in the loss, however rare they are.
        sub_words: Whether a word's class is learned at its first token, or at all of them. Read is always the first.
        dropout: Before the head; by default what the model's own config says, often 0.1.
    """

    labels: list[str] = field(default_factory=list)
    class_weights: Literal["none", "balanced"] = "none"
    sub_words: Literal["first", "all"] = "first"
    dropout: ShareBelowOne | None = None


@dataclass(frozen=True)
class BatchConfig:
    """How rows are put together; what is learned does not depend on ranks.

    Args:
        layout: packed puts whole rows one after another without padding, attention staying inside each row;
            padded groups rows of similar length; auto packs wherever the tuning allows it.
        tokens_per_step: Tokens of one optimizer step over all ranks together.
        tokens_per_micro_batch: Tokens one rank computes at a time; bounds the memory, changes no result.
        shuffle: Draw a new order every epoch; false keeps the order of the data, at the price of more padding in
            padded batches.
    """

    layout: Literal["auto", "packed", "padded"] = "auto"
    tokens_per_step: PositiveInt = 16_384
    tokens_per_micro_batch: PositiveInt = 4_096
    shuffle: bool = True


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv:2106.09685).

    Args:
        rank: Rank of the update.
        alpha: The update is scaled by alpha / rank (alpha / sqrt(rank) with rslora).
        dropout: On the adapter's input.
        targets: all-linear, or module names such as [q_proj, v_proj].
        bias: Which biases are trained too.
        rslora: Rank-stabilised scaling (arXiv:2312.03732).
        dora: Weight-decomposed adapters (arXiv:2402.09353).
        modules_to_save: Modules trained in full beside the adapter, for example [embed_tokens, lm_head].
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: ShareBelowOne = 0.0
    targets: str | list[str] = "all-linear"
    bias: Literal["none", "all", "lora_only"] = "none"
    rslora: bool = False
    dora: bool = False
    modules_to_save: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PromptConfig:
    """Prompt tuning (arXiv:2104.08691): learned vectors before the text.

    Args:
        virtual_tokens: How many.
        init_text: Start from the embeddings of this text; without it, from random words of the vocabulary.
    """

    virtual_tokens: PositiveInt = 8
    init_text: str | None = None


@dataclass(frozen=True)
class TuningConfig:
    """Which weights move.

    Args:
        kind: full, lora or prompt.
        quantization: Storage of the frozen base weights: nf4 (QLoRA, arXiv:2305.14314) or int8; needs lora.
        double_quantization: Quantise the scales of nf4 too.
    """

    kind: TuningName = "full"
    quantization: Literal["none", "nf4", "int8"] = "none"
    double_quantization: bool = True
    lora: LoraConfig = field(default_factory=LoraConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)

    @property
    def spec(self) -> TuningSpec:
        """The facts of this kind of tuning."""
        return TUNINGS[self.kind]

    @property
    def extra_positions(self) -> int:
        """Positions that it puts in front of every row."""
        return self.spec.extra_positions(self)

    @property
    def section(self) -> tuple[str, Any]:
        """(key, value) of the section with the settings of this kind; the value is None where it has none."""
        return f"tuning.{self.kind}", getattr(self, self.kind, None)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule.

    Args:
        name: adamw, adamw_8bit (bitsandbytes; not with FSDP2) or adafactor (one process or DDP; it has its own rule for
            beta1, beta2 and epsilon).
        learning_rate: The highest learning rate.
        weight_decay: On matrices; biases, norms and embeddings of a prompt are left alone.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        epsilon: Added to the root of the second moment.
        clip_norm: Largest global gradient norm; 0 never clips.
        spike_factor: Leave out updates whose loss is more than this many times the median of the last 64; null leaves
            out none.
        schedule: Course of the learning rate after the warmup.
        warmup_steps: Steps of linear rise from 0; takes the place of warmup_fraction.
        warmup_fraction: The same as a share of all steps.
        final_fraction: The learning rate ends at this share of its highest value.
    """

    name: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    learning_rate: NonNegativeFloat = 2e-5
    weight_decay: NonNegativeFloat = 0.0
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.999
    epsilon: PositiveFloat = 1e-8
    clip_norm: NonNegativeFloat = 1.0
    spike_factor: Annotated[float, Field(gt=1)] | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NonNegativeInt | None = None
    warmup_fraction: Share = 0.03
    final_fraction: Share = 0.0


@dataclass(frozen=True)
class DurationConfig:
    """How long; what comes first ends the run.

    Args:
        max_epochs: Passes over the training data; whole ones of a stream.
        max_steps: Optimizer steps.
        max_tokens: Tokens seen.
    """

    max_epochs: PositiveFloat | None = 1.0
    max_steps: PositiveInt | None = None
    max_tokens: PositiveInt | None = None


@dataclass(frozen=True)
class ValidationConfig:
    """Looking at held-out data while training.

    Args:
        every_steps: Validate after this many steps; without it, after each epoch.
        at_start: Validate before the first step too: the `before` of the report.
        metric: Chooses the best checkpoint: loss, or another name that the objective reports. auto is the loss of
            causal_lm, else f1, accuracy or pearson.
        patience: Stop after this many validations without a better one; 0 never does.
        max_rows: Use at most this many held-out rows; 0 means all.
        samples: Held-out prompts that are continued and shown in TensorBoard and the report.
        exact_match_rows: Held-out rows answered by generation and scored by exact match; 0 leaves this out.
        max_new_tokens: Longest generated answer.
    """

    every_steps: PositiveInt | None = None
    at_start: bool = True
    metric: str = "auto"
    patience: NonNegativeInt = 0
    max_rows: NonNegativeInt = 0
    samples: NonNegativeInt = 4
    exact_match_rows: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 64


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving, so that any interruption costs little.

    Args:
        every_steps: Save after this many steps; without it, after each epoch. The end is always saved.
        keep_last: How many of the newest are kept; the best and the newest are never removed.
        keep_best: Keep the best by validation.metric as well.
        verify: What is checked before a checkpoint is loaded: sha256 of every file, or sizes alone.
        asynchronous: Copy the state to the host's memory and write it while training goes on. The same checkpoints, bit
            for bit; where that memory has no room for the copy, training waits while they are written.
    """

    every_steps: PositiveInt | None = None
    keep_last: PositiveInt = 2
    keep_best: bool = True
    verify: Literal["sha256", "size"] = "sha256"
    asynchronous: bool = True


@dataclass(frozen=True)
class WatchConfig:
    """What is written while training.

    Args:
        every_steps: Write metrics after this many steps.
        tensorboard: Write TensorBoard files beside metrics.jsonl.
        peak_tflops: The device's matrix-product peak, for the model FLOPs utilisation; by default known for common
            GPUs and measured on a CPU.
    """

    every_steps: PositiveInt = 1
    tensorboard: bool = True
    peak_tflops: PositiveFloat | None = None


@dataclass(frozen=True)
class MergeConfig:
    """The hand-over: one Hugging Face folder that needs nothing else.

    Args:
        at_end: Merge into RUN/merged when training has finished.
        checkpoint: Which one is merged.
        weights: Storage of the merged weights; auto is that of the base model.
        quantized_base: Merge a QLoRA adapter into the original 16-bit weights, or into what training saw (dequantized).
    """

    at_end: bool = True
    checkpoint: Literal["best", "last"] = "best"
    weights: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantized_base: Literal["original", "dequantized"] = "original"


@with_config(STRICT)
@dataclass(frozen=True)
class Config:
    """A whole training run.

    Args:
        objective: What is learned: causal_lm (the next token), token_classification (the class of each word),
            sequence_classification (that of a text), regression (a value for it), reward_model (which of two
            answers is preferred), ppo (answers that are rewarded).
    """

    objective: ObjectiveName = "causal_lm"
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    duration: DurationConfig = field(default_factory=DurationConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)

    @property
    def spec(self) -> ObjectiveSpec:
        """The facts of the objective."""
        return OBJECTIVES[self.objective]

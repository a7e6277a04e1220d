"""The recipe: one typed, frozen configuration, read by `train.recipe` from YAML files and dotted command-line options.

Numbers have their unit in the name. Defaults are for a first run on unknown data.
This file imports nothing heavy: `--help` must answer in under a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, with_config

from train.registry import (
    FAMILIES,
    OBJECTIVES,
    OPTIMIZERS,
    TUNINGS,
    FamilySpec,
    ObjectiveSpec,
    OptimizerSpec,
    TuningSpec,
)  # fmt: skip
from zerotune.common.schema import STRICT, Share, ShareBelowOne
from zerotune.data.formats import FORMATS

if TYPE_CHECKING:
    ObjectiveName = str
    TuningName = str
    OptimizerName = str
    FamilyName = str
    FormatName = str
else:
    ObjectiveName, TuningName = Literal[tuple(OBJECTIVES)], Literal[tuple(TUNINGS)]
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    FamilyName = Literal[tuple(FAMILIES)]
    FormatName = Literal[tuple(FORMATS)]

Wanted = str | bool | int | float | list[str | bool | int | float | None] | None  # a value, or several, of a column


@dataclass(frozen=True)
class RunConfig:
    """The run folder, and how the run starts and stops.

    Args:
        folder: Everything the run writes is in this folder; its last part is the run's name.
        seed: Seed of the order of the data, dropout and new weights.
        resume: auto resumes from the newest checkpoint that verifies, or starts a new run if there is no checkpoint;
            must fails without a checkpoint; never fails if there is one.
        extend: Resume with a new end (duration.*), even if the run has finished. Data and learning rate continue as in
            a run of the new length. These keys may change too: optim.schedule, optim.learning_rate,
            optim.final_fraction, optim.warmup_*, validation.patience.
        stop_after_minutes: Save a checkpoint and stop after this many minutes, for machines with a time limit; null:
            no limit.
        stop_at_share: Save a checkpoint and stop at the first validation from this share of the run's steps on; the
            same command with a higher share, or without it, resumes.
        precision: Precision of forward and backward passes. auto is bf16 if the hardware computes it fast, else fp32.
        hang_seconds: End the run (exit code 70) and name the hanging rank if no rank makes progress for this long. The
            limit is ten times as long before the first step, while saving and while merging; null disables it.
        max_skipped_steps: Largest number of consecutive updates that are skipped because of a non-finite gradient or
            optim.spike_factor; one more ends the run (exit code 65).
    """

    folder: str = "runs/default"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    resume: Literal["auto", "must", "never"] = "auto"
    extend: bool = False
    stop_after_minutes: PositiveFloat | None = None
    stop_at_share: Annotated[float, Field(gt=0, le=1)] | None = None
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    hang_seconds: PositiveFloat | None = 1800.0
    max_skipped_steps: NonNegativeInt = 10


@dataclass(frozen=True)
class ModelConfig:
    """The model that training starts from: an existing one, or a new one of a family.

    Args:
        path: A folder in Hugging Face layout (safetensors only) or a hub name.
        family: A new model from scratch instead of a path: rnn, lstm or transformer.
        depth: Size of a new model: its width is 64 times this; a transformer also has this many layers.
        width: Width of the hidden states; by default from depth.
        layers: Number of layers; by default depth for a transformer, at most 2 for an RNN or LSTM.
        heads: Attention heads of a transformer; by default width / 64.
        feed_forward: Inner width of a transformer's feed-forward layers; by default 8/3 of the width.
        bptt_tokens: Number of tokens through which the gradients of an RNN or LSTM go back; by default to the start of
            the row.
        dropout: Dropout of a new model: of an RNN or LSTM on embeddings and layer outputs, of a transformer on
            attention weights.
        tie_embeddings: Use one matrix for input and output embeddings of a new model.
        revision: The hub revision: a commit, tag or branch; a commit never changes.
        init: pretrained loads the weights; random reads only config.json and initialises new weights, as family always
            does.
        tokenizer: Folder or hub name of the tokenizer; by default the model's own.
        weights: Data type of the weights. auto is float32 for trained weights, and the run's precision for frozen ones.
        attention: auto uses FlashAttention 3 or 2 if installed, else PyTorch's scaled-dot-product attention.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, and up to a third
            more time, or a half with adapters.
        trust_remote_code: Run Python code that comes with the model. Accepted on the command line only.
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
        """The registry's entry of the family; None for an existing model."""
        return FAMILIES[self.family] if self.family else None

    @property
    def name(self) -> str:
        """For messages."""
        return self.path or str(self.family)

    def within(self, run: str | Path) -> ModelConfig:
        """The model to load; for a family, the new one in the run folder (`train.new_model`)."""
        if self.family is None:
            return self
        return replace(self, path=str(Path(run) / "base"), init="random")


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer of a new model (model.family), trained on the training rows.

    Args:
        kind: bpe (byte-level byte pair encoding, for text of any language) or word (words between white space, for text
            that is already tokenised, such as the Penn Treebank).
        vocabulary_size: Largest number of tokens. Rarer words become <unk>; with bpe there are none.
        lowercase: Convert all text to lower case.
        split_punctuation: With kind word, punctuation characters are separate words; for text that is not tokenised.
    """

    kind: Literal["word", "bpe"] = "bpe"
    vocabulary_size: Annotated[int, Field(ge=3, le=10_000_000)] = 10_000  # memory for all of them is reserved
    lowercase: bool = False
    split_punctuation: bool = False


@dataclass(frozen=True)
class SourceConfig:
    """One source of rows.

    Args:
        path: A JSON, JSONL, CSV, TSV, Parquet or text file (text also as .gz, .bz2, .xz, .zst), a folder or glob of
            them, a folder written by save_to_disk, or a hub data set.
        format: The format of the rows: text (corpus), qa (question, answer), pr (prompt, response),
            io (instruction, input, output), chat (messages or ShareGPT conversations), labelled (sentence or text, or
            sentence1 and sentence2, and label), tagged (tokens, tags), preference (prompt, chosen, rejected).
        columns: Field of the format -> column of this source, if the names differ.
        weight: Passes over this source per epoch: 2 uses each row twice, 0.5 a different half in each epoch.
        fraction: Share of the rows to use, chosen by the seed.
        split: The split of a hub data set, or of a save_to_disk folder with several splits.
        revision: The revision of a hub data set.
        delimiter: Delimiter of CSV files, tab for a tab; by default a comma, for .tsv files a tab.
        encoding: Encoding of text files, for example gb18030, big5, utf-16, cp1252; by default UTF-8, or UTF-16 if the
            file starts with its byte order mark.
        filter: Use only rows whose column has this value, or one of a list of values, for example {split: train}.
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
    """The training and validation data, and how it is tokenised.

    Args:
        train: The sources of training rows.
        validation: The sources of validation rows.
        validation_fraction: Share of the training rows held out for validation, chosen by the seed; not together with
            data.validation.
        max_length_tokens: Longest row. Longer instruction rows are truncated, longer corpus texts are continued in a
            new row.
        on_bad_row: error lists the first ten bad rows and ends the run before training; skip skips and counts them.
        on_overlap: What to do with training rows that are also in the validation data.
        chat_template: tokenizer (the tokenizer's own; plain if it has none), plain, chatml, raw, or a .jinja file.
        system_prompt: System message for conversations without one.
        streaming: Tokenise window by window during training, for corpora larger than memory or to start without
            waiting. Needs duration.max_steps or duration.max_tokens, and checkpoint.every_steps.
        streaming_window_rows: Rows per window; rows are shuffled within a window.
        cache_folder: Folder of the token cache; by default $ZEROTUNE_CACHE or ~/.cache/zerotune.
        workers: Number of tokenising processes; 0: one per core.
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
    """The classes of labelled data, and the classification head.

    Args:
        labels: Names of the classes in the order of their numbers; by default those of the training data, sorted, O
            first.
        class_weights: balanced gives all classes the same total weight in the loss.
        sub_words: Tokens of a word at which its class is trained: the first one, or all. Predictions use the first.
        dropout: Dropout before the head; by default that of the model's config.json, often 0.1.
    """

    labels: list[str] = field(default_factory=list)
    class_weights: Literal["none", "balanced"] = "none"
    sub_words: Literal["first", "all"] = "first"
    dropout: ShareBelowOne | None = None


@dataclass(frozen=True)
class BatchConfig:
    """Batches. Results do not depend on the number of ranks.

    Args:
        layout: packed concatenates whole rows without padding, and attention does not cross rows; padded groups rows of
            similar length; auto is packed if tuning and model allow it.
        tokens_per_step: Tokens per optimizer step, over all ranks together.
        tokens_per_micro_batch: Tokens per micro-batch of one rank. Limits the memory; does not change results.
        shuffle: Shuffle the rows anew in each epoch; false keeps the order of the data, with more padding in padded
            batches.
    """

    layout: Literal["auto", "packed", "padded"] = "auto"
    tokens_per_step: PositiveInt = 16_384
    tokens_per_micro_batch: PositiveInt = 4_096
    shuffle: bool = True


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv:2106.09685).

    Args:
        rank: Rank of the adapter matrices.
        alpha: The adapter is scaled by alpha / rank (alpha / sqrt(rank) with rslora).
        dropout: Dropout on the adapter's input.
        targets: Modules with adapters: all-linear, or names such as [q_proj, v_proj].
        bias: Which biases are also trained.
        rslora: Rank-stabilised scaling (arXiv:2312.03732).
        dora: Weight-decomposed adapters (arXiv:2402.09353).
        modules_to_save: Modules that are also trained, in full, for example [embed_tokens, lm_head].
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
    """Prompt tuning (arXiv:2104.08691): trained embeddings in front of the text.

    Args:
        virtual_tokens: Number of trained embeddings.
        init_text: Text whose embeddings are the initial values; by default random tokens of the vocabulary.
    """

    virtual_tokens: PositiveInt = 8
    init_text: str | None = None


@dataclass(frozen=True)
class TuningConfig:
    """Which weights are trained.

    Args:
        kind: full (all weights), lora (adapters) or prompt (prompt tuning).
        quantization: Quantisation of the frozen base weights: nf4 (QLoRA, arXiv:2305.14314) or int8; needs kind lora.
        double_quantization: Quantise the scales of nf4 as well.
    """

    kind: TuningName = "full"
    quantization: Literal["none", "nf4", "int8"] = "none"
    double_quantization: bool = True
    lora: LoraConfig = field(default_factory=LoraConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)

    @property
    def spec(self) -> TuningSpec:
        """The registry's entry of this tuning."""
        return TUNINGS[self.kind]

    @property
    def extra_positions(self) -> int:
        """Positions that the tuning adds in front of every row."""
        return self.spec.extra_positions(self)

    @property
    def section(self) -> tuple[str, Any]:
        """(key, settings) of the section for this kind; the settings are None if the kind has none."""
        return f"tuning.{self.kind}", getattr(self, self.kind, None)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule.

    Args:
        name: adamw, adamw_8bit (bitsandbytes; not with FSDP2) or adafactor (one process or DDP; it does not use beta1,
            beta2 and epsilon).
        learning_rate: The peak learning rate.
        weight_decay: Weight decay of matrices; none for biases, norms and prompt embeddings.
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        epsilon: Added to the square root of the second moment.
        clip_norm: Clip gradients to this global norm; 0 disables it.
        spike_factor: Skip updates whose loss exceeds this many times the median of the last 64 losses; null disables
            it.
        schedule: Schedule of the learning rate after the warmup.
        warmup_steps: Steps of linear warmup from 0; overrides warmup_fraction.
        warmup_fraction: Warmup as a share of all steps.
        final_fraction: Final learning rate as a share of the peak.
    """

    name: OptimizerName = "adamw"
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

    @property
    def spec(self) -> OptimizerSpec:
        """The registry's entry of the optimizer."""
        return OPTIMIZERS[self.name]


@dataclass(frozen=True)
class DurationConfig:
    """When the run ends: at the first limit that it reaches.

    Args:
        max_epochs: Passes over the training data; a whole number for streamed data.
        max_steps: Optimizer steps.
        max_tokens: Tokens of the rows that are trained on.
    """

    max_epochs: PositiveFloat | None = 1.0
    max_steps: PositiveInt | None = None
    max_tokens: PositiveInt | None = None


@dataclass(frozen=True)
class ValidationConfig:
    """Validation on held-out rows during training.

    Args:
        every_steps: Validate every this many steps; by default after each epoch.
        at_start: Also validate before the first step; the report compares with it.
        metric: The metric that chooses the best checkpoint. auto is loss for causal_lm and numeric, reward for
            ppo, else f1, accuracy or pearson.
        patience: Stop after this many validations without improvement; 0 disables early stopping.
        max_rows: Use at most this many held-out rows; 0: all.
        samples: Held-out prompts whose answers are shown in TensorBoard and the report.
        exact_match_rows: Held-out rows whose generated answers are scored by exact match; 0 disables it.
        max_new_tokens: Longest generated answer, in tokens.
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
    """Checkpoints, from which an interrupted run resumes.

    Args:
        every_steps: Save every this many steps; by default after each epoch. The last step is always saved.
        keep_last: How many of the newest checkpoints are kept.
        keep_best: Also keep the checkpoint that is best by validation.metric.
        verify: Check before loading: sha256 of every file, or only sizes.
        asynchronous: Copy the state to host memory and write it while training continues. The files are identical. If
            host memory has no room for the copy, training waits until they are written.
    """

    every_steps: PositiveInt | None = None
    keep_last: PositiveInt = 2
    keep_best: bool = True
    verify: Literal["sha256", "size"] = "sha256"
    asynchronous: bool = True


@dataclass(frozen=True)
class WatchConfig:
    """Metrics during training.

    Args:
        every_steps: Write metrics every this many steps.
        tensorboard: Write TensorBoard files in addition to metrics.jsonl.
        peak_tflops: Peak TFLOPS of the device, for the model FLOPs utilisation (MFU); by default taken from a table
            for common GPUs, measured on a CPU.
    """

    every_steps: PositiveInt = 1
    tensorboard: bool = True
    peak_tflops: PositiveFloat | None = None


@dataclass(frozen=True)
class CheckConfig:
    """Limits of `zerotune check`: the largest share of rows with a finding.

    Args:
        bad: Rows that cannot be used.
        empty: Rows with an empty field.
        fully_masked: Rows with nothing to learn.
        truncated: Rows that exceed data.max_length_tokens.
        no_end: Rows whose last learned token does not end a turn.
        other_prompt: Rows with a last answer after another prompt than at inference.
        duplicate: Rows that are equal to an earlier one.
        near_duplicate: Rows that are nearly equal to an earlier one.
        overlap: Training rows that are also in the validation data.
        prompt_overlap: Training rows whose prompt is in the validation data, with another answer.
        unknown: Rows with characters that the tokenizer does not know.
        control: Rows with control characters.
        mojibake: Rows with text that was decoded with a wrong encoding.
        long_word: Rows with a word of 100 or more characters.
        template: Conversations whose prompt in training is not that of evaluation, or whose end is not learned.
    """

    bad: Share | None = None
    empty: Share | None = None
    fully_masked: Share | None = None
    truncated: Share | None = None
    no_end: Share | None = None
    other_prompt: Share | None = None
    duplicate: Share | None = None
    near_duplicate: Share | None = None
    overlap: Share | None = None
    prompt_overlap: Share | None = None
    unknown: Share | None = None
    control: Share | None = None
    mojibake: Share | None = None
    long_word: Share | None = None
    template: Share | None = None


@dataclass(frozen=True)
class MergeConfig:
    """Export of the trained model as a Hugging Face folder.

    Args:
        at_end: Merge into RUN/merged when training has finished.
        checkpoint: The checkpoint to merge.
        weights: Data type of the merged weights; auto is that of the base model.
        quantized_base: The weights that a QLoRA adapter is merged into: the original 16-bit ones, or the dequantised
            ones that it was trained on.
    """

    at_end: bool = True
    checkpoint: Literal["best", "last"] = "best"
    weights: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantized_base: Literal["original", "dequantized"] = "original"


_Kind = TypeVar("_Kind")


def _with_sections(kind: type[_Kind]) -> type[_Kind]:
    """Adds the sections of the objectives that have one: fields with the objectives' names."""
    for name, spec in OBJECTIVES.items():
        if spec.section:
            section = resolve_name(spec.section)
            kind.__annotations__[name] = section
            setattr(kind, name, field(default_factory=section))
    return kind


@with_config(STRICT)
@dataclass(frozen=True)
@_with_sections
class Config:
    """A whole training run.

    Args:
        objective: What is trained: causal_lm (pre-training and SFT), numeric (the same with numbers as values),
            token_classification (a class for each word), sequence_classification (a class for a text), regression (a
            value for a text), reward_model (from preference pairs), ppo (reinforcement learning with rewards).
    """

    objective: ObjectiveName = "causal_lm"
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    duration: DurationConfig = field(default_factory=DurationConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    check: CheckConfig = field(default_factory=CheckConfig)

    @property
    def spec(self) -> ObjectiveSpec:
        """The registry's entry of the objective."""
        return OBJECTIVES[self.objective]

    @property
    def settings(self) -> Any:
        """The section of the objective, of the type that its entry names; None if it has none."""
        return getattr(self, self.objective, None)

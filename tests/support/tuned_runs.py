"""Finished runs for tests of what comes after training: made by the trainer's own code, without training.

The "trained" weights are the start values plus seeded noise, large enough that every mistake shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tests.support.ranks import Solo
from train.checkpoint import commit, replicated_state
from train.checkpoint.compatibility import Origin
from train.config import Config, DataConfig, ModelConfig, RunConfig, SourceConfig, TuningConfig
from train.models.load import fit_vocabulary, load_model, load_tokenizer
from train.models.recorded_answers import FILE, Recorder
from train.recipe import to_yaml
from train.tuning import make_tuning
from zerotune.models.weights_digest import model_digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def tiny_tokenizer(folder: Path, size: int = 300) -> None:
    """A byte-level BPE tokenizer with a start token and a chat template, trained on nothing."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    vocab |= {f"<unused{i}>": i for i in range(len(vocab), size - 3)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>", "<|endoftext|>")])
    start = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=[start])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = "{%- for m in messages %}{{ '<s>' + m['content'] + '</s>' }}{%- endfor %}"
    tokenizer.save_pretrained(folder)


def tiny_model(folder: Path, kind: str, dtype: str = "float32", vocabulary: int = 300, **sizes: int) -> Path:
    """A random model with its tokenizer: `llama` (untied embeddings) or `qwen2` (tied, biases in attention)."""
    made = {
        "llama": lambda: LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **SIZES | sizes),
        "qwen2": lambda: Qwen2Config(vocab_size=vocabulary, tie_word_embeddings=True, **SIZES | sizes),
    }[kind]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made)
    with torch.no_grad():  # the usual start values leave attention and biases without a visible effect
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 or "bias" in name else 0.1))
    model.to(DTYPES[dtype]).save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder


def disturb(model: torch.nn.Module, size: float = 0.05) -> None:
    """Noise on everything that is trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * size)


def finished_run(
    folder: Path,
    base: Path,
    tuning: TuningConfig,
    dtype: str = "float32",
    tokenizer: Path | None = None,
    precision: str | None = None,
    head: tuple[Any, dict[str, Any], str] | None = None,
    **model: str,
) -> torch.nn.Module:
    """Makes a run folder with one checkpoint, whole and committed. Returns the tuned model as training left it.

    precision: of the run, if not that of dtype. head: class to load, its options, and peft's task, where it is not a
    causal language model.
    """
    config = Config(
        run=RunConfig(folder=str(folder), seed=3, precision=precision or ("bf16" if dtype == "bfloat16" else "fp32")),
        model=ModelConfig(path=str(base), tokenizer=str(tokenizer) if tokenizer else None, **model),
        tuning=tuning,
        data=DataConfig(train=[SourceConfig(path="rows.jsonl", format="qa")]),
    )
    kind, options, task = head or (AutoModelForCausalLM, {}, "CAUSAL_LM")
    chosen = make_tuning(tuning, config.run.seed, model=config.model, task=task)
    options = {**options, **chosen.load_options(DTYPES[dtype])}
    saved = tuning.lora.modules_to_save
    loaded = load_model(kind, config.model, DTYPES[dtype], options=options, seed=3, new=saved)
    tokens = load_tokenizer(config.model)
    fit_vocabulary(loaded, tokens, 3)
    tuned = chosen.apply(loaded)
    recorder = Recorder(tuned, tokens, [], config.run.precision, torch.device("cpu"))
    recorder.begin(tuned)
    disturb(tuned)
    folder.mkdir(parents=True)
    add_checkpoint(folder, config, tuned, step=7, recorder=recorder)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    facts = {"model": {"path": str(base), "digest": model_digest(base)}, "precision": config.run.precision}
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    tokens.save_pretrained(folder / "tokenizer")
    return tuned.eval()


def add_checkpoint(
    folder: Path,
    config: Config,
    tuned: torch.nn.Module,
    step: int,
    best_step: int | None = None,
    recorder: Recorder | None = None,
) -> None:
    """One checkpoint of the model as it is; with its answers, unless it is one of before there were any."""

    def write(draft: Path) -> None:
        replicated_state.write({replicated_state.MODEL: replicated_state.trained_state(tuned)}, draft)
        (draft / "tuning").mkdir()
        make_tuning(config.tuning, 3, model=config.model).save({}, tuned, draft / "tuning")
        if recorder is not None:
            (draft / "tuning" / FILE).write_bytes(recorder.record(tuned).to_bytes())

    state = {"step": step, "best_step": best_step}
    commit.commit(folder / "checkpoints", step, write, state, Origin.of(config, "single", 1), Solo())

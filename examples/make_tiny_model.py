"""Makes examples/models/tiny-qwen2: a tiny model with Qwen2's architecture, its own tokenizer and no weights.

    python examples/make_tiny_model.py [--out examples/models/tiny-qwen2]

The tokenizer (byte-level BPE, like Qwen2's) is trained on examples/data. The output is the same every time. Use the
model with `model.init: random` (recipes/cpu.yaml).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

VOCABULARY = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DATA = Path(__file__).parent / "data"
READ = "chat.jsonl corpus.jsonl corpus.txt demo_heldout.jsonl demo_train.jsonl io.json pr.csv qa.jsonl".split()
TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "float32",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "unk_token": None,
    "model_max_length": 2048,
    "clean_up_tokenization_spaces": False,
}


def tokenizer_json() -> str:
    """A byte-level BPE tokenizer trained on the example data."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [line for name in READ for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    tokenizer.train_from_iterator(lines, trainer)
    return str(tokenizer.to_str(pretty=False)) + "\n"


def files() -> dict[str, str]:
    """File name -> content of the folder."""
    return {
        "config.json": json.dumps(CONFIG, indent=2) + "\n",
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": json.dumps(TOKENIZER_CONFIG, indent=2) + "\n",
        "chat_template.jinja": TEMPLATE,
    }


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "models" / "tiny-qwen2")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()

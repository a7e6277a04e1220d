"""Merges a tuned prompt: its vectors become the embeddings of new tokens that precede every text.

Reasons and costs: docs/decisions/0004-prompt-tuning-becomes-tokens.md.

Shape suffixes: v rows of the vocabulary, n tokens of the prompt, h hidden size.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken, AutoTokenizer

from train.merge.base_weights import BaseWeights
from train.merge.source import Source, text_rows
from train.tuning.describe import write_json
from zerotune.common.errors import UserError
from zerotune.models.folder import read_json

VECTORS = "prompt_encoder.default.embedding.weight"  # peft's name
NEVER = -1e4  # bias of the new tokens' logits, if the output layer has a bias: their probability is 0


class Extended:
    """The base model with rows for the prompt's tokens.

    The logits of all other tokens do not change. An output layer that is tied to the embeddings becomes a separate
    matrix, since the prompt's vectors must not become outputs. Its rows for the new tokens are the mean of the others:
    the mean logit gives at most the geometric mean of the probabilities, so n new tokens together take less than n / v
    (in a trained model far less).
    """

    def __init__(self, source: Source, skeleton: Any, base: BaseWeights | None) -> None:
        assert base is not None
        self.base, self.used, self.trained = base, {VECTORS}, source.trained
        self.prompt_nh = source.trained[VECTORS].float()
        self.ids = source.prompt_ids
        modules = {id(module): name for name, module in skeleton.named_modules()}
        entry, exit_ = skeleton.get_input_embeddings(), skeleton.get_output_embeddings()
        self.scale = float(getattr(entry, "scalar_embed_scale", 1.0))  # some embeddings multiply what they look up
        self.entry = f"{modules[id(entry)]}.weight"
        self.exit = modules.get(id(exit_), "")
        self.rows = text_rows(skeleton.config)

    def is_tied(self, target: str, origin: str) -> bool:
        """Input and output embeddings are not."""
        return self.entry not in (target, origin)

    def tensor(self, name: str) -> Tensor:
        module, _, leaf = name.rpartition(".")
        part, dot, inside = module.partition(".")
        saved = f"base_model.{part}.modules_to_save.default.{inside}{dot}{leaf}"  # a head, fully trained
        if saved in self.trained:
            self.used.add(saved)
            return self.trained[saved].float()
        tensor = self.base.get(name).float()
        if name == self.entry:
            entry_vh = _add_rows(tensor, self.rows, torch.zeros(1))
            entry_vh[list(self.ids)] = self.prompt_nh / self.scale
            return entry_vh
        if name == f"{self.exit}.weight":
            return _add_rows(tensor, self.rows, tensor.mean(0))
        if name == f"{self.exit}.bias":
            return _add_rows(tensor, self.rows, torch.tensor(NEVER))
        return tensor


def _add_rows(tensor: Tensor, rows: int, row: Tensor) -> Tensor:
    """Append `row` until the tensor has `rows` rows."""
    return torch.cat([tensor, row.expand(max(rows - len(tensor), 0), *tensor.shape[1:])])


def add_tokens(tokenizer: Any, count: int) -> list[int]:
    """Add `count` special tokens that precede every text and every conversation, and return their ids.

    Raises UserError for a tokenizer that cannot put several tokens first.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("merge: prompt tuning needs a fast tokenizer (tokenizer.json), to put the prompt first")
    known = [re.fullmatch(r"<\|prompt_([0-9]+)\|>", token) for token in tokenizer.get_vocab()]
    first = max((int(match[1]) + 1 for match in known if match), default=0)
    names = [f"<|prompt_{first + i}|>" for i in range(count)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = [int(i) for i in tokenizer.convert_tokens_to_ids(names)]
    backend.post_processor = _with_start(backend.post_processor, names, ids)
    start = "".join(names)
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = start + tokenizer.chat_template
    elif tokenizer.chat_template:
        tokenizer.chat_template = {key: start + text for key, text in dict(tokenizer.chat_template).items()}
    return ids


def _with_start(old: Any, names: list[str], ids: list[int]) -> Any:
    """The post-processor `old`, extended to put `names` first."""
    from tokenizers import processors

    processor: dict[str, Any] = {"type": "Sequence", "processors": []}
    if old is not None:
        processor = json.loads(old.__getstate__())
    steps: list[dict[str, Any]] = processor["processors"] if processor["type"] == "Sequence" else [processor]
    steps[:] = [template_of(step) if step["type"] == "BertProcessing" else step for step in steps]
    if any(step["type"] not in ("ByteLevel", "TemplateProcessing") for step in steps):
        raise UserError(f"merge: a prompt cannot be merged into a tokenizer with post-processor {processor['type']}")
    template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
    if template is None:
        template = json.loads(processors.TemplateProcessing(single="$A", pair="$A:0 $B:1").__getstate__())
        steps.append(template)
    first = names[0]  # one entry of the template for all of them
    template["special_tokens"][first] = {"id": first, "ids": ids, "tokens": names}
    for kind in ("single", "pair"):
        template[kind].insert(0, {"SpecialToken": {"id": first, "type_id": 0}})
    joined = processors.Sequence([])
    joined.__setstate__(json.dumps({"type": "Sequence", "processors": steps}).encode())
    return joined


def template_of(step: dict[str, Any]) -> dict[str, Any]:
    """The TemplateProcessing that is equivalent to a BertProcessing."""
    from tokenizers import processors

    (sep, sep_id), (start, start_id) = step["sep"], step["cls"]
    made = processors.TemplateProcessing(
        single=f"{start} $A {sep}",
        pair=f"{start} $A {sep} $B:1 {sep}:1",
        special_tokens=[(start, start_id), (sep, sep_id)],
    )
    template: dict[str, Any] = json.loads(made.__getstate__())
    return template


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save the tokenizer so that loading uses tokenizer.json unchanged.

    With options for start and end tokens, and for classes of some families (BERT's), loading would rebuild the
    template.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {k: v for k, v in read_json(path).items() if k not in ("add_bos_token", "add_eos_token")}
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(tokenizer.model_input_names),
    }
    write_json(path, settings)


def check_tokenizer(folder: Path, before: Any, ids: list[int]) -> None:
    """Raise UserError unless the saved tokenizer puts the prompt's tokens before those of the old tokenizer."""
    after = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = "Hello 你好 123"
    pairs = [(after(text)["input_ids"], before(text)["input_ids"])]
    if before.chat_template:
        messages = [{"role": "user", "content": text}]
        options = {"add_generation_prompt": True, "return_dict": False}
        pairs.append((after.apply_chat_template(messages, **options), before.apply_chat_template(messages, **options)))
    if any(list(new) != [*ids, *old] for new, old in pairs):
        raise UserError(
            f"{folder}: its tokenizer does not put the prompt before every text; prompt tuning cannot be merged"
        )

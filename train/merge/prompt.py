"""A tuned prompt as an ordinary checkpoint: its vectors become the embeddings of new tokens that precede every text.

The decision and what it costs: docs/decisions/0004-prompt-tuning-becomes-tokens.md.

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

from train.merge.base import BaseWeights
from train.merge.source import Source, text_rows
from train.tuning.describe import write_json
from zerotune.common.errors import UserError
from zerotune.models.folder import read_json

VECTORS = "prompt_encoder.default.embedding.weight"  # peft's name
NEVER = -1e4  # a logit that no softmax lets through, where the output layer has a bias to carry it


class Extended:
    """The base with rows for the prompt's tokens.

    The logits of all other tokens stay exactly what they were. Where the output layer is tied to the embeddings it is
    written out on its own, since the prompt's vectors must not become outputs. Its rows for the new tokens are the mean
    of the others: a mean logit stands for the geometric mean of the probabilities, so that n new tokens together take
    less than n / v (in a trained model far less).
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
        """Input and output part ways."""
        return self.entry not in (target, origin)

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        module, _, leaf = name.rpartition(".")
        part, dot, inside = module.partition(".")
        saved = f"base_model.{part}.modules_to_save.default.{inside}{dot}{leaf}"  # a head, trained in full
        if saved in self.trained:
            self.used.add(saved)
            return self.trained[saved].float()
        tensor = self.base.get(name).float()
        if name == self.entry:
            entry_vh = _grown(tensor, self.rows, torch.zeros(1))
            entry_vh[list(self.ids)] = self.prompt_nh / self.scale
            return entry_vh
        if name == f"{self.exit}.weight":
            return _grown(tensor, self.rows, tensor.mean(0))
        if name == f"{self.exit}.bias":
            return _grown(tensor, self.rows, torch.tensor(NEVER))
        return tensor


def _grown(tensor: Tensor, rows: int, row: Tensor) -> Tensor:
    """With `row` added at the end as often as needed."""
    return torch.cat([tensor, row.expand(max(rows - len(tensor), 0), *tensor.shape[1:])])


def add_tokens(tokenizer: Any, count: int) -> list[int]:
    """Give the tokenizer `count` new special tokens that stand before every text and every conversation; their ids.

    Raises UserError for a tokenizer that cannot put several tokens first.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("merge: a prompt needs a fast tokenizer (tokenizer.json) to stand before every text")
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
    """A post-processor that does what `old` does, and puts `names` first."""
    from tokenizers import processors

    described: dict[str, Any] = {"type": "Sequence", "processors": []}
    if old is not None:
        described = json.loads(old.__getstate__())
    steps: list[dict[str, Any]] = described["processors"] if described["type"] == "Sequence" else [described]
    steps[:] = [template_of(step) if step["type"] == "BertProcessing" else step for step in steps]
    if any(step["type"] not in ("ByteLevel", "TemplateProcessing") for step in steps):
        raise UserError(f"merge: a prompt cannot be put before the texts of a tokenizer with {described['type']}")
    template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
    if template is None:
        template = json.loads(processors.TemplateProcessing(single="$A", pair="$A:0 $B:1").__getstate__())
        steps.append(template)
    mark = names[0]  # one entry of the template stands for all of them
    template["special_tokens"][mark] = {"id": mark, "ids": ids, "tokens": names}
    for kind in ("single", "pair"):
        template[kind].insert(0, {"SpecialToken": {"id": mark, "type_id": 0}})
    joined = processors.Sequence([])
    joined.__setstate__(json.dumps({"type": "Sequence", "processors": steps}).encode())
    return joined


def template_of(step: dict[str, Any]) -> dict[str, Any]:
    """BertProcessing as the template that it stands for."""
    from tokenizers import processors

    (sep, sep_id), (start, start_id) = step["sep"], step["cls"]
    made = processors.TemplateProcessing(
        single=f"{start} $A {sep}",
        pair=f"{start} $A {sep} $B:1 {sep}:1",
        special_tokens=[(start, start_id), (sep, sep_id)],
    )
    described: dict[str, Any] = json.loads(made.__getstate__())
    return described


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write it so that loading takes tokenizer.json as it is.

    Switches for a start or end token, and the classes of some families (BERT's), would have the template rebuilt.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    described = {k: v for k, v in read_json(path).items() if k not in ("add_bos_token", "add_eos_token")}
    described |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": list(tokenizer.model_input_names)}
    write_json(path, described)


def check_tokenizer(folder: Path, before: Any, ids: list[int]) -> None:
    """Raise UserError unless the saved tokenizer gives the prompt and then what it gave before."""
    after = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = "Hello 你好 123"
    pairs = [(after(text)["input_ids"], before(text)["input_ids"])]
    if before.chat_template:
        talk = [{"role": "user", "content": text}]
        ask = {"add_generation_prompt": True, "return_dict": False}
        pairs.append((after.apply_chat_template(talk, **ask), before.apply_chat_template(talk, **ask)))
    if any(list(new) != [*ids, *old] for new, old in pairs):
        raise UserError(
            f"{folder}: its tokenizer does not put the prompt before every text; prompt tuning cannot be merged"
        )

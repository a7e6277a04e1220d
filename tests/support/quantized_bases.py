"""Small models whose files are quantised, each with the plain weights that they stand for, computed here by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, Qwen3MoeConfig

from tests.support.tuned_runs import SIZES, tiny_model, tiny_tokenizer

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def set_config(folder: Path, **values: Any) -> None:
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def block_fp8(plain: Path, out: Path, block: tuple[int, int]) -> dict[str, Tensor]:
    """Every projection in blocks of float8_e4m3fn with a float32 scale each; the last blocks may be smaller."""
    shutil.copytree(plain, out)
    stored, meant = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if name.endswith("_proj.weight"):
            (rows, columns), (high, wide) = weight.shape, block
            scale = torch.zeros(-(-rows // high), -(-columns // wide))
            number, value = torch.zeros(rows, columns), torch.zeros(rows, columns)
            for i in range(scale.shape[0]):
                for j in range(scale.shape[1]):
                    place = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
                    scale[i, j] = weight[place].float().abs().max() / 448
                    number[place] = (weight[place].float() / scale[i, j]).to(torch.float8_e4m3fn).float()
                    value[place] = number[place] * scale[i, j]
            stored |= {name: number.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
            meant[name] = value
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    set_config(out, quantization_config=quantization)
    return meant


def tensor_fp8(plain: Path, out: Path) -> dict[str, Tensor]:
    """One scale a matrix."""
    shutil.copytree(plain, out)
    stored, meant = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if name.endswith("_proj.weight"):
            scale = weight.float().abs().max() / 448
            number = (weight.float() / scale).to(torch.float8_e4m3fn)
            stored |= {name: number, f"{name}_scale_inv": scale}
            meant[name] = number.float() * scale
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    quantization = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    set_config(out, quantization_config=quantization)
    return meant


def mxfp8(plain: Path, out: Path) -> dict[str, Tensor]:
    """Blocks of 32 in a row, scales that are powers of two stored as their exponents' bytes."""
    shutil.copytree(plain, out)
    stored, meant = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if name.endswith("_proj.weight") and weight.shape[1] % 32 == 0:
            blocks = weight.float().unflatten(1, (-1, 32))
            exponent = (blocks.abs().amax(-1) / 448).log2().ceil().clamp(-127, 127)
            number = (blocks / exponent.exp2().unsqueeze(-1)).to(torch.float8_e4m3fn)
            meant[name] = (number.float() * exponent.exp2().unsqueeze(-1)).flatten(1)
            stored |= {name: number.flatten(1), f"{name}_scale_inv": (exponent + 127).to(torch.uint8)}
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    quantization = {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}
    set_config(out, quantization_config=quantization)
    return meant


def gpt_oss(out: Path) -> dict[str, Tensor]:
    """A gpt-oss with sinks, biases and experts in MXFP4: blocks of 32 pairs of nibbles, and exponents."""
    config = GptOssConfig(
        vocab_size=300, num_local_experts=4, num_experts_per_tok=2, head_dim=16, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **SIZES | {"intermediate_size": 32},
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(out)
    tiny_tokenizer(out)
    stored, meant = {}, {}
    generator = torch.Generator().manual_seed(3)
    for name, weight in load_file(out / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if name.endswith(("gate_up_proj", "down_proj")):  # [experts, in, out]; stored [experts, out, in / 32, 16]
            experts, inside, outside = weight.shape
            nibble = torch.randint(0, 16, (experts, outside, inside), generator=generator)
            exponent = torch.randint(-5, -2, (experts, outside, inside // 32), generator=generator)
            value = torch.tensor(FP4)[nibble].unflatten(-1, (-1, 32)) * exponent.float().exp2().unsqueeze(-1)
            meant[name] = value.flatten(2).transpose(1, 2).contiguous()
            packed = (nibble[..., 0::2] | (nibble[..., 1::2] << 4)).to(torch.uint8)
            del stored[name]
            stored[f"{name}_blocks"] = packed.unflatten(-1, (-1, 16))
            stored[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    set_config(out, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return meant


def bitsandbytes(
    plain: Path, out: Path, bits: int, double: bool = False, skipped: list[str] | None = None
) -> dict[str, Tensor]:
    """A folder that transformers saved from memory, dequantised by the published tables."""
    asked = (
        BitsAndBytesConfig(load_in_8bit=True)
        if bits == 8
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double,
            llm_int8_skip_modules=skipped,
        )
    )
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, quantization_config=asked)
    meant = {}
    for name, tensor in model.state_dict().items():
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name) if leaf == "weight" else None
        if type(module).__name__ == "Linear8bitLt":
            meant[name] = module.weight.data.float() * module.weight.SCB.view(-1, 1) / 127
        elif type(module).__name__ == "Linear4bit":
            meant[name] = _nf4(module.weight)
        elif leaf in ("weight", "bias"):
            meant[name] = tensor
    model.save_pretrained(out)
    tiny_tokenizer(out)
    return meant


def _nf4(weight: Any) -> Tensor:
    state = weight.quant_state
    packed = weight.data.flatten().view(torch.uint8)
    nibbles = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
    absmax = state.absmax
    if state.nested:
        inner = state.state2
        absmax = (
            inner.code[absmax.long()] * inner.absmax.repeat_interleave(inner.blocksize)[: len(absmax)] + state.offset
        )
    scale = absmax.repeat_interleave(state.blocksize)[: len(nibbles)]
    return (state.code[nibbles] * scale)[: state.shape.numel()].view(state.shape)


def moe(folder: Path) -> Path:
    """A mixture of experts whose files hold each expert by itself."""
    config = Qwen3MoeConfig(
        vocab_size=300, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, head_dim=8,
        tie_word_embeddings=False, **SIZES,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder


def make(kind: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """(folder of a quantised model, the weights of its files as they are meant)."""
    out = folder / "quantized"
    if kind == "gpt-oss mxfp4":
        return out, gpt_oss(out)
    if kind == "experts fp8":
        return out, block_fp8(moe(folder / "plain"), out, (32, 32))
    plain = tiny_model(folder / "plain", "qwen2" if kind == "tied fp8" else "llama")
    made = {
        "fp8": lambda: block_fp8(plain, out, (16, 16)),
        "fp8 ragged": lambda: block_fp8(plain, out, (32, 20)),
        "tied fp8": lambda: block_fp8(plain, out, (32, 32)),
        "fp8 by tensor": lambda: tensor_fp8(plain, out),
        "mxfp8": lambda: mxfp8(plain, out),
        "4 bit": lambda: bitsandbytes(plain, out, 4),
        "4 bit double": lambda: bitsandbytes(plain, out, 4, double=True),
        "4 bit in part": lambda: bitsandbytes(plain, out, 4, skipped=["lm_head", "layers.1.mlp.down_proj", "o_proj"]),
        "8 bit": lambda: bitsandbytes(plain, out, 8),
    }[kind]()
    return out, made


KINDS = (
    *("fp8", "fp8 ragged", "tied fp8", "fp8 by tensor", "experts fp8", "mxfp8", "gpt-oss mxfp4"),
    *("4 bit", "4 bit double", "4 bit in part", "8 bit"),
)

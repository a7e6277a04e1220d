"""No code, no weights and no control sequences from what others wrote: each attack is tried."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from eval.main import main as evaluate
from eval.report.terminal import show
from tests.support import eval_checkpoints, eval_results, eval_vision
from train.config import ModelConfig
from train.engine import deepspeed_ops
from train.models.load import load_tokenizer
from train.recipe import parse
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import printable, printable_all
from zerotune.data.files import expand
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.images import _open, load_images
from zerotune.models.folder import read_config
from zerotune.models.weight_files import weight_files

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for room in ("train", "eval", "zerotune") for path in (ROOT / room).rglob("*.py"))


def test_every_loading_call_says_whether_foreign_code_may_run() -> None:
    """transformers asks "[y/N]" on the terminal where `trust_remote_code` is left out."""
    calls = [
        (path, call)
        for path in SOURCES
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if call.func.attr in ("from_pretrained", "from_config")
    ]
    silent = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path, call in calls
        if not {"trust_remote_code", None} & {keyword.arg for keyword in call.keywords}
        and ast.unparse(call.func) != "GenerationConfig.from_pretrained"  # holds no code
    ]
    assert len(calls) > 5
    assert not silent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    eval_checkpoints.save(tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **values: Any) -> None:
    described = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**described, **values}))


@pytest.mark.parametrize(
    "named", [{"AutoTokenizer": ["evil.T", None]}, ["evil.T", "evil.F"], ["evil.T", None], "evil.T"]
)
def test_a_tokenizers_code_is_not_run(
    folder: Path, tmp_path: Path, named: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    change(folder / "tokenizer_config.json", auto_map=named)
    with contextlib.suppress(UserError):  # code that is not needed is passed over
        open_checkpoint(str(folder), "m")
    assert not canary.exists()


def test_an_image_processors_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder, canary = eval_vision.save(tmp_path / "model", "llava"), tmp_path / "canary"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    change(
        folder / "preprocessor_config.json",
        auto_map={"AutoImageProcessor": "evil.P"},
        image_processor_type="EvilProcessor",
    )
    checkpoint = open_checkpoint(str(folder), "m")
    with pytest.raises(UserError, match="its image processor cannot be used"):
        load_images(folder, checkpoint.config, checkpoint.tokenizer)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["evil.bin", "../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", 7])
def test_evaluation_reads_safetensors_beside_the_index_only(folder: Path, name: Any) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(UserError, match=r"index\.json: lists .*; safetensors files beside it are expected"):
        open_checkpoint(str(folder), "m")


@pytest.mark.parametrize("listed", [None, [], {}, "model.safetensors"])
def test_an_index_that_lists_nothing_is_named(folder: Path, listed: Any) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(UserError, match=r"index\.json: lists no files"):
        open_checkpoint(str(folder), "m")


@pytest.mark.parametrize("name", ["adapter_model.bin", "../other/model.safetensors", "a.safetensors/../b.bin", 3])
def test_a_configuration_names_safetensors_beside_it_only(folder: Path, name: Any) -> None:
    change(folder / "config.json", transformers_weights=name)
    with pytest.raises(
        UserError, match=r"config\.json: transformers_weights names .*; only safetensors files beside it"
    ):
        open_checkpoint(str(folder), "m")


def test_weights_under_another_name_are_those_that_transformers_loads(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "own.safetensors")
    change(folder / "config.json", transformers_weights="own.safetensors")
    assert weight_files(folder) == [folder / "own.safetensors"]


GARBAGE = {
    "config.json": ["{", "[]", '{"model_type": "llama", "hidden_size": "wide"}', '{"model_type": 7}', "\ud800"],
    "tokenizer.json": ["{", "{}", "[]", '{"model": {"type": "Nonsense"}}'],
    "tokenizer_config.json": ["{", "[]", '{"eos_token": 5}', '{"tokenizer_class": ["x"]}'],
    "generation_config.json": ["{", "[]", "7"],
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in GARBAGE.items() for text in texts])
def test_garbage_in_a_model_folder_is_one_message(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(UserError):  # anything else is a traceback on the user's screen
        open_checkpoint(str(folder), "m")
    with contextlib.suppress(UserError):
        load_tokenizer(ModelConfig(path=str(folder)))
    with contextlib.suppress(UserError):
        read_config(folder)


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


HEADER = (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
BROKEN = {
    "not an image": b"no image",
    "empty": b"",
    "PNG cut off": _png(HEADER)[:20],
    "PNG with a bad checksum": _png(HEADER)[:-1] + b"\x00",
    "PNG of no size": _png((b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")),
    "PNG of gigapixels": _png((b"IHDR", struct.pack(">IIBBBBB", 2**30, 2**30, 8, 2, 0, 0, 0)), (b"IDAT", b"x")),
    "PNG with a text bomb": _png(
        HEADER, (b"zTXt", b"k\x00\x00" + zlib.compress(b"a" * 90_000_000)), (b"IDAT", b""), (b"IEND", b"")
    ),
    "PNG with broken data": _png(HEADER, (b"IDAT", b"\x00\x01\x02"), (b"IEND", b"")),
    "TIFF with a broken directory": b"II*\x00\x08\x00\x00\x00\xff\xff" + b"\x00" * 40,
    "TIFF cut off": b"II*\x00\x08\x00\x00\x00\x01\x00",
    "PPM with words for sizes": b"P6\nwide high 255\n",
    "PPM with a huge number": b"P6\n" + b"9" * 100 + b" 4 255\n",
    "GIF cut off": b"GIF89a\x04\x00\x04\x00\x80",
    "BMP with a negative size": b"BM" + b"\xff" * 60,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_one_message(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(UserError, match=r"one\.png: this image cannot be read: \S"):
        _open([str(path)])


def test_a_whole_image_is_read(tmp_path: Path) -> None:
    Image.new("L", (3, 2)).save(tmp_path / "one.png")
    assert [image.size for image in _open([str(tmp_path / "one.png")]) or []] == [(3, 2)]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_named_pipe_in_a_model_folder_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=re.escape(str(folder))):
        open_checkpoint(str(folder), "m")


CONTROL = {
    "\x1b[2J": r"\x1b[2J",  # clears the screen
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b31m": r"\x9b31m",  # the same as ESC [ in one character
    "a\rb": r"a\x0db",  # hides what stood before it
    "a\x08b\x7f": r"a\x08b\x7f",
    "tab\tand\nline": "tab\tand\nline",
    "中文 عربي 🙂": "中文 عربي 🙂",
}


@pytest.mark.parametrize("text", CONTROL)
def test_control_characters_are_shown_and_not_obeyed(text: str) -> None:
    assert printable(text) == CONTROL[text]
    assert printable_all({"k": [text, (text,)]}) == {"k": [CONTROL[text], (CONTROL[text],)]}
    assert printable(printable(text)) == printable(text)


def test_machine_code_in_a_shared_cache_is_not_another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.getuid()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "shared"))
    assert deepspeed_ops.folder() == tmp_path / "shared"
    for name in ("shared", f"shared-{mine + 1}"):  # he can make any name beside it
        (tmp_path / name).mkdir()
    assert deepspeed_ops.folder() == tmp_path / "shared"
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert deepspeed_ops.folder().is_relative_to(tmp_path / "home")


def test_rows_and_recipes_from_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "recipe.yaml"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"rows\.jsonl: is not a regular file"):
        expand(str(tmp_path / "rows.jsonl"))
    with pytest.raises(UserError, match=r"recipe\.yaml: is not a regular file"):
        parse(["--config", str(tmp_path / "recipe.yaml")])


def test_a_columns_name_cannot_command_the_terminal(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"\x1b[2Jquestion": "What?", "answer": "That."}) + "\n")
    words = ["--model", str(folder), "--tasks", "qa", "--data", str(rows), "--out", str(tmp_path / "out")]
    assert evaluate(words) == 64
    said = capsys.readouterr()
    assert r"\x1b[2Jquestion" in said.err
    assert "\x1b" not in said.out + said.err


def test_an_answer_cannot_command_the_terminal() -> None:
    told = io.StringIO()
    compared = eval_results.evaluation(["\x1b]0;mine\x07", "other"])
    show(compared.result, Console(file=told, width=100))
    assert r"\x1b]0;mine" in told.getvalue()
    assert "\x1b" not in told.getvalue()

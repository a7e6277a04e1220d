"""The peer's own virtual environment, made once under .cache/ and found again by its pins.

    python benchmarks/peer.py        makes it and prints its Python

Only what both sides share is pinned to the same version; the peer never sees this project.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", "accelerate==1.15.0", "peft==0.21.2", "datasets==5.2.0")


def peer_python() -> Path:
    """Python of an environment with PINS; half-made ones are made anew."""
    key = hashlib.sha256("\n".join((sys.version, *PINS)).encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / f"peer-trl-{key}"
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        print(
            f"Making the peer's environment ({', '.join(PINS)}): once, a few minutes ...", file=sys.stderr, flush=True
        )
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS], check=True)
        done.write_text("\n".join(PINS) + "\n", encoding="utf-8")
    return python


if __name__ == "__main__":
    print(peer_python())

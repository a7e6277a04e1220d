"""The peers' own virtual environments, each made once under .cache/ and found again by its pins.

    python benchmarks/peer.py trl lm-eval        makes them and prints their Pythons

Only what both sides share is pinned to the same version; a peer never sees this project.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS: Mapping[str, tuple[str, ...]] = {
    "trl": (
        "torch==2.13.0",
        "trl==1.16.0",
        "transformers==5.23.0",
        "accelerate==1.15.0",
        "peft==0.21.2",
        "datasets==5.2.0",
    ),
    "trl-ppo": (  # the last release that holds PPO
        "torch==2.13.0",
        "trl==1.12.0",
        "transformers==5.23.0",
        "accelerate==1.15.0",
        "peft==0.21.2",
        "datasets==5.2.0",
    ),
    "lm-eval": (
        "torch==2.13.0",
        "lm-eval[hf]==0.4.13",
        "transformers==5.23.0",
        "accelerate==1.15.0",
        "datasets==5.2.0",
    ),
}


def peer_python(name: str) -> Path:
    """Python of an environment with the peer's pins; half-made ones are made anew."""
    pins, (python, done) = PEERS[name], _places(name)
    if not done.is_file():
        shutil.rmtree(done.parent, ignore_errors=True)
        print(
            f"Making the peer's environment ({', '.join(pins)}): once, a few minutes ...", file=sys.stderr, flush=True
        )
        subprocess.run([sys.executable, "-m", "venv", str(done.parent)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *pins], check=True)
        done.write_text("\n".join(pins) + "\n", encoding="utf-8")
    return python


def ready(name: str) -> Path | None:
    """The same where it has been made already."""
    python, done = _places(name)
    return python if done.is_file() else None


def _places(name: str) -> tuple[Path, Path]:
    """Its Python, and the file that says it is complete."""
    key = hashlib.sha256("\n".join((sys.version, *PEERS[name])).encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / f"peer-{name}-{key}"
    return folder / "bin" / "python", folder / "complete"


if __name__ == "__main__":
    for peer in sys.argv[1:] or PEERS:
        print(peer_python(peer))

"""Tokens of the training data, estimated from the sizes of its files: nothing is opened."""

from __future__ import annotations

from train.config import Config
from zerotune.common.errors import UserError
from zerotune.data.files import expand
from zerotune.data.text_files import COMPRESSED

BYTES_OF_TOKEN = 4  # of a file: about right for English and Chinese text; JSON's own characters count as text
CACHED_BYTES = 6  # of a token in the token cache: its number, whether it is learned, and a share of its row


def tokens_of(config: Config) -> int | None:
    """Tokens of an epoch; None if a source is on the hub, compressed or binary."""
    total = 0.0
    for source in config.data.train:
        try:
            files = expand(source.path)
        except UserError:
            return None
        if any(file.suffix in (*COMPRESSED, ".parquet", ".arrow") for file in files):
            return None
        size = sum(file.stat().st_size for file in files)
        total += size * source.fraction * source.weight / BYTES_OF_TOKEN
    return round(total) or None

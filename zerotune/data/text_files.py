"""Opening text files: compressed ones, and ones that are not UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from zerotune.common.errors import UserError

SAMPLE_BYTES = 1 << 16  # of a file, to guess its encoding
BYTE_ORDER_MARK = "\ufeff"
WIDE_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # longest first
# What is looked for in bytes that are not UTF-8: one for each script that was ever common on the web.
LIKELY = (
    *("gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1251", "koi8_r", "cp1252", "cp1250", "cp1253", "cp1254"),
    *("cp1255", "cp1256", "cp1258", "cp874", "utf_16_le", "utf_16_be"),
)

TABLES = (".csv", ".tsv", ".parquet", ".arrow")  # every row has the same columns
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
LARGE_BYTES = 1 << 25


def kind_of(path: Path) -> str:
    """The ending that says how a file is read: `.jsonl` of rows.jsonl and of rows.jsonl.gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def begins_slowly(path: Path) -> bool:
    """Whether even a file's first row costs more time than a look may: it is large, and is read as a whole."""
    return kind_of(path) in (".json", ".txt") and path.stat().st_size > LARGE_BYTES


def open_bytes(path: Path) -> BinaryIO:
    """The file's content, uncompressed."""
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path))
        case ".xz":
            return cast(BinaryIO, lzma.open(path))
        case ".zst":
            import pyarrow

            return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))
        case _:
            return path.open("rb")


def broken(path: Path, error: Exception) -> UserError:
    """The error for a compressed file that is cut off or damaged."""
    return UserError(f"{path}: cannot be uncompressed: {str(error) or 'cut off'}")


BROKEN = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)  # what a damaged file raises


def encoding_of(path: Path, given: str | None) -> str:
    """The encoding that is given, else that of the byte order mark, else UTF-8."""
    if given:
        return given
    with open_bytes(path) as handle:
        start = handle.read(4)
    return next(("utf-32" if len(mark) == 4 else "utf-16" for mark in WIDE_MARKS if start.startswith(mark)), "utf-8")


def lines(path: Path, given: str | None = None) -> Iterator[tuple[int, str, str]]:
    """Number, text and problem (empty where there is none) of each line. Lines end at line feeds alone: JSON strings
    may hold other separators. A byte that is none of the encoding is left in as a lone surrogate.
    """
    encoding = encoding_of(path, given)
    with open_bytes(path) as handle:
        if _is_wide(encoding):
            yield from _wide_lines(path, handle, encoding)
            return
        is_first = True
        for number, raw in enumerate(handle, start=1):
            try:
                text, problem = raw.decode(encoding), ""
            except UnicodeDecodeError as error:
                text = raw.decode(encoding, "surrogateescape")
                hint = likely(path, given) if is_first else ""
                is_first = False
                problem = f"{not_in(encoding)}: byte 0x{raw[error.start]:02x} at column {error.start + 1}{hint}"
            yield number, text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text, problem


def _wide_lines(path: Path, handle: BinaryIO, encoding: str) -> Iterator[tuple[int, str, str]]:
    number = 0
    try:
        for number, line in enumerate(io.TextIOWrapper(handle, encoding, newline="\n"), start=1):
            yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line, ""
    except UnicodeError as error:
        yield number + 1, "\ufffd", f"{not_in(encoding)}: {error}; the rest of the file is not read"


def whole(path: Path, given: str | None = None) -> tuple[str, str]:
    """(the text of a file, what is wrong with its encoding). See `lines`."""
    encoding = encoding_of(path, given)
    with open_bytes(path) as handle:
        raw = handle.read()
    try:
        return raw.decode(encoding).removeprefix(BYTE_ORDER_MARK), ""
    except UnicodeDecodeError as error:
        problem = f"{not_in(encoding)}: byte 0x{raw[error.start]:02x}{likely(path, given)}"
        text = "" if _is_wide(encoding) else raw.decode(encoding, "surrogateescape").removeprefix(BYTE_ORDER_MARK)
        return text, problem


def not_in(encoding: str) -> str:
    """`not UTF-8`, the kind of a bad row."""
    return f"not {encoding.upper()}"


def _is_wide(encoding: str) -> bool:
    """Whether a line feed is more than one byte."""
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def likely(path: Path, given: str | None) -> str:
    """` (it seems to be X: set encoding: X)` for a file that is not in the encoding it was read in, or nothing."""
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return ""
    with open_bytes(path) as handle:
        sample = handle.read(SAMPLE_BYTES)
    if not given and not _is_foreign(sample):
        return ""
    matches = from_bytes(sample, cp_isolation=list(LIKELY))
    names = [(match.chaos, -match.coherence, LIKELY.index(match.encoding), match.encoding) for match in matches]
    return f" (it seems to be {min(names)[3]}: set encoding: {min(names)[3]})" if names else ""


def _is_foreign(sample: bytes) -> bool:
    """Whether bytes are no UTF-8 at all, rather than UTF-8 with a few broken bytes."""
    text = sample.decode("utf-8", "surrogateescape")
    broken_bytes = sum("\udc80" <= letter <= "\udcff" for letter in text)
    return 2 <= broken_bytes > sum(not letter.isascii() for letter in text) - broken_bytes

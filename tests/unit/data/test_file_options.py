"""Files that are not plain UTF-8 CSV: encodings, delimiters, compression, saved data sets; and filters of rows."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from train.config import Config, DataConfig, SourceConfig
from train.data.sources import Place, find
from train.data.token_table import TableWriter  # noqa: F401 - its import is part of what a source needs
from train.fingerprint import bound
from zerotune.common.errors import UserError
from zerotune.data.file_options import FileOptions
from zerotune.data.files import BadRow, Row, expand, read
from zerotune.data.rows import local
from zerotune.data.saved_datasets import named

TEXTS = {
    "gb18030": "北京是哪国的首都？中国的首都是北京。今天天气怎么样，很好，适合出门散步。",
    "gbk": "北京是哪国的首都？中国的首都是北京。今天天气怎么样，很好，适合出门散步。",
    "big5": "北京是哪國的首都？中國的首都是北京。今天天氣怎麼樣，很好，適合出門散步。",
    "cp932": "日本の首都はどこですか。東京です。今日の天気はとても良いです。",
    "cp949": "한국의 수도는 어디입니까 서울입니다 오늘 날씨가 아주 좋습니다",
    "cp1251": "Столица России Москва. Какая сегодня погода? Очень хорошая.",
    "cp1252": "Où est le café? À côté de l'église. Ça va très bien “merci”",
    "cp1256": "ما هي عاصمة مصر القاهرة هي عاصمة مصر",
    "cp874": "เมืองหลวงของไทยคือกรุงเทพมหานคร",
    "utf-16": "北京 é العربية 😀",
    "utf-32": "北京 é العربية 😀",
}


def rows(path: Path, **options: Any) -> list[tuple[int, Any]]:
    return [(r.line, dict(r.value) if isinstance(r, Row) else r.reason) for r in read(path, 0, FileOptions(**options))]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def content_of(kind: str, text: str) -> tuple[str, list[tuple[int, Any]]]:
    """The text twice in a file of this kind, and what is read of it."""
    if kind == ".csv":
        return f"a,b\n{text.replace(',', ' ')},1\n\n{text.replace(',', ' ')},2\n", [
            (2, {"a": text.replace(",", " "), "b": "1"}),
            (4, {"a": text.replace(",", " "), "b": "2"}),
        ]
    if kind == ".jsonl":
        line = json.dumps({"a": text}, ensure_ascii=False)
        return f"{line}\n\n{line}\n", [(1, {"a": text}), (3, {"a": text})]
    if kind == ".json":
        line = json.dumps({"a": text}, ensure_ascii=False)
        return f"[\n{line},\n{line}]", [(2, {"a": text}), (3, {"a": text})]
    if kind == ".conll":
        return f"{text.split()[0]} O\n\n{text.split()[0]} O\n", [
            (n, {"tokens": [text.split()[0]], "tags": ["O"]}) for n in (1, 3)
        ]
    return f"{text}\n<|endoftext|>\n{text}\n", [(1, {"text": text}), (3, {"text": text})]


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json", ".txt", ".conll"])
@pytest.mark.parametrize("encoding", TEXTS)
def test_an_encoding_that_is_named_is_read_with_its_lines(tmp_path: Path, kind: str, encoding: str) -> None:
    text, wanted = content_of(kind, TEXTS[encoding])
    assert rows(written(tmp_path, f"a{kind}", text.encode(encoding)), encoding=encoding) == wanted


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json", ".txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_needs_no_option(tmp_path: Path, kind: str, encoding: str) -> None:
    text, wanted = content_of(kind, "é 北京 😀")
    assert rows(written(tmp_path, f"a{kind}", text.encode(encoding))) == wanted


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json", ".txt"])
@pytest.mark.parametrize("encoding", [e for e in TEXTS if e not in ("utf-16", "utf-32", "gbk")])
def test_a_wrong_encoding_names_the_option_and_the_likely_one_once(tmp_path: Path, kind: str, encoding: str) -> None:
    text, wanted = content_of(kind, TEXTS[encoding])
    found = rows(written(tmp_path, f"a{kind}", text.encode(encoding)))
    told = [reason for _, reason in found if isinstance(reason, str) and "set encoding" in reason]
    assert [reason.partition(" (")[2] for reason in told] == [f"it seems to be {encoding}: set encoding: {encoding})"]
    assert all(reason.startswith("not UTF-8: byte 0x") for reason in told)
    assert len(found) == len(wanted) or kind == ".csv"


def test_a_stray_byte_in_utf_8_suggests_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": "北京"}\n'.encode() + b'{"a": "\xff"}\n')
    assert rows(path)[1] == (2, "not UTF-8: byte 0xff at column 8")


def test_gb18030_read_as_big5_is_told_with_the_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"a": "ok"}\n' + '{"a": "镕喆、䶮"}'.encode("gb18030"))
    assert rows(path, encoding="utf-8")[1][1].startswith("not UTF-8: byte 0x")


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json", ".txt"])
def test_broken_utf_16_is_one_bad_row(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, f"a{kind}", '{"a": 1}\n'.encode("utf-16") + b"\x00\xdc")  # half a surrogate pair
    [(_, reason)] = [entry for entry in rows(path) if isinstance(entry[1], str)]
    assert reason.startswith("not UTF-16: ")


@pytest.mark.parametrize(("delimiter", "mark"), [(";", ";"), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), ("|", "|")])
def test_a_delimiter_is_read_as_said(tmp_path: Path, delimiter: str, mark: str) -> None:
    path = written(tmp_path, "a.csv", f'a{mark}b\n"x{mark}\n1"{mark}1,5\ny{mark}2\n')
    wanted = [(2, {"a": f"x{mark}\n1", "b": "1,5"}), (4, {"a": "y", "b": "2"})]
    assert rows(path, delimiter=delimiter) == wanted


def test_tsv_is_parted_by_tabs(tmp_path: Path) -> None:
    assert rows(written(tmp_path, "a.tsv", "a\tb\n1,2\t3\n")) == [(2, {"a": "1,2", "b": "3"})]


@pytest.mark.parametrize(("mark", "shown"), [(";", "';'"), ("\t", "tab"), ("|", "'|'")])
def test_an_unknown_delimiter_is_named_to_be_copied(tmp_path: Path, mark: str, shown: str) -> None:
    path = written(tmp_path, "a.csv", f"frage{mark}antwort\n1,5{mark}2\n")
    [(line, reason)] = rows(path)
    assert line == 1
    assert reason.endswith(f": set delimiter: {shown}")
    assert rows(path, delimiter=shown.strip("'")) == [(2, {"frage": "1,5", "antwort": "2"})]


def test_a_single_column_is_no_mistake_where_the_delimiter_is_said(tmp_path: Path) -> None:
    assert rows(written(tmp_path, "a.csv", "a;b\nx\n"), delimiter=",") == [(2, {"a;b": "x"})]


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return bytes(sink.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json", ".txt", ".conll"])
def test_compressed_text_is_read_as_plain_text(tmp_path: Path, kind: str, packed: str) -> None:
    text, wanted = content_of(kind, "北京 " * 1000)
    path = written(tmp_path, f"a{kind}{packed}", PACKERS[packed](text.encode()))
    assert rows(path) == rows(written(tmp_path, f"b{kind}", text))
    assert [line for line, _ in rows(path)] == [line for line, _ in wanted]
    assert expand(str(tmp_path)) == [path, tmp_path / f"b{kind}"]


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"no such thing" + raw])
def test_a_damaged_compressed_file_is_one_message(
    tmp_path: Path, packed: str, damage: Callable[[bytes], bytes]
) -> None:
    content = "".join(f'{{"a": "{n * 7919 % 10007}"}}\n' for n in range(20000)).encode()
    path = written(tmp_path, f"a.jsonl{packed}", damage(PACKERS[packed](content)))
    with pytest.raises(UserError, match=r"a\.jsonl.*: cannot be (uncompressed|read): "):
        list(read(path))


def test_compressed_tables_are_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        expand(str(written(tmp_path, "a.parquet.gz", b"")))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["坏", "好"])
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": label,
            "tags": datasets.List(label),
            "said": datasets.List({"by": label, "text": datasets.Value("string")}),
        }
    )
    values = [{"text": f"t{n}", "label": n % 2, "tags": [1, 0], "said": [{"by": 1, "text": "x"}]} for n in range(5)]
    table = datasets.Dataset.from_list(values, features=features)
    table.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(tmp_path / "two")
    (tmp_path / "one" / "cache-1.arrow").write_bytes(b"")
    return tmp_path


def test_a_saved_data_set_is_read_with_its_classes(saved: Path) -> None:
    found = list(local(str(saved / "one")))
    assert [row.value["text"] for row in found if isinstance(row, Row)] == [f"t{n}" for n in range(5)]
    first = found[0]
    assert isinstance(first, Row)
    assert first.value == {"text": "t0", "label": "坏", "tags": ["好", "坏"], "said": [{"by": "好", "text": "x"}]}
    assert [row.line for row in found] == [1, 2, 3, 1, 2]  # of two files
    assert [row.line for row in read(expand(str(saved / "one"))[0], 1)] == [2, 3]


def test_splits_of_a_saved_data_set(saved: Path) -> None:
    with pytest.raises(UserError, match=r"holds the splits train, test; name one: .*two/train"):
        expand(str(saved / "two"))
    assert len(list(local(str(saved / "two" / "test")))) == 2
    for split, count in (("train", 5), ("test", 2)):
        source = find(SourceConfig(str(saved / "two"), "text", split=split), "data.train[0]")
        assert len(list(source.rows())) == count
        assert source.guess_rows() == count
    with pytest.raises(UserError, match=r"data\.train\[0\]\.path: .*holds the splits train, test"):
        find(SourceConfig(str(saved / "two"), "text", split="validation"), "data.train[0]")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("{}", "does not list the data set's files"),
        ("[]", "does not list the data set's files"),
        ('{"_data_files": [{"filename": "../other.arrow"}]}', r"lists '\.\./other\.arrow'"),
        ('{"_data_files": [{"filename": "data-1.arrow"}]}', r"data-1\.arrow: .*missing"),
    ],
)
def test_a_saved_data_set_with_a_broken_state_is_refused(tmp_path: Path, state: str, said: str) -> None:
    written(tmp_path, "state.json", state.encode())
    written(tmp_path, "dataset_info.json", b"{}")
    with pytest.raises(UserError, match=said):
        expand(str(tmp_path))


@pytest.mark.parametrize("splits", ["{}", "[]", '{"splits": []}', '{"splits": 3}'])
def test_saved_splits_that_are_broken_are_refused(tmp_path: Path, splits: str) -> None:
    written(tmp_path, "dataset_dict.json", splits.encode())
    with pytest.raises(UserError, match=r"dataset_dict\.json: names no splits"):
        expand(str(tmp_path))


def test_classes_are_named_in_the_lists_of_older_versions() -> None:
    label = {"_type": "ClassLabel", "names": ["a", "b"]}
    assert named([1, 0], [label]) == ["b", "a"]
    assert named({"tag": [1, 0]}, {"_type": "Sequence", "feature": {"tag": label}}) == {"tag": ["b", "a"]}
    assert named([1], {"_type": "Sequence", "feature": label}) == ["b"]


def test_saved_data_sets_inside_a_folder_give_only_their_rows(saved: Path) -> None:
    found = [path.relative_to(saved).as_posix() for path in expand(str(saved))]
    assert sorted(found) == [
        "one/data-00000-of-00002.arrow",
        "one/data-00001-of-00002.arrow",
        "two/test/data-00000-of-00001.arrow",
        "two/train/data-00000-of-00001.arrow",
    ]


ROWS = [
    {"text": "a", "split": "train", "n": 1, "good": True},
    {"text": "b", "split": "test", "n": 2.0, "good": False},
    {"text": "c", "split": "dev", "n": None, "good": None},
    {"text": "d", "n": 1.5},
]


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        ({"split": "train"}, "a"),
        ({"split": ["train", "dev"]}, "ac"),
        ({"split": None}, "d"),
        ({"n": 1}, "a"),
        ({"n": "2"}, "b"),
        ({"n": 1.5}, "d"),
        ({"good": True}, "a"),
        ({"good": [False, None]}, "bcd"),
        ({"split": ["train", "test"], "good": False}, "b"),
    ],
)
def test_a_filter_takes_the_rows_of_its_values(tmp_path: Path, wanted: dict[str, Any], texts: str) -> None:
    path = written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    found = local(str(path), options=FileOptions(filter=wanted))
    assert "".join(row.value["text"] for row in found if isinstance(row, Row)) == texts
    source = find(SourceConfig(str(path), "text", filter=wanted), "data.train[0]")
    taken = [(row.number, row.item.line) for row in source.rows()]
    assert taken == [("abcd".index(letter), "abcd".index(letter) + 1) for letter in texts]
    after = [row.number for row in source.rows(Place(0, 2, 2))]
    assert after == [number for number, _ in taken if number >= 2]


def test_csv_knows_true_and_numbers_as_text(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,n,good\na,1,True\nb,2,False\n")
    for wanted in ({"n": 1}, {"good": True}):
        assert [r.line for r in local(str(path), options=FileOptions(filter=wanted))] == [2]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"split": "trian"}, r"no row has split: trian \(4 rows read\): `split` holds train, test, dev"),
        ({"splt": "train"}, "there is no column `splt`; the columns are text, split, n, good"),
    ],
)
def test_a_filter_that_means_no_row_says_what_there_is(tmp_path: Path, wanted: dict[str, Any], message: str) -> None:
    path = written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(UserError, match=message):
        list(local(str(path), options=FileOptions(filter=wanted)))
    source = find(SourceConfig(str(path), "text", filter=wanted), "data.train[0]")
    with pytest.raises(UserError, match=r"^data\.train\[0\]\.filter: no row has .* \(4 rows read\)"):
        list(source.rows())


def test_bad_rows_pass_a_filter(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"text": "a", "split": "x"}\n{"text": \n')
    found = list(local(str(path), options=FileOptions(filter={"split": "x"})))
    assert [isinstance(row, BadRow) for row in found] == [False, True]


def test_options_not_given_leave_fingerprints_as_they_were() -> None:
    plain = Config(data=DataConfig(train=[SourceConfig("a", "qa")]))
    before = ["path", "format", "columns", "weight", "fraction", "split", "revision"]
    assert list(bound(plain)["data.train"][0]) == before
    given = Config(data=DataConfig(train=[SourceConfig("a", "qa", encoding="gbk", filter={"a": 1})]))
    assert bound(given)["data.train"][0]["encoding"] == "gbk"

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ranks import Solo, Threads, together
from train.checkpoint import commit, manifest
from train.checkpoint import folders as checkpoint
from train.checkpoint.compatibility import CONFIG_OF, Origin
from train.config import (
    Config,
    DataConfig,
    DurationConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TuningConfig,
)
from train.errors import NoCheckpointError
from zerotune.common.errors import CannotWriteError, UserError

ORIGIN = Origin("f" * 64, {"optim.learning_rate": 1e-4, "data.train": [{"path": "a.jsonl"}]}, "ddp", 2, {"data": "d1"})


def payload(step: int, rank: int) -> bytes:
    return f"weights of rank {rank} after step {step} ".encode() * 100


def save(parent: Path, step: int, ranks: Solo | Threads | None = None, origin: Origin = ORIGIN) -> Path:
    ranks = ranks or Solo()

    def write(folder: Path) -> None:
        (folder / "shards").mkdir(exist_ok=True)
        (folder / "shards" / f"rank{ranks.index}.bin").write_bytes(payload(step, ranks.index))

    return checkpoint.commit(parent, step, write, {"step": step, "best": None}, origin, ranks)


def newest(parent: Path, origin: Origin = ORIGIN, **options: bool) -> Path | None:
    return checkpoint.newest(parent, Solo(), origin, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_commit_lists_every_file_of_every_rank(tmp_path: Path) -> None:
    folders = together(3, lambda ranks: save(tmp_path, 120, ranks))
    assert folders == [tmp_path / "step-000120"] * 3
    assert sorted(content(folders[0])) == [
        "manifest.json", "shards/rank0.bin", "shards/rank1.bin", "shards/rank2.bin", "state.json",
    ]  # fmt: skip
    assert commit.names_in(tmp_path) == ["step-000120"]
    listed = manifest.read(folders[0])
    assert listed["step"] == 120
    assert listed["world_size"] == 2
    assert listed["files"]["shards/rank2.bin"]["bytes"] == len(payload(120, 2))
    assert listed["versions"]["torch"]
    assert checkpoint.read_state(folders[0]) == {"step": 120, "best": None}
    assert together(2, lambda ranks: checkpoint.newest(tmp_path, ranks, ORIGIN)) == folders[:2]


def test_no_checkpoints_is_a_fresh_start(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") is None
    assert newest(tmp_path) is None


def test_newest_goes_by_step_never_by_time(tmp_path: Path) -> None:
    for step in (20, 1_000_000, 3):
        save(tmp_path, step)
    for age, step in enumerate((3, 20, 1_000_000)):
        os.utime(checkpoint.folder_of(tmp_path, step), (1e9 - age * 1e6, 1e9 - age * 1e6))
    assert newest(tmp_path) == tmp_path / "step-1000000"
    assert checkpoint.steps(tmp_path) == [3, 20, 1_000_000]


def test_leftovers_of_interrupted_saves_are_removed_and_never_loaded(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in ("step-000002.tmp", ".trash-step-000000"):
        shutil.copytree(tmp_path / "step-000001", tmp_path / name)
    (tmp_path / "step-000003.mine").mkdir()
    assert newest(tmp_path) == tmp_path / "step-000001"
    assert sorted(commit.names_in(tmp_path)) == ["step-000001", "step-000003.mine"]


def rewrite_manifest(folder: Path, **changes: object) -> None:
    body = manifest.read(folder) | changes
    (folder / manifest.NAME).write_text(json.dumps({**body, "sha256": manifest._digest(body)}))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def turn_into_link(path: Path) -> None:
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def replace(folder: Path, by: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(by, folder)


FIRST = Path("shards", "rank0.bin")
DAMAGES = {
    "truncated": (lambda f: os.truncate(f / FIRST, 10), "shards/rank0.bin: 10 bytes"),
    "longer": (lambda f: (f / FIRST).write_bytes(payload(2, 0) + b"x"), "shards/rank0.bin"),
    "one bit": (lambda f: flip_a_bit(f / FIRST), "shards/rank0.bin: sha256"),
    "tail zeroed": (lambda f: (f / FIRST).write_bytes(payload(2, 0)[:-9] + bytes(9)), "shards/rank0.bin: sha256"),
    "file gone": (lambda f: (f / FIRST).unlink(), "shards/rank0.bin: missing"),
    "state changed": (lambda f: flip_a_bit(f / "state.json"), "state.json: sha256"),
    "stranger": (lambda f: (f / "shards" / "evil.pt").write_bytes(b"x"), "shards/evil.pt: not in the manifest"),
    "nested manifest": (lambda f: (f / "shards" / "manifest.json").write_text("{}"), "shards/manifest.json: not in"),
    "link": (lambda f: turn_into_link(f / FIRST), "shards/rank0.bin: not a regular file"),
    "manifest empty": (lambda f: (f / manifest.NAME).write_text(""), "manifest.json: damaged"),
    "manifest gone": (lambda f: (f / manifest.NAME).unlink(), "manifest.json: cannot be read"),
    "manifest bit": (lambda f: flip_a_bit(f / manifest.NAME), "manifest.json"),
    "manifest no object": (lambda f: (f / manifest.NAME).write_text("[1]"), "manifest.json: damaged"),
    "manifest future": (lambda f: rewrite_manifest(f, format=2), "manifest.json: format 2"),
    "another step's": (lambda f: replace(f, f.with_name("step-000001")), "manifest.json: belongs to step 1"),
    "another run's": (lambda f: rewrite_manifest(f, world_size=9, files={}), "shards/rank0.bin: not in the manifest"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_falls_back_to_the_older_one_on_all_ranks(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        together(2, lambda ranks, step=step: save(tmp_path, step, ranks))
    hurt, words = DAMAGES[damage]
    hurt(tmp_path / "step-000002")
    with caplog.at_level(logging.WARNING):
        found = together(2, lambda ranks: checkpoint.newest(tmp_path, ranks, ORIGIN))
    assert found == [tmp_path / "step-000001"] * 2
    assert (tmp_path / "corrupt-step-000002").is_dir()
    refusals = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert len(refusals) == 1
    assert words in refusals[0]
    assert "step-000002" in refusals[0]


def test_every_rank_counts_even_where_only_one_sees_the_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        together(2, lambda ranks, step=step: save(tmp_path, step, ranks))
    flip_a_bit(tmp_path / "step-000002" / "shards" / "rank1.bin")

    # Two ranks of one node share the hashing: each alone sees only its half of the files.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    halves = [manifest.verify(tmp_path / "step-000002", "sha256", index, 2) for index in (0, 1)]
    assert sorted(reason is None for reason in halves) == [False, True]
    real = manifest.verify
    monkeypatch.setattr(
        manifest, "verify", lambda folder, check, index, count: real(folder, check, rank_of_thread(), count)
    )
    local: dict[int, int] = {}

    def rank_of_thread() -> int:
        import threading

        return local[threading.get_ident()]

    def find(ranks: Threads) -> Path | None:
        import threading

        local[threading.get_ident()] = ranks.index
        return checkpoint.newest(tmp_path, ranks, ORIGIN)

    assert together(2, find) == [tmp_path / "step-000001"] * 2


def test_size_check_alone_trusts_the_bytes(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip_a_bit(tmp_path / "step-000001" / FIRST)
    assert checkpoint.newest(tmp_path, Solo(), ORIGIN, "size") == tmp_path / "step-000001"
    with pytest.raises(NoCheckpointError):
        newest(tmp_path)


def test_all_bad_means_exit_66_and_nothing_touched(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
        os.truncate(tmp_path / f"step-{step:06d}" / FIRST, 5)
    before = content(tmp_path)
    failures = together(2, lambda ranks: checkpoint.newest(tmp_path, ranks, ORIGIN))
    assert [type(failure) for failure in failures] == [NoCheckpointError] * 2
    assert failures[0].exit_code == 66
    assert "3 checkpoints" in str(failures[0])
    assert content(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    os.chown(tmp_path / "step-000001" / FIRST, 4242, -1)
    assert "belongs to user 4242" in str(manifest.verify(tmp_path / "step-000001"))


def test_a_link_in_place_of_a_checkpoint_is_no_silent_fresh_start(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-000001").symlink_to(tmp_path / "elsewhere" / "step-000001")
    with pytest.raises(NoCheckpointError):
        newest(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"config": {**ORIGIN.config, "optim.learning_rate": 3e-4}, "fingerprint": "0" * 64},
            "optim.learning_rate: 0.0001 in the checkpoint, 0.0003 now",
        ),
        (
            {"config": {**ORIGIN.config, "optim.beta1": 0.8}, "fingerprint": "0" * 64},
            "optim.beta1: 0.9 in the checkpoint, 0.8 now",
        ),
        ({"distributed": "zero-2"}, "sharding: ddp in the checkpoint, zero-2 now"),
        ({"digests": {"data": "d2"}}, 'data: digest "d1" in the checkpoint, "d2" now'),
    ],
)  # fmt: skip
def test_another_run_is_refused_naming_what_differs(change: dict[str, object], words: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = content(tmp_path)
    failures = together(2, lambda ranks: checkpoint.newest(tmp_path, ranks, dataclasses.replace(ORIGIN, **change)))
    for failure in failures:
        assert type(failure) is UserError
        assert words in str(failure)
        assert "run.folder" in str(failure)
    assert content(tmp_path) == before


def test_a_digest_that_earlier_versions_did_not_keep_is_no_difference(tmp_path: Path) -> None:
    save(tmp_path, 1)
    name = CONFIG_OF + "the base model"
    later = dataclasses.replace(ORIGIN, digests={**ORIGIN.digests, name: "c1"})
    assert later.differences(manifest.read(tmp_path / "step-000001")) == []
    kept = manifest.read(tmp_path / "step-000001") | {"digests": {**ORIGIN.digests, name: "c2"}}
    assert later.differences(kept) == [f'{name}: digest "c2" in the checkpoint, "c1" now']


@pytest.mark.parametrize(
    ("kind", "other"), [("ddp", "single"), ("zero-1", "zero-3"), ("zero-3", "zero-3"), ("fsdp", "fsdp")]
)
def test_another_number_of_processes_reads_it_and_says_so(
    kind: str, other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, origin=dataclasses.replace(ORIGIN, distributed=kind))
    assert newest(tmp_path, dataclasses.replace(ORIGIN, distributed=kind)) == tmp_path / "step-000001"
    assert "written by" not in caplog.text
    now = dataclasses.replace(ORIGIN, distributed=other, world_size=1)
    assert newest(tmp_path, now) == tmp_path / "step-000001"
    assert f"written by {ORIGIN.world_size} processes ({kind}), now 1 process ({other})" in caplog.text


def test_origin_leaves_out_what_changes_no_number() -> None:
    base, moved = Config(), Config(run=RunConfig(folder="elsewhere", stop_after_minutes=3.0))
    assert Origin.of(base, "single", 1) == Origin.of(moved, "single", 1)
    other = Config(optim=OptimConfig(learning_rate=0.5))
    saved = manifest.build(Origin.of(base, "single", 1), 1, {})
    assert Origin.of(other, "single", 1).differences(json.loads(json.dumps(saved))) == [
        f"optim.learning_rate: {OptimConfig().learning_rate} in the checkpoint, 0.5 now"
    ]


def saved_by(config: Config, **digests: str) -> dict[str, object]:
    """The manifest of a checkpoint, as it is read back."""
    built = manifest.build(Origin.of(config, "single", 1, digests), 1, {})
    return dict(json.loads(json.dumps(built)))


def test_a_checkpoint_of_before_has_the_defaults_of_newer_keys() -> None:
    """Keys, fields of a source and digests come with versions of the program."""
    config = Config(data=DataConfig(train=[SourceConfig("a.jsonl", "qa")]))
    old = saved_by(config, data="d")
    kept = {k: v for k, v in old["config"].items() if not k.startswith(("ppo.", "head.", "optim.spike"))}  # type: ignore[attr-defined]
    kept["data.train"] = [{"path": "a.jsonl", "format": "qa", "weight": 1.0}]
    old |= {"config": kept, "fingerprint": "0" * 64}
    assert Origin.of(config, "single", 1, {"data": "d", "of another kind": "x"}).differences(old) == []
    changed = dataclasses.replace(config, optim=OptimConfig(spike_factor=3.0))
    assert Origin.of(changed, "single", 1, {"data": "d"}).differences(old) == [
        "optim.spike_factor: null in the checkpoint, 3.0 now"
    ]


def test_places_are_not_compared_and_what_else_a_source_says_is() -> None:
    here = Config(
        model=ModelConfig(path="a", tokenizer="t"), data=DataConfig(train=[SourceConfig("a.jsonl", "qa", weight=2.0)])
    )
    there = Config(
        model=ModelConfig(path="/b", revision="main"),
        data=DataConfig(train=[SourceConfig("/elsewhere/数据.jsonl", "qa", weight=2.0)]),
    )
    assert Origin.of(there, "single", 1).differences(saved_by(here)) == []
    other = dataclasses.replace(there, data=DataConfig(train=[SourceConfig("a.jsonl", "qa", weight=3.0)]))
    (line,) = Origin.of(other, "single", 1).differences(saved_by(here))
    assert line.startswith("data.train: ")


def test_keys_that_only_one_of_two_runs_uses_are_not_listed() -> None:
    lora = Config(tuning=TuningConfig(kind="lora"))
    assert Origin.of(Config(), "single", 1).differences(saved_by(lora)) == [
        'tuning.kind: "lora" in the checkpoint, "full" now'
    ]


def test_what_may_change_with_the_end() -> None:
    before = saved_by(Config(duration=DurationConfig(max_epochs=1)), data="d")

    def now(digest: str = "d", beta: float = 0.9) -> Origin:
        later = DurationConfig(max_epochs=3)
        config = Config(run=RunConfig(extend=True), duration=later, optim=OptimConfig(learning_rate=1e-5, beta1=beta))
        return Origin.of(config, "single", 1, {"data": digest})

    assert now().differences(before) == []
    assert len(now(beta=0.5).differences(before)) == 3
    assert len(now(digest="e").differences(before)) == 3


def test_other_versions_are_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "versions", lambda: {"torch": "99.0"})
    together(2, lambda ranks: checkpoint.newest(tmp_path, ranks, ORIGIN))
    assert [r.getMessage() for r in caplog.records if "-> 99.0" in r.getMessage()]
    assert len(caplog.records) == 1


FAILURES = {
    "disk full": OSError(errno.ENOSPC, "No space left on device"),
    "torch": RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 704 vs 598"),
    "safetensors": ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_rank_that_cannot_write_stops_all_of_them(failure: Exception, failing: int, tmp_path: Path) -> None:
    together(2, lambda ranks: save(tmp_path, 1, ranks))
    before = content(tmp_path)

    def attempt(ranks: Threads) -> Path:
        def write(folder: Path) -> None:
            (folder / f"rank{ranks.index}").write_bytes(b"half")
            if ranks.index == failing:
                raise failure

        return checkpoint.commit(tmp_path, 2, write, {}, ORIGIN, ranks)

    outcomes = together(2, attempt)
    assert [type(outcome) for outcome in outcomes] == [CannotWriteError] * 2
    assert outcomes[0].exit_code == 73
    assert "step-000002" in str(outcomes[failing])
    assert str(failure) in str(outcomes[failing])
    assert "bytes are free" in str(outcomes[1 - failing])
    assert content(tmp_path) == before
    assert commit.names_in(tmp_path) == ["step-000001"]


def test_other_errors_keep_their_type_and_strand_nobody(tmp_path: Path) -> None:
    def attempt(ranks: Threads) -> Path:
        def write(folder: Path) -> None:
            if ranks.index == 1:
                raise KeyError("lost")

        return checkpoint.commit(tmp_path, 2, write, {}, ORIGIN, ranks)

    outcomes = together(2, attempt)
    assert [type(outcome) for outcome in outcomes] == [RuntimeError, KeyError]
    assert "rank 1" in str(outcomes[0])
    assert commit.names_in(tmp_path) == []


@pytest.mark.parametrize("expected", [10_000, None])
def test_space_is_looked_at_before_anything_is_written(
    expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together(2, lambda ranks: save(tmp_path, 1, ranks))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(commit.shutil, "disk_usage", lambda path: usage(1 << 20, 1 << 20, 5_000))
    asked: list[int] = []

    def attempt(ranks: Threads) -> Path:
        return checkpoint.commit(tmp_path, 2, lambda folder: asked.append(1), {}, ORIGIN, ranks, expected)

    outcomes = together(2, attempt)
    assert [type(outcome) for outcome in outcomes] == [CannotWriteError] * 2
    assert "5,000" in str(outcomes[0])
    assert not asked
    assert commit.names_in(tmp_path) == ["step-000001"]


def test_saving_a_step_again_keeps_the_finished_one_but_not_a_damaged_one(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    before = content(folder)
    assert checkpoint.commit(tmp_path, 1, lambda f: pytest.fail("must not write"), {}, ORIGIN, Solo()) == folder
    assert content(folder) == before
    os.truncate(folder / FIRST, 3)
    save(tmp_path, 1)
    assert content(folder) == before
    assert (tmp_path / "corrupt-step-000001").is_dir()


@given(steps=st.sets(st.integers(0, 30), min_size=1), keep=st.integers(0, 5), best=st.none() | st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_prune_keeps_the_newest_and_the_best(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], keep: int, best: int | None
) -> None:
    parent = tmp_path_factory.mktemp("run")
    for step in steps:
        checkpoint.folder_of(parent, step).mkdir()
    checkpoint.prune(parent, keep, best, Solo())
    kept = set(checkpoint.steps(parent))
    assert kept == set(sorted(steps)[-max(keep, 1) :]) | ({best} & steps)
    assert not [name for name in commit.names_in(parent) if name.startswith(".trash")]


def test_prune_survives_what_cannot_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / ".trash-step-000001").mkdir()
    (tmp_path / ".trash-step-000001" / "busy").write_text("")
    checkpoint.prune(tmp_path, 1, None, Solo())
    assert "cannot remove" in caplog.text
    assert newest(tmp_path) == tmp_path / "step-000002"

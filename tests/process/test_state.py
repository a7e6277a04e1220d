"""What a checkpoint promises of weights and optimizer, on two real ranks, for every way they can be spread."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from tests.support.training_runs import in_session

CASES = (
    "ddp qwen2 full adamw fp32",
    "ddp llama lora adamw fp32",
    "ddp qwen2 full adamw_8bit fp32",
    "zero-1 qwen2 full adamw fp32",
    "zero-2 qwen2 lora adamw fp32",
    "zero-2 llama full adamw bf16",
    "zero-2 qwen2 full adamw_8bit fp32",
    "zero-3 qwen2 full adamw fp32",
    "zero-3 qwen2 lora adamw fp32",
    "zero-3 qwen2 full adamw bf16",
    "fsdp qwen2 full adamw fp32",
    "fsdp llama lora adamw fp32",
    "ddp qwen2 full adamw scaled",
    "fsdp qwen2 full adamw scaled",
)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("state")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.support.state_cases"]
    drop = ("ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(drop)} | {"OMP_NUM_THREADS": "1"}
    code, output = in_session([sys.executable, *launch, str(folder), *CASES], environment, 570)
    if code:
        print(output[-8000:])
    found = {name: [folder / f"{name} rank {rank}.json" for rank in (0, 1)] for name in CASES}
    return {name: [json.loads(p.read_text()) for p in paths if p.exists()] for name, paths in found.items()}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ranks(case: str, outcomes: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    results = outcomes[case]
    assert len(results) == 2, "a rank left no result; its output is above"
    for result in results:
        assert "error" not in result, result["error"]
    return results


def test_resumed_training_is_bitwise_the_same(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["parameters"] > 10
        assert result["fresh_differs"] >= result["parameters"] // 2  # or there would be nothing to load
        assert result["loading_differs"] == []
        assert result["losses_again"] == result["losses"]
        assert len(set(result["losses"])) == 3
        assert result["final_differs"] == []


def test_saving_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["saving_changed"] == []


def test_a_copy_written_while_training_goes_on_is_the_same_checkpoint(case: str, ranks: list[dict[str, Any]]) -> None:
    """File by file, to the last bit."""
    index = {"fsdp/.metadata"} if case.startswith("fsdp") else set()  # torch puts a random name and the path into it
    for result in ranks:
        assert {name for name, _ in result["asynchronous_differs"]} == index


def test_consolidated_weights_are_the_live_ones(ranks: list[dict[str, Any]]) -> None:
    """Also that tied weights come once, frozen ones not at all, and no shard is empty or left out."""
    for result in ranks:
        assert result["consolidated_differs"] == []


def test_nothing_is_written_but_the_checkpoint(case: str, ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["beside"] == ["step-000003"]
        names = set(result["files"])
        assert not [name for name in names if "latest" in name or name.endswith((".py", ".pkl", ".bin"))]
        kinds = {name.split("/")[0] for name in names} - {"manifest.json", "state.json"}
        if case.startswith("zero"):
            assert kinds == {"deepspeed", "deepspeed.json"}
        elif case.startswith("fsdp"):
            assert kinds == {"fsdp"}
        else:
            assert kinds == {"model.safetensors", "optimizer.safetensors", "optimizer.json"}


def test_frozen_weights_are_not_stored(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for full, lora in (
        ("zero-3 qwen2 full adamw fp32", "zero-3 qwen2 lora adamw fp32"),
        ("ddp qwen2 full adamw fp32", "ddp llama lora adamw fp32"),
    ):
        sizes = [sum(outcomes[name][0]["files"].values()) for name in (full, lora)]
        assert sizes[1] < sizes[0] / 3


def test_its_size_is_known_before_it_is_written(ranks: list[dict[str, Any]]) -> None:
    """A run must neither refuse a disk with room to spare nor begin what cannot fit."""
    for result in ranks:
        size = sum(result["files"].values())
        assert abs(size - result["expected_bytes"]) < 60_000  # names, shapes, what the formats add


def test_a_full_disk_stops_all_ranks_and_leaves_nothing(case: str, ranks: list[dict[str, Any]]) -> None:
    if " full " not in case:
        pytest.skip("asked of the full tunings only")
    for result in ranks:
        assert result["disk_full"].startswith("CannotWriteError: Cannot write the checkpoint ")
        assert "step-000006" in result["disk_full"]
        assert "bytes are free" in result["disk_full"]


def test_a_pickle_that_runs_code_is_not_loaded(case: str, ranks: list[dict[str, Any]]) -> None:
    if not case.startswith(("zero-2", "zero-3", "fsdp")):
        pytest.skip("no pickle in such a checkpoint")
    for result in ranks:
        evil = result["evil"]
        assert evil["file"] in evil["verified"]  # first line of defence: the manifest
        assert evil["messages"]
        for message in evil["messages"]:  # second: even where the manifest was forged too
            assert message.startswith("UserError: ")
            assert "is refused" in message
        assert not evil["canary"]

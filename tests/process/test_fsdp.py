"""FSDP2. Through Accelerate it needs GPUs (tests/gpu); the wrapping itself is proved on two gloo ranks."""

from __future__ import annotations

import subprocess

from tests.support.training_runs import BIN, ROOT, arguments, environment, launch, write_rows


def test_sharded_gradients_equal_those_of_one_rank():
    start = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone", "-m", "tests.support.fsdp_worker"]
    done = subprocess.run(start, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for tied in (True, False):
        assert f"equal tied={tied}" in done.stdout
        assert f"float32 sums tied={tied}" in done.stdout
    assert "generates tied=True adapted=False" in done.stdout
    assert "generates tied=False adapted=True" in done.stdout


def test_fsdp_on_a_cpu_is_refused(tmp_path):
    done = launch(arguments(tmp_path / "run", write_rows(tmp_path)), "fsdp2", ranks=2)
    assert done.returncode != 0
    assert "FSDP needs GPUs" in done.stderr
    assert "Traceback" not in done.stderr.split("FSDP needs GPUs")[0]

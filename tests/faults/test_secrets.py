"""F17: the value of a secret environment variable stands in nothing that a run writes, whether it ends well or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process.runs import arguments, launch, write_rows

CANARY = "canary-5f21c8"


@pytest.mark.parametrize("crash", [False, True])
def test_no_secret_in_files_or_output(tmp_path: Path, crash: bool) -> None:
    rows = write_rows(tmp_path)
    options: dict[str, object] = {"watch__tensorboard": "true", "duration__max_steps": 2}
    if crash:  # the message names what was not found
        options["model__path"] = f"no/such/{CANARY}/model"
    done = launch(arguments(tmp_path / "run", rows, **options), HF_TOKEN=CANARY)
    assert (done.returncode != 0) == crash, done.stderr
    assert CANARY not in done.stdout + done.stderr
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "config.yaml"]
    assert "status.json" in {path.name for path in written}
    for path in written:
        assert CANARY.encode() not in path.read_bytes(), path
    assert not (Path.cwd() / ".deepspeed_env").exists()

"""DeepSpeed's operator for CPU ranks: a build that was killed must not hang the runs that come after it."""

from __future__ import annotations

from tests.support.training_runs import arguments, launch, write_rows


def test_a_lock_left_by_a_killed_build_is_taken_away(tmp_path):
    from train.engine.deepspeed_ops import build_for_cpu, folder

    build_for_cpu()
    left_over = next(folder().glob("*/*.so")).with_name("lock")
    left_over.touch()
    words = arguments(tmp_path / "run", write_rows(tmp_path), duration__max_steps=1)
    done = launch(words, "zero2", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not left_over.exists()


def test_without_a_compiler_one_message_says_what_to_do(tmp_path):
    words = arguments(tmp_path / "run", write_rows(tmp_path), duration__max_steps=1)
    done = launch(words, "zero2", ranks=2, TORCH_EXTENSIONS_DIR=str(tmp_path / "empty"), CXX="/nonexistent/c++")
    assert done.returncode != 0
    assert "C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr.partition("C++ compiler")[0]

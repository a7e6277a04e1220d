"""What a long evaluation says where no terminal shows a bar."""

from __future__ import annotations

from eval.cached_model import log_progress


def test_a_line_now_and_then_says_how_far_it_is() -> None:
    said: list[str] = []
    now = iter([0.0, 10.0, 61.0, 62.0, 125.0])
    on_answer = log_progress(60.0, "model: qa", 400, said.append, lambda: next(now))
    for _ in range(4):
        on_answer()
    assert said == ["model: qa: 2 of 400 answered, 61 s", "model: qa: 4 of 400 answered, 125 s"]

"""What run.json says of a checkpoint, and the report's table of it: shares, epochs, and nothing that is not known."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eval.report import markdown, sheets, show
from eval.report.html import page
from tests.support.eval_results import evaluation
from zerotune.models.run_facts import RunFacts, read_run_facts

FACTS: dict[str, Any] = {
    "parameters": {"trained": 1_855_499, "total": 355_894_283},
    "total_steps": 1200,
    "merge": {"step": 600},
    "config": {
        "run": {"folder": "runs/bionlp-ner"},
        "duration": {"max_epochs": 10.0, "max_steps": None, "max_tokens": None},
        "data": {"train": [{"path": "a", "fraction": 0.9}, {"path": "b", "fraction": 0.9}]},
    },
}
KNOWN = RunFacts("bionlp-ner", 600, 1_855_499, 355_894_283, epochs=5.0, data_share=0.9)


def read(folder: Path, facts: object) -> RunFacts | None:
    (folder / "run.json").write_text(json.dumps(facts))
    return read_run_facts(folder)


def config(**sections: Any) -> dict[str, Any]:
    return {**FACTS, "config": {**FACTS["config"], **sections}}


def test_what_a_merged_checkpoint_says(tmp_path: Path) -> None:
    assert read_run_facts(tmp_path) is None
    assert read(tmp_path, FACTS) == KNOWN


@pytest.mark.parametrize(
    ("facts", "change"),
    [
        (config(duration={"max_epochs": 10, "max_steps": 1200}), {"epochs": None}),
        (config(duration={"max_epochs": None}), {"epochs": None}),
        ({**FACTS, "total_steps": None}, {"epochs": None}),
        (config(data={"train": [{"fraction": 0.9}, {"fraction": 1.0}]}), {"data_share": None}),
        (config(data={"train": []}), {"data_share": None}),
        ({**FACTS, "parameters": {"trained": 3}}, {"trained": None, "total": None}),
        ({**FACTS, "parameters": {"trained": 3, "total": 0}}, {"trained": None, "total": None}),
    ],
)
def test_what_is_not_known_is_not_made_up(tmp_path: Path, facts: object, change: dict[str, None]) -> None:
    assert read(tmp_path, facts) == dataclasses.replace(KNOWN, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("facts", [[], {}, {"merge": 3, "config": []}, {**FACTS, "merge": {"step": "6"}}])
def test_other_files_of_that_name_say_nothing(tmp_path: Path, facts: object) -> None:
    assert read(tmp_path, facts) is None


def test_the_report_has_a_table_of_it() -> None:
    found = evaluation(("base", "epoch-5"))
    assert "Training" not in [sheet.title for sheet in sheets.summary(found.result)]
    base, tuned = found.result.models
    models = [base, dataclasses.replace(tuned, origin=KNOWN)]
    found = dataclasses.replace(found, result=dataclasses.replace(found.result, models=models))
    first = sheets.summary(found.result)[0]
    assert [[cell.text for cell in row] for row in first.rows] == [
        ["base", "", "", "", "", ""],
        ["epoch-5", "1,855,499 of 355,894,283", "0.52 %", "600", "5", "90.0 %"],
    ]
    assert "| epoch-5 | 1,855,499 of 355,894,283 | 0.52 % | 600 | 5 | 90.0 % |" in markdown(found)
    assert '<td data-value="1855499.0" class="number">1,855,499 of 355,894,283</td>' in page(found)
    screen = io.StringIO()
    show(found.result, Console(file=screen, width=80))
    assert "0.52 %" in screen.getvalue()
    assert json.loads(found.result.to_json())["models"][1]["origin"] == dataclasses.asdict(KNOWN)


def test_a_trial_is_called_by_its_study_and_number(tmp_path: Path) -> None:
    found = read(tmp_path, config(run={"folder": "runs/search-lstm/trials/0003"}))
    assert found is not None
    assert found.run == "search-lstm/0003"

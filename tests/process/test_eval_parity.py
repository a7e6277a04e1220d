"""Prompts, log-probabilities, choices, answers and scores equal lm-evaluation-harness's on real weights in fp32.

It runs where the harness's environment (`python benchmarks/peer.py lm-eval`), the weights (`python
examples/get_smollm2.py`) and the data are; nothing is fetched here.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from benchmarks import lm_eval_tasks
from benchmarks.lm_eval_tasks import Job
from benchmarks.peer import ready
from eval.config import parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from eval.protocols import Sample
from eval.tasks import cmmlu, gsm8k, gsm8k_cot
from zerotune.data.rows import load, local
from zerotune.inference.requests import Generated

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
SUBJECTS = ("agronomy", "high_school_physics")
QUESTIONS, NEW_TOKENS = 10, 96
PROBLEMS = (0, 1, 2, 3, 397, 556)  # rows of GSM8K's test file; the model solves the last two
OUTPUTS = [
    " 16-7=9\n#### 9",
    "#### -9",
    "#### 1,234.50.",
    "#### $9",
    "####9",
    "so 7 and $8.",
    "It costs $1,200.",
    "nothing",
    "",
    "#### 9 or #### 10",
    "9.",
    "1.5.2",
    "-3",
    "--3",
    "٣ ３",
    "9 %",
    "A\n#### 9\nQ",
    "...",
]
SCORES_OF = """
import json, sys
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter
import yaml
settings = yaml.safe_load(open(sys.argv[1]))
outputs, gold = json.loads(sys.argv[2])
kept = ("ignore_case", "ignore_punctuation", "regexes_to_ignore")
options = {key: value for key, value in settings["metric_list"][0].items() if key in kept}
found = []
for entry in settings["filter_list"]:
    arguments = {key: value for key, value in entry["filter"][0].items() if key != "function"}
    said = RegexFilter(**arguments).apply([[text] for text in outputs], [{}] * len(outputs))
    found.append([float(exact_match_hf_evaluate([one[0]], [gold], **options)["exact_match"]) for one in said])
print(json.dumps(found))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def peer() -> Path:
    python = ready("lm-eval")
    if python is None:
        pytest.skip("lm-evaluation-harness is not installed: python benchmarks/peer.py lm-eval")
    return python


@pytest.fixture(scope="module")
def package(peer: Path) -> Path:
    return next((peer.parent.parent / "lib").glob("python*/site-packages/lm_eval"))


@pytest.fixture(scope="module")
def jobs(package: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    root = tmp_path_factory.mktemp("parity")
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    return {
        "cmmlu": lm_eval_tasks.cmmlu(root / "cmmlu", shared_data / "cmmlu", package, SUBJECTS, QUESTIONS),
        "gsm8k": lm_eval_tasks.gsm8k(root / "gsm8k", shared_data / "gsm8k", package, PROBLEMS, NEW_TOKENS),
        "perplexity": lm_eval_tasks.perplexity(root / "perplexity", text, 2, "<|im_start|>", (500, 1500)),
    }


@pytest.fixture(scope="module")
def theirs(peer: Path, jobs: dict[str, Job]) -> Any:
    """What the harness says of all three, from one process."""
    if not (MODEL / "config.json").is_file():
        pytest.skip("the real weights are not there: python examples/get_smollm2.py")
    root = jobs["cmmlu"].folder.parent
    names = ",".join(name for job in jobs.values() for name in job.theirs)
    options = {
        "model": MODEL,
        "folder": root,
        "tasks": names,
        "batch_size": 4,
        "dtype": "float32",
        "out": root / "o.json",
    }
    command = [str(peer), str(ROOT / "benchmarks" / "lm_eval_worker.py")]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "o.json").read_text(encoding="utf-8"))


def ours(job: Job) -> list[Sample]:
    words = ["--model", MODEL, "--tasks", job.ours, "--data", job.data, "--precision", "fp32"]
    out = ["--max_new_tokens", NEW_TOKENS, "--out", job.folder / "out"]
    found = evaluate(parse([str(word) for word in (*words, *out)]), Ranks(0, 1, torch.device("cpu")))
    return list(found.samples[job.ours][MODEL.name])


def test_cmmlu(theirs: Any, jobs: dict[str, Job]) -> None:
    samples = ours(jobs["cmmlu"])
    asked = cmmlu.arrange(load(local(str(jobs["cmmlu"].data)), cmmlu.load), cmmlu.SHOTS)
    assert len(samples) == len(SUBJECTS) * QUESTIONS
    for subject in SUBJECTS:
        rows = theirs["samples"][f"rows_cmmlu_{subject}"]
        own = [(q, s) for q, s in zip(asked, samples, strict=True) if q.subject == subject]
        for row, (question, sample) in zip(rows, own, strict=True):
            assert [argument[0] for argument in row["arguments"]] == [question.context + question.text] * 4
            log_probs = [answer[0][0] for answer in row["resps"]]
            assert list(sample.shown["log_probs"].values()) == pytest.approx(log_probs, abs=2e-3)
            assert sample.shown["chosen"] == "ABCD"[log_probs.index(max(log_probs))]
            assert sample.values["accuracy"] == row["acc"]
        accuracy = theirs["results"][f"rows_cmmlu_{subject}"]["acc,none"]
        assert fmean(sample.values["accuracy"] for _, sample in own) == pytest.approx(accuracy)
    assert {sample.values["accuracy"] for sample in samples} == {0.0, 1.0}  # all alike would show little


def test_gsm8k(theirs: Any, jobs: dict[str, Job]) -> None:
    samples = ours(jobs["gsm8k"])
    asked = gsm8k_cot.arrange(load(local(str(jobs["gsm8k"].data)), gsm8k_cot.load))
    rows = theirs["samples"]["rows_gsm8k"]
    for matched, name, extracted in (
        ("strict-match", "strict_match", gsm8k_cot.strict_answer),
        ("flexible-extract", "flexible_match", gsm8k_cot.flexible_answer),
    ):
        own = [row for row in rows if row["filter"] == matched]
        assert len(own) == len(PROBLEMS)
        for row, question, sample in zip(own, asked, samples, strict=True):
            assert row["arguments"][0][0] == f"{question.examples}Question: {question.problem.question}\nAnswer:"
            assert sample.shown["output"] == row["resps"][0][0]
            assert extracted(sample.shown["output"]) == row["filtered_resps"][0]
            assert sample.values[name] == row["exact_match"]
        accuracy = theirs["results"]["rows_gsm8k"][f"exact_match,{matched}"]
        assert fmean(sample.values[name] for sample in samples) == pytest.approx(accuracy)
        assert 0 < accuracy < 1


def test_perplexity(theirs: Any, jobs: dict[str, Job]) -> None:
    samples = ours(jobs["perplexity"])
    assert len(samples) == 2
    for row, sample in zip(theirs["samples"]["rows_perplexity"], samples, strict=True):
        assert -sample.values["nll"] == pytest.approx(row["resps"][0][0], rel=1e-5)


def test_matches_of_any_text(peer: Path, package: Path) -> None:
    """The harness's own patterns and normalisation, over texts that try them."""
    command = [str(peer), "-c", SCORES_OF, str(package / "tasks" / "gsm8k" / "gsm8k.yaml")]
    for gold in ("9", "1,234.50", "-3", "8", "1200"):
        solution = f"so <<9=9>>9\n#### {gold}"
        done = subprocess.run([*command, json.dumps([OUTPUTS, solution])], capture_output=True, text=True, check=True)
        strict, flexible = json.loads(done.stdout.splitlines()[-1])
        question = gsm8k_cot.FewShotItem(gsm8k.Problem("x:1", "q", solution, gold, "test"), "")
        scored = [gsm8k_cot.score(question, [Generated(text)]).values for text in OUTPUTS]
        assert [values["strict_match"] for values in scored] == strict
        assert [values["flexible_match"] for values in scored] == flexible

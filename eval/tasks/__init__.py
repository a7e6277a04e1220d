"""The registry of tasks. To add a task, write a file with a `TASK` and add a line here."""

from __future__ import annotations

from typing import Any

from eval.protocols import Task
from eval.tasks import (
    bleu,
    classification,
    cmmlu,
    dialogue,
    gsm8k,
    gsm8k_cot,
    numeric,
    perplexity,
    qa,
    reward_model,
    rouge,
    samples,
    scienceqa,
    sequence_classification,
    token_classification,
)

TASKS: dict[str, Task[Any]] = {
    task.name: task
    for task in (
        perplexity.TASK,
        qa.TASK,
        dialogue.TASK,
        rouge.TASK,
        bleu.TASK,
        samples.TASK,
        classification.TASK,
        classification.GENERATION,
        token_classification.TASK,
        sequence_classification.TASK,
        sequence_classification.REGRESSION,
        reward_model.TASK,
        cmmlu.TASK,
        cmmlu.ZERO_SHOT,
        cmmlu.GENERATION,
        gsm8k.TASK,
        gsm8k.CALCULATOR,
        gsm8k_cot.TASK,
        numeric.TASK,
        scienceqa.TASK,
        scienceqa.GENERATION,
    )
}

"""The options of other evaluation programs (lm-eval, lighteval, OpenCompass, ms-swift's eval) in ours."""

from __future__ import annotations

from collections.abc import Mapping

GREEDY = "there is none: answers are greedy, so that results repeat; only the task samples draws (--temperatures)"

# Their option -> ours, with what else there is to say about it.
COUNTERPARTS: Mapping[str, str] = {
    "model_args": "model FOLDER, without pretrained=",
    "model_name_or_path": "model",
    "pretrained": "model",
    "models": "model",
    "hf_path": "model",
    "eval_dataset": "tasks",
    "datasets": "tasks",
    "task": "tasks",
    "task_list": "tasks",
    "include_path": "tasks FILE.yaml",
    "limit": "max_rows",
    "eval_limit": "max_rows",
    "max_samples": "max_rows",
    "num_samples": "max_rows",
    "max_examples": "max_rows",
    "batch_size": "batch_tokens, which is chosen by memory where it is not given",
    "eval_batch_size": "batch_tokens, which is chosen by memory where it is not given",
    "max_batch_size": "batch_tokens",
    "override_batch_size": "batch_tokens",
    "output_path": "out",
    "output_dir": "out",
    "work_dir": "out",
    "seed": "sample_seed",
    "dtype": "precision",
    "torch_dtype": "precision",
    "load_in_4bit": "quantization nf4",
    "load_in_8bit": "quantization int8",
    "apply_chat_template": "template tokenizer, which is the default",
    "chat_template": "template",
    "use_chat_template": "template tokenizer, which is the default",
    "max_gen_toks": "max_new_tokens",
    "max_length": "window_tokens",
    "max_model_len": "window_tokens",
    "use_cache": "resume auto, which is the default: answers are kept in OUT/journal",
    "reuse": "resume auto, which is the default: answers are kept in OUT/journal",
    "temperature": "temperatures",
    "decontamination_ngrams_path": "training_data",
}

# Their option -> why there is none here.
NO_COUNTERPART: Mapping[str, str] = {
    "num_fewshot": "the task says how many examples it shows; write your own in a task file (docs/evaluation.md)",
    "fewshot_as_multiturn": "the task says how its examples are shown",
    "system_instruction": "a conversation's system message stands in its row",
    "gen_kwargs": GREEDY,
    "do_sample": GREEDY,
    "top_p": GREEDY,
    "log_samples": "samples are always written, to OUT/samples",
    "device": "the GPU that there is; CUDA_VISIBLE_DEVICES chooses, `accelerate launch` takes several",
    "num_gpus": "`accelerate launch --num_processes N eval/main.py ...` uses several",
    "trust_remote_code": "no code of a model is run",
    "confirm_run_unsafe_code": "no code of a model is run",
    "wandb_args": "results stay in --out",
    "hf_hub_log_args": "results stay in --out",
    "predict_only": "samples are written beside the scores, to OUT/samples",
    "verbosity": "there is one way of telling",
}


def about(name: str) -> str:
    """What is said behind `unknown option`: ours, or why there is none; empty for a name that others lack too."""
    bare = name.removeprefix("--").replace("-", "_")
    if bare in COUNTERPARTS:
        ours, comma, note = COUNTERPARTS[bare].partition(", ")
        return f"; did you mean {'--' if name.startswith('--') else ''}{ours}{comma}{note}?"
    return f": {NO_COUNTERPART[bare]}" if bare in NO_COUNTERPART else ""

"""Maps options of other evaluation tools (lm-eval, lighteval, OpenCompass, ms-swift) to ours, for error messages."""

from __future__ import annotations

from collections.abc import Mapping

GREEDY = "not available: decoding is greedy, so that results repeat; only the task samples uses --temperatures"

# Their option -> ours, with a remark after the comma.
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
    "batch_size": "batch_tokens, which by default depends on free memory",
    "eval_batch_size": "batch_tokens, which by default depends on free memory",
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
    "system_instruction": "system_prompt",
    "decontamination_ngrams_path": "training_data",
}

# Their option -> why there is none here, and what to do.
NO_COUNTERPART: Mapping[str, str] = {
    "num_fewshot": "each task sets its number of examples; for another, write a task file (docs/evaluation.md)",
    "fewshot_as_multiturn": "each task sets the format of its examples",
    "gen_kwargs": GREEDY,
    "do_sample": GREEDY,
    "top_p": GREEDY,
    "log_samples": "samples are always written to OUT/samples",
    "device": "a GPU is used if there is one; select it by CUDA_VISIBLE_DEVICES, use several by `accelerate launch`",
    "num_gpus": "`accelerate launch --num_processes N eval/main.py ...` uses several",
    "trust_remote_code": "code of a model is never run",
    "confirm_run_unsafe_code": "code of a model is never run",
    "wandb_args": "results are written only to --out",
    "hf_hub_log_args": "results are written only to --out",
    "predict_only": "samples are always written to OUT/samples",
    "verbosity": "there is only one log level",
}


def about(name: str) -> str:
    """What follows `unknown option` in the message: our option, or why there is none; "" for an unknown name."""
    bare = name.removeprefix("--").replace("-", "_")
    if bare in COUNTERPARTS:
        ours, comma, note = COUNTERPARTS[bare].partition(", ")
        return f"; did you mean {'--' if name.startswith('--') else ''}{ours}{comma}{note}?"
    return f": {NO_COUNTERPART[bare]}" if bare in NO_COUNTERPART else ""

"""Makes what test_written_before.py reads: runs that were stopped, a token cache, a finished run, evaluations.

    python -m tests.compatibility.make FOLDER    # FOLDER is made; its content becomes written-by-COMMIT.tar.xz

`written-by-6e1f680.tar.xz` was written by the code of commit 6e1f680. It is never written anew: a version that writes
other files adds an archive of its own, and goes on reading this one. expected.json in it has what the same code
obtained when it went on: every metric of every step, digests of the last weights, the numbers of each evaluation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.fault_runs import Zygote, finished, weights
from tests.support.training_runs import ROOT

STEPS = 8
# The last loss, what a step was, and what the held-out rows say: of every objective that has them.
METRICS = (
    "train/loss", "train/gradient_norm", "train/learning_rate", "validation/loss", "validation/accuracy",
    "validation/f1", "train/policy", "rollout/reward", "rollout/kl", "rollout/kl_weight",
)  # fmt: skip
LORA = {"tuning.kind": "lora", "tuning.lora.rank": 2, "tuning.lora.dropout": 0.1}
QA, TAGGED, LABELLED, PAIRS = (
    "rows.jsonl qa",
    "tagged.jsonl tagged",
    "labelled.jsonl labelled",
    "pairs.jsonl preference",
)
# Name -> processes and sharding, data (file and format), options. How it was stopped: see `STOPPED`.
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "full": ("single", QA, {}),
    "lora": ("single", QA, LORA),
    "prompt": ("single", QA, {"tuning.kind": "prompt", "tuning.prompt.virtual_tokens": 3}),
    "sequence-classification": ("single", LABELLED, {"objective": "sequence_classification"}),
    "token-classification": ("single", TAGGED, {"objective": "token_classification", **LORA}),
    "reward-model": ("single", PAIRS, {"objective": "reward_model", **LORA}),
    "ppo": (
        "single",
        QA,
        {
            "objective": "ppo",
            "ppo.reward": '[{"kind": "model", "path": "FOLDER/judge", "label": "good"},'
            ' {"kind": "repetition", "weight": -1}]',
            "ppo.response_tokens": 4,
            "ppo.rollout_prompts": 8,
            "ppo.epochs": 2,
            "ppo.kl_target": 1.0,
            "tuning.kind": "lora",
            "validation.every_steps": 4,  # between rollouts, of two steps each
        },
    ),
    "zero2": ("zero2", QA, {}),
    "zero3": ("zero3", QA, LORA),
    "finished": ("single", QA, {**LORA, "merge.at_end": "true", "validation.samples": 2}),
}
# One is killed while it saves step 4, and goes on from step 2; the others are asked to stop, and save step 5.
STOPPED = {"full": {"at": "train.checkpoint.commit:_publish", "nth": 2, "do": "SIGKILL"}}
ASKED = {"at": "train.engine.loop:Loop._update", "nth": 5, "do": "SIGTERM"}

# Name -> tasks, their data, the checkpoint: all four kinds of answers.
EVALUATIONS = {
    "language": ("qa,perplexity,samples", "rows.jsonl", "runs/finished/merged"),
    "sequence": ("sequence_classification", "labelled.jsonl", "judge"),
    "tokens": ("token_classification", "tagged.jsonl", "tagger"),
}

NUMBERS = "zero one two three four five six seven eight nine".split()
TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "tie_word_embeddings": True, "attention_dropout": 0.1,
    "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def train_arguments(name: str, folder: Path) -> list[str]:
    """The command line of a run of RUNS, below `folder`: the same before and after its stop."""
    _, data, options = RUNS[name]
    file, form = data.split()
    chosen = {
        "run.folder": folder / "runs" / name,
        "run.precision": "fp32",
        "model.path": folder / "model",
        "data.train": json.dumps([{"path": str(folder / file), "format": form}]),
        "data.validation_fraction": 0.2,
        "data.cache_folder": folder / "cache",
        "data.max_length_tokens": 28,
        "data.workers": 1,
        "batch.tokens_per_step": 112,
        "batch.tokens_per_micro_batch": 56,
        "optim.learning_rate": 1e-2,
        "optim.epsilon": 1e-4,  # with Adam's usual one, rounding alone can become a whole step
        "duration.max_epochs": 9,
        "duration.max_steps": STEPS,
        "validation.at_start": "false",
        "validation.every_steps": 3,
        "validation.samples": 0,
        "validation.max_new_tokens": 4,
        "checkpoint.every_steps": 2,
        "checkpoint.keep_last": 1,
        "checkpoint.keep_best": "false",
        "watch.tensorboard": "false",
        "merge.at_end": "false",
    }
    chosen |= options
    words = {key: str(value).replace("FOLDER", str(folder)) for key, value in chosen.items()}
    return [word for key, value in words.items() for word in (f"--{key}", value)]


def evaluation_arguments(name: str, folder: Path) -> list[str]:
    """The command line of an evaluation of EVALUATIONS."""
    tasks, data, model = EVALUATIONS[name]
    words = ["--model", str(folder / model), "--tasks", tasks, "--data", str(folder / data), "--precision", "fp32"]
    return [*words, "--out", str(folder / "evaluations" / name), "--max_new_tokens", "4"]


def recorded(run: Path) -> dict[str, Any]:
    """Metrics by name and step, and digests of the last checkpoint's tensors."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curves = {name: {str(line["step"]): line[name] for line in lines if name in line} for name in METRICS}
    # The rest, JSON, names folders.
    tensors = {name: digest for name, digest in weights(run, finished(run)[-1]).items() if not name.endswith(".json")}
    return {"metrics": {name: curve for name, curve in curves.items() if curve}, "weights": tensors}


def evaluated(out: Path) -> dict[str, float]:
    """Every estimate of an evaluation by task and metric."""
    tasks = json.loads((out / "result.json").read_text(encoding="utf-8"))["tasks"]
    return {f"{t['name']} {m['name']}": m["estimates"][0]["value"] for t in tasks for m in t["metrics"]}


def journal_lines(out: Path) -> list[str]:
    """All answers that an evaluation has written down."""
    return [line for path in sorted((out / "journal").glob("*.jsonl")) for line in path.read_text().splitlines()]


def circumstances() -> dict[str, str]:
    """What the last bits depend on, and the keys of the token cache."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    processor = [facts.get(name, "") for name in ("model name", "model", "stepping")]
    return {
        "processor": " ".join([*processor, torch.backends.cpu.get_cpu_capability()]),
        **{name: version(name) for name in ("torch", "transformers", "tokenizers", "accelerate", "deepspeed", "peft")},
    }


def _write_data(folder: Path) -> None:
    def write(name: str, rows: Iterable[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    sums = [(a, b) for a in range(5) for b in range(5)]
    write(
        "rows.jsonl",
        ({"question": f"{NUMBERS[a]} plus {NUMBERS[b]}?", "answer": f"{NUMBERS[a + b]}."} for a, b in sums),
    )
    write(
        "labelled.jsonl",
        ({"sentence": f"{NUMBERS[a]} plus {NUMBERS[b]}", "label": "good" if a > b else "bad"} for a, b in sums),
    )
    tag = {"one": "B-odd", "three": "B-odd", "two": "B-even", "four": "B-even"}
    sentences = [[NUMBERS[a], "plus", NUMBERS[b]] for a, b in sums]
    write("tagged.jsonl", ({"tokens": words, "tags": [tag.get(word, "O") for word in words]} for words in sentences))
    write(
        "pairs.jsonl",
        (
            {
                "prompt": f"{NUMBERS[a]} plus {NUMBERS[b]}?",
                "chosen": f"{NUMBERS[a + b]}.",
                "rejected": f"{NUMBERS[9 - a - b]}.",
            }
            for a, b in sums
            if a + b != 9 - a - b
        ),
    )


def _tokenizer(folder: Path) -> Any:
    """A byte-level BPE tokenizer of 64 tokens that knows the letters of the data alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=special, show_progress=False)
    core.train_from_iterator(
        ["user\n", "assistant\n", *(f"{n} plus {n}?" for n in NUMBERS), *(f"{n}." for n in NUMBERS)] * 9, trainer
    )
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = TEMPLATE
    assert len(made) == 64, len(made)
    return made


def _write_models(folder: Path) -> None:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        Qwen2Config,
    )  # fmt: skip

    tokenizer = _tokenizer(folder)
    for seed, (name, kind, labels) in enumerate(
        (
            ("model", AutoModelForCausalLM, None),
            ("judge", AutoModelForSequenceClassification, ["bad", "good"]),
            ("tagger", AutoModelForTokenClassification, ["O", "B-odd", "B-even"]),
        )
    ):
        torch.manual_seed(seed)
        names = (
            {}
            if labels is None
            else {"id2label": dict(enumerate(labels)), "label2id": {n: k for k, n in enumerate(labels)}}
        )
        kind.from_config(Qwen2Config(**SIZES, **names)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _make_run(name: str, folder: Path, zygote: Zygote) -> dict[str, Any]:
    """Stop it, keep what lies there, go on, and put back what was kept."""
    kind, run, kept = RUNS[name][0], folder / "runs" / name, folder / "kept"
    orders = [] if name == "finished" else [STOPPED.get(name, ASKED)]
    log = folder.with_name(f"{folder.name}-{name}")
    stopped = zygote.run(train_arguments(name, folder), log, kind, orders)
    assert set(stopped.codes) == ({-9} if name in STOPPED else {0}), stopped.output
    shutil.copytree(run, kept)
    done = zygote.run(train_arguments(name, folder), log, kind)
    assert set(done.codes) == {0}, done.output
    found = recorded(run)
    print(name, finished(kept), {name: len(curve) for name, curve in found["metrics"].items()})
    shutil.rmtree(run)
    kept.rename(run)
    return found


def _make_evaluation(name: str, folder: Path) -> dict[str, Any]:
    """All of it; then only every other answer is left, and no result but that of a whole one."""
    from eval.main import main

    out = folder / "evaluations" / name
    assert main(evaluation_arguments(name, folder)) == 0
    lines = journal_lines(out)
    (journal,) = (out / "journal").glob("*.jsonl")
    journal.write_text("".join(line + "\n" for line in lines[::2]), encoding="utf-8")
    found = {"estimates": evaluated(out), "answers": len(lines), "kept": len(lines[::2])}
    for path in out.iterdir():
        if path.name not in ("journal", "result.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(name, found)
    return found


def _packed(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Left out: locks, pictures, and tensors of the save that was cut off, all of which are written anew."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    is_left = entry.name.endswith((".lock", ".png")) or (".tmp/" in entry.name and entry.name.endswith(".safetensors"))
    return None if is_left else entry


def pack(folder: Path) -> Path:
    """The archive of `folder`, beside this file, without the names of the machine and its folders."""
    for path in (*folder.rglob("*.json"), *folder.rglob("*.md")):
        if "checkpoints" not in path.parts:  # whose digests are kept
            text = path.read_text(encoding="utf-8")
            made = text.replace(str(ROOT), "/home/user/zerotune").replace(f'"{socket.gethostname()}"', '"host"')
            path.write_text(made, encoding="utf-8")
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    archive = Path(__file__).with_name(f"written-by-{commit}.tar.xz")
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name, filter=_packed)
    return archive


def main() -> None:
    """Make the folder and its archive."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True)
    _write_data(folder)
    _write_models(folder)
    expected: dict[str, Any] = {"circumstances": circumstances()}
    with contextlib.closing(Zygote()) as zygote:
        expected["runs"] = {name: _make_run(name, folder, zygote) for name in RUNS}
    expected["evaluations"] = {name: _make_evaluation(name, folder) for name in EVALUATIONS}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    archive = pack(folder)
    print(archive, archive.stat().st_size)


if __name__ == "__main__":
    main()

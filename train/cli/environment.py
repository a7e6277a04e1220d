"""`zerotune env`: versions, devices and settings for a bug report, as Markdown. Missing or broken parts are reported,
and secrets are masked.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from train.launcher import default_config
from zerotune.common.arguments import Parser
from zerotune.common.console import say
from zerotune.common.mask_secrets import SECRET_NAME, mask, printable
from zerotune.common.version import ROOT, code_state, installed_version, own_version

IMPORTED = {  # distribution -> module, tried by importing it
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
    "peft": "peft",
    "bitsandbytes": "bitsandbytes",
    "flash-attn": "flash_attn",
}
OTHERS = ("trl", "datasets", "tokenizers", "safetensors", "huggingface-hub", "numpy", "pyarrow", "triton")
TOOLS = ("g++", "nvcc", "ninja", "nvidia-smi", "sbatch", "git")
VARIABLES = re.compile(
    r"ACCELERATE|BNB|CC$|CPATH|CUDA|CXX|DEEPSPEED|DS_|FSDP|GLOO|HF_|HIP|HTTPS?_PROXY|HUGGING|LD_|LOCAL_|MASTER|MKL|NCCL|"
    r"NO_PROXY|NVIDIA|OMP|PYTHON|PYTORCH|RANK|ROCR|SLURM_(CPUS|GPUS|JOB_NUM|NNODES|NTASKS|TASKS)|SSL_|TMPDIR|TOKENIZERS|TORCH|TRANSFORMERS|TRITON|UCX|VIRTUAL_ENV|"
    r"WORLD|XDG_|ZEROTUNE",
    re.IGNORECASE,
)
# Run in a separate process, since a broken library may end it. One line per module: [name, error].
PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    fault = ""
    try:
        importlib.import_module(name)
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"
    print(flush=True)
    print(json.dumps([name, fault]), flush=True)
"""
DEVICES = """
import json, torch
found = {"CUDA of torch": torch.version.cuda, "cuDNN": torch.backends.cudnn.version(),
         "processor": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
         "GPUs": torch.cuda.device_count()}
if torch.cuda.is_available():
    found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
for i in range(torch.cuda.device_count()):
    facts = torch.cuda.get_device_properties(i)
    found[f"GPU {i}"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, capability {facts.major}.{facts.minor}"
print()
print(json.dumps(found))
"""
SECONDS = 120  # for a library to be imported, from the slowest of file systems
CREDENTIALS = re.compile(
    r"(?<=//)\S+@|^(?!\w+://)[^\s@/:]+:\S*@"
)  # user:password@, also before a proxy without http://
QUERY = re.compile(r"(?<=\?)\S+(?=$|\s)")  # of an address: a signature or a token
TOKENS = re.compile(
    r"\b(hf_|gh[opsu]_|github_pat_|glpat-|sk-|xox[abp]-|AKIA|eyJ)[\w.~+/=-]{8,}"
)  # of tokens, by prefix
ENTRY = re.compile(r"^(\s*[\w-]+\s*:[ ]*)(\S.*)$", re.MULTILINE)  # of a YAML file


def main(words: Sequence[str]) -> int:
    """Print the report. Returns the exit code."""
    about = "Print versions, devices and settings for a bug report, as Markdown. Secrets are masked; check it anyway."
    Parser(prog="zerotune env", description=about).parse_args(words)
    say("importing libraries")
    sys.stdout.write(report())
    return 0


def report() -> str:
    """Versions, devices, limits, tools, environment variables, and the configuration of Accelerate."""
    parts = {
        "ZeroTune": _facts(_machine()),
        "devices": _devices(),
        "packages": _packages(),
        "tools": ((name, _tool(name)) for name in TOOLS),
        "environment": sorted(
            (name, "***" if SECRET_NAME.search(name) else value)
            for name, value in os.environ.items()
            if VARIABLES.match(name)
        ),
        "accelerate config": _facts(iter([(str(default_config()), _default_config)])),
    }
    return "\n".join(f"**{title}**\n\n````text\n{_aligned(lines)}````\n" for title, lines in parts.items())


def _aligned(lines: Iterable[tuple[str, str]]) -> str:
    """Names and values in two columns. Values are escaped, so that they cannot end the Markdown block."""
    shown = [[_hidden(text).replace("````", "` ` ` `").replace("\n", "\n  ") for text in line] for line in lines]
    width = max((len(name) for name, value in shown if "\n" not in value), default=0) + 2
    return "".join(f"{name:<{width}}{value}\n" for name, value in shown)


def _machine() -> Iterator[tuple[str, Callable[[], object]]]:
    yield "version", lambda: own_version() or "unknown"
    yield "commit", _commit
    yield "folder", lambda: ROOT
    yield "Python", lambda: f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    yield "system", lambda: f"{platform.platform()}, {' '.join(platform.libc_ver())}"
    yield "processor", lambda: f"{_processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores usable"
    yield "memory", _memory
    yield "shared memory", lambda: f"{shutil.disk_usage('/dev/shm').free / 2**30:.1f} GiB free"  # noqa: S108 (asked)
    yield "disk", lambda: f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free here"
    yield "locked memory", lambda: _limit(resource.RLIMIT_MEMLOCK)
    yield "open files", lambda: _limit(resource.RLIMIT_NOFILE)


def _facts(found: Iterator[tuple[str, Callable[[], object]]]) -> Iterator[tuple[str, str]]:
    """Each value, or why it is unknown."""
    for name, value in found:
        try:
            yield name, str(value())
        except Exception as error:
            yield name, f"unknown ({type(error).__name__}: {error})"


def _commit() -> str:
    code = code_state(ROOT / "train")
    return f"{code['commit']}{', modified' if code['dirty'] else ''}" if code else "not run from a repository"


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free"


def _limit(kind: int) -> str:
    soft, hard = ("unlimited" if value == resource.RLIM_INFINITY else str(value) for value in resource.getrlimit(kind))
    return f"{soft} (at most {hard})"


def _python(code: str, *words: str) -> tuple[list[str], str]:
    """(lines that `code` printed, why it ended early; empty if it did not)."""
    command = [sys.executable, "-P", "-c", code, *words]
    why = ""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=True)
        output = done.stdout
    except subprocess.TimeoutExpired as late:
        output, why = late.stdout or b"", f"no result within {SECONDS} s"
    except subprocess.CalledProcessError as failed:
        last = failed.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        output, why = failed.stdout, f"exit code {failed.returncode}{': ' if last else ''}{last}"
    return output.decode(errors="replace").splitlines(), why


def _devices() -> Iterator[tuple[str, str]]:
    lines, fault = _python(DEVICES)
    if fault or not lines:
        yield "torch", f"failed: {fault}"
        return
    for name, value in json.loads(lines[-1]).items():
        yield name, "none" if value is None else str(value)


def _packages() -> Iterator[tuple[str, str]]:
    versions = {name: installed_version(name) for name in (*IMPORTED, *OTHERS)}
    faults = _faults([module for name, module in IMPORTED.items() if versions[name]])
    for name, found in versions.items():
        fault = faults.get(IMPORTED.get(name, ""), "")
        yield name, f"{found or 'not installed'}{f'; cannot be imported: {fault}' if fault else ''}"


def _faults(modules: Sequence[str]) -> dict[str, str]:
    """Why each module cannot be imported; empty if it can. Also if one of them ends the interpreter."""
    found: dict[str, str] = {}
    while waiting := [module for module in modules if module not in found]:
        lines, why = _python(PROBE, *waiting)
        found |= dict(json.loads(line) for line in lines if line.startswith('["'))
        if (ended := next((module for module in waiting if module not in found), None)) is not None:
            found[ended] = why or "the interpreter ended"
    return found


def _tool(name: str) -> str:
    if not shutil.which(name):
        return "not found"
    try:
        done = subprocess.run(
            [name, "--version"], capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be run: {error}"
    lines = (done.stdout or done.stderr).strip().splitlines()
    release = [line for line in lines if re.search("release|DRIVER version", line)]  # nvcc, nvidia-smi
    return (release or lines or [f"exit code {done.returncode}"])[0]


def _default_config() -> str:
    file = default_config()
    if not file.exists():
        return "none"
    hidden = ENTRY.sub(
        lambda found: found[0] if not SECRET_NAME.search(found[1]) else f"{found[1]}***",
        file.read_text(encoding="utf-8").strip(),
    )
    return f"\n{hidden}"


def _hidden(text: str) -> str:
    """Without secrets, passwords and queries in addresses, and the path of the home folder."""
    home = str(Path.home())
    text = QUERY.sub("***", CREDENTIALS.sub("***@", TOKENS.sub("***", mask(text))))
    return printable(text if home == "/" else re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text))

"""A warmed-up process that forks training processes: importing everything costs seconds, forking milliseconds.

Reads one JSON request a line and answers with one line:
  {"do": "start", "environment": {...}, "arguments": [...], "log": PATH} -> {"pid": N}; also "program": MODULE:FUNCTION
  {"do": "wait", "pid": N, "seconds": S} -> {"code": exit status, negative for a signal; null if it still runs}
A forked process is a real one: own session, own environment, `train.main.main` (or `program`) from its first line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pkgutil import resolve_name

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from tests.support import inject

WARM = (
    "train.main", "deepspeed", "peft", "datasets", "matplotlib.pyplot",
    "train.engine.metric_writer", "train.checkpoint.deepspeed_state",
    "train.engine.flops", "train.engine.loop", "train.engine.optimizer", "train.checkpoint.manager", "train.session",
    "train.merge", "train.objectives", "train.report", "train.tuning",
)  # fmt: skip


def start(request: dict) -> dict:
    """Fork one training process."""
    child = os.fork()
    if child:
        return {"pid": child}
    code = 1
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdin.close()
        os.closerange(3, 1024)  # a lock that the parent holds must not outlive it
        os.environ.clear()
        os.environ.update(request["environment"])
        inject.install()
        code = resolve_name(request.get("program", "train.main:main"))(request["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # as the interpreter does
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(request: dict) -> dict:
    """Exit status of a process, if it ends in time."""
    deadline = time.monotonic() + request["seconds"]
    while True:
        pid, status = os.waitpid(request["pid"], os.WNOHANG)
        if pid:
            return {"code": os.waitstatus_to_exitcode(status)}
        if time.monotonic() >= deadline:
            return {"code": None}
        time.sleep(0.02)


DO = {"start": start, "wait": wait}

if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not get among the answers
    for module in WARM:
        importlib.import_module(module)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(DO[request["do"]](request)), file=answers, flush=True)
    os._exit(0)  # taking everything down in order takes seconds, and there is nothing to save

"""A test-only plug: kills, signals or slows a training process at a named point, without a branch in `train`.

$ZEROTUNE_INJECT holds a JSON list of orders: {"at": "train.checkpoint.commit:_publish", "when": "before" | "after",
"nth": 1, "rank": 0, "do": "SIGKILL" | another signal | "sleep 0.2" | "freeze 60" | "raise MESSAGE" | "touch FILE"
| "await FILE" | "fill FILE" | "remove FOLDER" | "limit BYTES" | "rows FILE" | "nan" | "nan ROW" | "times NUMBER"
| "steeper NUMBER" | "set VALUE"}.
`nth` counts the calls of that function in the process, 0 means every call; `after_step`, if given, takes those after so
many optimizer steps alone; `rank` is left out for all ranks.
freeze: sleep whole seconds with Python's own lock held, so that none of its threads runs. await: until FILE is there.
fill: write FILE until its disk is full. limit: no file of this process may grow beyond BYTES. rows: the function is
`Loop._update`; add a line to FILE with the step and the rows of each micro-batch of this rank. nan: the function, which
gives the terms of a loss, gives NaN in their place (for batches with that row). times: gives them multiplied. steeper:
gives them as they are, but multiplies their gradient. set: what is named is no function, but has this JSON value from
the start.
A process started by a launcher takes the plug from `plug/sitecustomize.py` on PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.failure.heartbeat import HEARTBEAT

VARIABLE = "ZEROTUNE_INJECT"


def install() -> None:
    """Put the orders of the environment into effect."""
    for order in json.loads(os.environ.get(VARIABLE, "[]")):
        if order.get("rank") in (None, int(os.environ.get("RANK", 0))):
            _plug(order)


def _plug(order: dict[str, Any]) -> None:
    module, _, path = order["at"].partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    verb, _, value = order["do"].partition(" ")
    setattr(owner, name, json.loads(value) if verb == "set" else _wrapped(getattr(owner, name), order))


def _wrapped(real: Callable[..., Any], order: dict[str, Any]) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(real)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        due = order.get("nth", 1) in (0, calls) and order.get("after_step") in (None, HEARTBEAT.step)
        if due and order["do"].startswith(("nan", "times ", "steeper ")):
            return _spoiled(real(*arguments, **keywords), order["do"], arguments)
        if due and order["do"].startswith("rows "):
            _note_rows(Path(order["do"][5:]), *arguments)
            return real(*arguments, **keywords)
        if due and order.get("when", "before") == "before":
            _act(order["do"])
        result = real(*arguments, **keywords)
        if due and order.get("when") == "after":
            _act(order["do"])
        return result

    return wrapper


def _spoiled(terms: Any, what: str, arguments: tuple[Any, ...]) -> Any:
    verb, _, given = what.partition(" ")
    rows = [name for argument in arguments for name in getattr(argument, "row_ids", ())]
    if verb == "nan" and given and given not in rows:
        return terms
    factor = float("nan") if verb == "nan" else float(given)
    if verb == "steeper":
        for value in terms.values():
            value.register_hook(lambda gradient: gradient * factor)
        return terms
    return {term: value * factor for term, value in terms.items()}


def _note_rows(file: Path, _loop: Any, batches: Any, _counts: Any, step: int) -> None:
    with file.open("a", encoding="utf-8") as lines:  # short lines are appended whole, also by several ranks
        lines.write(json.dumps({"step": step + 1, "rows": [batch.row_ids for batch in batches]}) + "\n")


def _act(what: str) -> None:
    verb, _, argument = what.partition(" ")
    if verb == "sleep":
        time.sleep(float(argument))
    elif verb == "freeze":
        ctypes.PyDLL(None).sleep(int(argument))
    elif verb == "await":
        while not Path(argument).exists():
            time.sleep(0.02)
    elif verb == "raise":
        raise ValueError(argument)
    elif verb == "touch":
        Path(argument).touch()
    elif verb == "remove":
        while Path(argument).exists():  # the run is writing into it
            shutil.rmtree(argument, ignore_errors=True)
    elif verb == "fill":
        _fill(Path(argument))
    elif verb == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(argument), resource.RLIM_INFINITY))
    else:
        os.kill(os.getpid(), signal.Signals[verb])


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (65536, 1):  # the last bytes one by one: a disk is full only when none fits any more
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))

"""Runs of more ranks than two."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tests.support.fault_runs import Processes, Zygote, free_port, rank_environment


def start(
    zygote: Zygote,
    arguments: list[str],
    log: Path,
    kind: str,
    ranks: int,
    orders: list[dict[str, Any]] | None = None,
) -> None:
    """One run of so many ranks, to its end."""
    port = free_port()
    started = []
    for rank in range(ranks):
        variables = rank_environment(kind, rank, port, orders)
        if kind != "single":
            variables |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        file = log.with_name(f"{log.name}.rank{rank}.log")
        pid = zygote.ask(do="start", environment=variables, arguments=arguments, log=str(file))["pid"]
        started.append((pid, file))
    with contextlib.closing(Processes(zygote, started)) as processes:
        assert set(processes.wait()) == {0}, processes.output

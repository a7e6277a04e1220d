"""Two ranks save, one rank loads and saves again, three ranks load that; what each then holds is left in a file.

Weights and moments are put together by DeepSpeed's and FSDP's own means, not by those under test. All ranks are forked
from one process: imports are what costs time.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.fault_runs import free_port
from tests.support.state_cases import Case, Ranks, Run
from train.checkpoint import folders
from train.checkpoint.compatibility import Origin
from train.checkpoint.state import load_state, state_writer
from train.engine.deepspeed_ops import build_for_cpu
from zerotune.common.errors import UserError

RANKS = (2, 1, 3)


class Spread(Run):
    """A run whose state can be put together."""

    def state(self) -> dict[str, Any]:
        inner = self.model.optimizer.optimizer if self.case.zero else self.optimizer.optimizer
        steps = {float(state["step"]) for state in inner.state.values()}
        options = {k: v for k, v in inner.param_groups[0].items() if k not in ("params", "fused", "foreach")}
        return {**self.weights(), **self.whole_moments(), "steps": steps, "options": options}

    def whole_moments(self) -> dict[str, Tensor]:
        if self.case.zero and self.case.kind != "zero-3":
            self.model.optimizer._lazy_init_hp_params_optimizer_state()
        found: dict[str, Tensor] = {}
        for key in ("exp_avg", "exp_avg_sq"):
            whole = self.whole(lambda p, key=key: self.moment(p, key))
            found |= {f"{name} {key}": tensor for name, tensor in whole.items()}
        return found

    def moment(self, parameter: torch.nn.Parameter, key: str) -> Tensor:
        if self.case.zero:
            return deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
        moment = self.optimizer.optimizer.state[parameter][key]
        return moment.full_tensor() if hasattr(moment, "full_tensor") else moment


def go_through(name: str, number: int, folder: Path, ranks: Ranks) -> None:
    """One case in one phase."""
    *kinds, model, tuning, optimizer, precision = name.split()
    run = Spread(Case(kinds[number], model, tuning, optimizer, precision), seed=number)
    origin = Origin("f", {}, run.case.kind, ranks.count)
    if number == 0:
        run.train(0, 3)
    else:
        saved = folders.newest(folder / f"phase{number - 1}", ranks, origin)
        assert saved is not None
        load_state(run.accelerator, run.model, run.optimizer, saved)
    state = run.state() if optimizer == "adamw" else {}

    write = state_writer(run.accelerator, run.model, run.optimizer)
    folders.commit(folder / f"phase{number}", 3, write, {}, origin, ranks)
    losses = run.train(3, 4)
    if ranks.index == 0:
        torch.save(state, folder / f"phase{number}.pt")
        torch.save({"losses": losses}, folder / f"losses{number}.pt")
    run.close()


def phase(number: int, folder: Path) -> None:
    """All cases on the ranks of one phase; a case that was refused ends there."""
    ranks = Ranks()
    for name in sys.argv[2:]:
        (folder / name).mkdir(exist_ok=True)
        if (folder / name / f"phase{number - 1}.txt").exists():
            continue
        try:
            go_through(name, number, folder / name, ranks)
        except UserError as error:
            (folder / name / f"phase{number}.txt").write_text(str(error))


def rank(number: int, index: int, port: int, folder: Path) -> None:
    """One rank of a phase, in a process of its own."""
    count = RANKS[number]
    variables = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in variables.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        build_for_cpu()
        dist.init_process_group("gloo")
        phase(number, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    for number, count in enumerate(RANKS):
        port, children = free_port(), []
        for index in range(count):
            child = os.fork()
            if not child:
                rank(number, index, port, Path(sys.argv[1]))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            sys.exit(f"phase {number}: {codes}")


if __name__ == "__main__":
    main()

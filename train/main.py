"""Train: `accelerate launch train/main.py --config recipes/NAME.yaml [--optim.learning_rate 1e-4 ...]`."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p).resolve() != ROOT / "train")]  # runs uninstalled too

from zerotune.common.process_exit import exit_process, exit_quietly_on_ctrl_c, wait_for_first_process

exit_quietly_on_ctrl_c()  # before the imports, which take a while

from train.config import Config
from train.failure.report_error import report_error
from train.failure.stop import Interrupted, Stop
from train.fingerprint import flat
from train.recipe import parse
from zerotune.common.console import say, shortened
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import hide_secrets

log = logging.getLogger(__name__)


def checked(arguments: list[str]) -> Config:
    """Parse the recipe and check its files, without heavy imports; then print what will happen."""
    try:
        config = parse(arguments, warns=True)
        from train.preflight import check_inputs, sources

        check_inputs(config)
    except UserError:
        wait_for_first_process()
        raise
    files = shortened([source.path for key, source in sources(config) if key.startswith("data.train")])
    say(f"{config.objective} ({config.tuning.kind}): {config.model.name} on {files} -> {config.run.folder}")
    say("importing libraries")
    return config


def run(config: Config, stop: Stop) -> None:
    """Build, resume, train, merge, report.

    The imports here take seconds: `--help` and an error in the recipe must not wait for them.
    """
    from train.checkpoint.manager import Checkpoints
    from train.engine import run_info
    from train.engine.flops import Peak, model_flops_per_token, peak_flops
    from train.engine.loop import Loop
    from train.engine.metric_writer import Board
    from train.engine.optimizer import build_optimizer
    from train.engine.runtime import Runtime
    from train.models.recorded_answers import Recorder
    from train.new_model import prepare
    from train.objectives import objective_class
    from train.session import describe, session
    from train.tuning import make_tuning, share_trained

    kind = objective_class(config.objective)
    runtime = Runtime(config.run.precision, config.optim.clip_norm)
    config = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, precision=runtime.precision),
        validation=dataclasses.replace(config.validation, metric=config.spec.metric(config.validation.metric)),
    )
    with session(config, runtime, stop) as held:
        folder = held.folder
        for line in prepare(config, runtime):
            say(line)
        model_config = config.model.within(folder)
        tuning = make_tuning(config.tuning, config.run.seed, model=model_config, task=kind.peft_task_type)
        say("reading and tokenising the data")
        objective = kind(dataclasses.replace(config, model=model_config), tuning, runtime)
        say("loading the model")
        model = objective.add_modules(tuning.apply(objective.load_model()))
        parameters = share_trained(model)
        flops = model_flops_per_token(model, objective.plan.attention_length, objective.plan.head_share)
        undecayed = config.tuning.spec.undecayed
        model, optimizer = runtime.prepare(model, build_optimizer(model, config.optim, runtime.kind, undecayed))
        rows, extra = objective.real_rows(), config.tuning.extra_positions
        recorder = Recorder(model, objective.tokenizer, rows, runtime.precision, runtime.device, extra)
        checkpoints = held.afterwards.enter_context(
            Checkpoints(config, runtime, objective, model, optimizer, tuning, recorder, held.require_folder)
        )
        progress = checkpoints.resume()
        if held.is_over(config, progress, bool(checkpoints.extended)):
            runtime.close()
            return
        device = peak_flops(runtime.device, runtime.dtype, config.watch.peak_tflops)
        peak = Peak(runtime.sum([device.flops])[0], device.source)
        with stop.saving():
            held.begin(progress.step)
            describe(config, runtime, objective, parameters, peak, progress, checkpoints.extended)
            board = Board(folder, config.watch, runtime.main)
            board.start(progress.step, objective.plan.total_steps)
            board.hyperparameters(flat(config))
            loop = Loop(
                config, runtime, objective, model, optimizer, board, checkpoints.save,
                lambda: held.stop_requested() or checkpoints.failed(), flops, peak.flops,
            )  # fmt: skip
            outcome = loop.fit(progress)
            checkpoints.wait()
            board.close()
            held.require_folder()
            if outcome.state == "finished":
                log.info("finished after step %d: %s", outcome.step, outcome.reason)
            runtime.close()
            if runtime.main:
                run_info.write(folder, **objective.metadata, ended=outcome.reason)  # streaming knows its facts only now
            if runtime.main and outcome.state == "finished":
                outcome = held.merge_and_report(config, outcome)
            held.finish(outcome)


def main(arguments: list[str] | None = None) -> int:
    """Run the trainer; returns the exit code (docs/resume.md)."""
    hide_secrets()
    with Stop() as stop:
        try:
            run(checked(sys.argv[1:] if arguments is None else arguments), stop)
        except Interrupted:
            return stop.leave()
        except Exception as error:
            return stop.leave() if stop.leaves else report_error(error)
        return stop.exit_code


if __name__ == "__main__":
    exit_process(main())

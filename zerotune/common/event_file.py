"""Writes a TensorBoard event file synchronously.

`SummaryWriter` writes in a thread: a full disk kills that thread with a traceback, and the error appears in a later
call, or at exit. Here the write that fails raises OSError. A write takes microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, scalar, text


class EventFile:
    """One event file in `folder`. Every method raises OSError if writing fails.

    Args:
        folder: Created if missing; a resumed run adds a file to it.
        kept_step: TensorBoard hides points of older files after this step; None keeps all.
    """

    def __init__(self, folder: Path, kept_step: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names: use a count, since clocks may jump, and no host name.
        number = 1 + len(list(folder.glob("events.out.tfevents.*")))
        self._file = (folder / f"events.out.tfevents.{number:06d}").open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if kept_step is not None:
            self._write(Event(step=kept_step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """One point for each metric."""
        for name, value in metrics.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        self._file.flush()

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A page of Markdown in the tab TEXT."""
        self._write(Event(step=step, summary=text(tag, markdown)))
        self._file.flush()

    def hyperparameters(
        self,
        values: Mapping[str, float | str],
        first: Collection[str] = (),
        metrics: Collection[str] = ("validation/loss",),
    ) -> None:
        """A row in the tab HPARAMS, in the same run as the curves; the columns `first` come before all others.

        metrics: scalars whose last values it shows.
        """
        for summary in hparams(dict(values), dict.fromkeys(metrics, 0.0)):
            for value in summary.value:
                _put_first(value.metadata.plugin_data, first)
            self._write(Event(summary=summary))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _put_first(plugin_data: Any, names: Collection[str]) -> None:
    """Mark these columns as different between runs, which TensorBoard sorts first."""
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    plugin_data.content = content.SerializeToString()

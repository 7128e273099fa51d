"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from veneer.config.document import write_yaml
from veneer.run.folder import TENSORBOARD
from veneer.run.trackers.protocol import SHEETS, TrackedRun

__all__ = ["TensorBoard"]


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder, one a process.

    Each point is in its file once it is taken, so that a run that is killed loses none. A process that resumes a run
    begins its file with a mark that makes TensorBoard drop all that an earlier process wrote after the checkpoint.

    Records are written by the package's ``RecordWriter`` and not by its ``EventFileWriter``, nor PyTorch's
    ``SummaryWriter`` around that one: they write in a thread, where a full disk ends in a traceback on the screen.
    """

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        folder = run.folder / TENSORBOARD
        folder.mkdir(exist_ok=True)
        self.shown_by = f"tensorboard --logdir {shlex.quote(str(folder))}"
        # the readers take the files in the order of their names
        path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(path.open("xb"))
        self._write(0, file_version="brain.Event:2")
        if run.start_step:
            mark = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(run.start_step + 1, session_log=mark)
        text = "".join(f"    {line}\n" for line in write_yaml(dict(run.settings)).splitlines())  # Markdown's for code
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
        self._write_value(run.start_step, "config", tensor=tensor, metadata=metadata)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take one point of each curve."""
        points = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=self._summary.Summary(value=points))

    def picture(self, step: int, path: Path) -> None:
        """Take a sheet: the very bytes of its PNG."""
        with Image.open(path) as sheet:
            width, height = sheet.size
        png = path.read_bytes()
        image = self._summary.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write_value(step, SHEETS, image=image)

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Take the final scores as curves of one point."""
        self.scalars(step, values)

    def close(self, failed: bool) -> None:
        """Close the file; all is in it."""
        self._records.close()

    def _write_value(self, step: int, tag: str, **value: Any) -> None:
        self._write(step, summary=self._summary.Summary(value=[self._summary.Summary.Value(tag=tag, **value)]))

    def _write(self, step: int, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), step=step, **fields)
        self._records.write(event.SerializeToString())
        self._records.flush()

"""Where a run's curves and sample sheets go: TensorBoard, Trackio, Weights & Biases.

Each tracker's own package is imported when its tracker is made, since that takes a second or more.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from PIL import Image

from veneer.config.document import write_yaml
from veneer.config.schema import TrackingConfig
from veneer.errors import UserError
from veneer.run.folder import TENSORBOARD

__all__ = ["TRACKERS", "Place", "TensorBoard", "Tracker", "Trackio", "Wandb", "trackers_of"]

_DEFAULT = "tensorboard"
_SHEETS = "samples"
"""Name that sample sheets have in every tracker."""


@dataclass(frozen=True)
class Place:
    """What a tracker is told of a run before its first point.

    Attributes:
        folder: of the run.
        project: that it belongs to.
        run: its name, the same after a resume.
        settings: its configuration, plain values.
        start: steps done by an earlier process.
        told: the last step that an earlier process told this tracker, which may be later than ``start``, for it went on
            after its last checkpoint; -1: none, not even the base's sheet, which is of step 0.
    """

    folder: Path
    project: str
    run: str
    settings: Mapping[str, Any]
    start: int = 0
    told: int = -1


class Tracker(Protocol):
    """Takes the points of a run's curves. Made from a :class:`Place`."""

    shown_by: str
    """The command or the page that shows them."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take one point of each curve."""

    def picture(self, step: int, path: Path) -> None:
        """Take the sample sheet of a step."""

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Take what the run came to, after its last ``step``."""

    def close(self, failed: bool) -> None:
        """Write what is left; ``failed``: the run did not come to its end."""


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder, one a process.

    Each point is in its file once it is told, so that a run that is killed loses none. A process that resumes a run
    begins its file with a mark that makes TensorBoard drop all that an earlier process told after the checkpoint.

    The records are written here, and not by the package's own writer, which does it in a thread: a full disk would
    print a traceback from there.
    """

    def __init__(self, place: Place) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        self._event, self._summary, self._checksum = event_pb2, summary_pb2, masked_crc32c
        folder = place.folder / TENSORBOARD
        folder.mkdir(exist_ok=True)
        self.shown_by = f"tensorboard --logdir {shlex.quote(str(folder))}"
        # the readers take the files in the order of their names
        path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = path.open("xb", buffering=0)
        self._write(0, file_version="brain.Event:2")
        if place.start:
            mark = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(place.start + 1, session_log=mark)
        text = "".join(f"    {line}\n" for line in write_yaml(dict(place.settings)).splitlines())  # Markdown's for code
        told = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        self._value(place.start, "config", tensor=told, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin))

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
        self._value(step, _SHEETS, image=image)

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Curves of one point."""
        self.scalars(step, values)

    def close(self, failed: bool) -> None:
        """Close the file; all is in it."""
        self._file.close()

    def _value(self, step: int, tag: str, **value: Any) -> None:
        self._write(step, summary=self._summary.Summary(value=[self._summary.Summary.Value(tag=tag, **value)]))

    def _write(self, step: int, **what: Any) -> None:
        """Add a record (TFRecord: length, its checksum, content, its checksum)."""
        content = self._event.Event(wall_time=time.time(), step=step, **what).SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = [struct.pack("<I", self._checksum(part)) for part in (length, content)]
        record = b"".join((length, sums[0], content, sums[1]))
        if self._file.write(record) != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Trackio:
    """A run in Trackio's local database, or where its own environment variables say.

    A step that an earlier process told is not told again: as a resumed run goes on to the same bits, its points would
    be the same.
    """

    def __init__(self, place: Place) -> None:
        import trackio

        self._trackio, self._told = trackio, place.told
        self._run = trackio.init(
            project=place.project, name=place.run, config=dict(place.settings), resume="allow", embed=False
        )
        self.shown_by = f"trackio show --project {shlex.quote(place.project)}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take one point of each curve."""
        if step > self._told:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Take a sheet."""
        if step > self._told:
            self._run.log({_SHEETS: self._trackio.Image(str(path))}, step=step)

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Curves of one point."""
        self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        """Wait until all is written."""
        self._trackio.finish()


class Wandb:
    """A run at Weights & Biases, or with ``WANDB_MODE=offline`` in ``wandb/`` of the run's folder.

    As with :class:`Trackio`, no step is told twice. What a run came to is in its summary.
    """

    def __init__(self, place: Place) -> None:
        import wandb

        self._wandb, self._told = wandb, place.told
        self._run = wandb.init(
            project=place.project,
            id=place.run,
            name=place.run,
            dir=str(place.folder),
            config=dict(place.settings),
            resume="allow",
            settings=wandb.Settings(console="off"),  # else it would keep every stroke of the bar
        )
        # without a connection there is no page, and its files lie above those of the run
        self.shown_by = self._run.url or f"wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take one point of each curve."""
        if step > self._told:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Take a sheet."""
        if step > self._told:
            self._run.log({_SHEETS: self._wandb.Image(str(path))}, step=step)

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Put it into the run's summary."""
        self._run.summary.update(dict(values))

    def close(self, failed: bool) -> None:
        """Wait until all is sent, or written where it is offline."""
        self._run.finish(exit_code=int(failed))


TRACKERS: Mapping[str, Callable[[Place], Tracker]] = MappingProxyType(
    {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
)
"""By the name of their package, of Veneer's extra that installs it, and in ``tracking.trackers``."""


def trackers_of(config: TrackingConfig) -> tuple[str, ...]:
    """Names of the trackers that a config asks for: by default TensorBoard, if it is installed.

    Raises:
        UserError: one that it names is not installed.
    """
    if config.trackers is None:
        return (_DEFAULT,) if _is_installed(_DEFAULT) else ()
    for name in config.trackers:
        if not _is_installed(name):
            remedy = f"pip install 'veneer[{name}]'"
            raise UserError(f"{name} is not installed", where="tracking.trackers", remedy=remedy)
    return config.trackers


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    # a folder of that name in the working directory, as wandb makes one, is a package without an origin
    return spec is not None and spec.origin is not None

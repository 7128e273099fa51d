"""All trackers by name, and which of them a run asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType

from veneer.config.schema import TrackingConfig
from veneer.errors import UserError
from veneer.run.trackers.protocol import TrackedRun, Tracker
from veneer.run.trackers.tensorboard import TensorBoard
from veneer.run.trackers.trackio import Trackio
from veneer.run.trackers.wandb import Wandb

__all__ = ["TRACKERS", "trackers_of"]

TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = MappingProxyType(
    {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
)
"""By the name of their package, of Veneer's extra that installs it, and in ``tracking.trackers``."""
_DEFAULT = "tensorboard"


def trackers_of(config: TrackingConfig) -> tuple[str, ...]:
    """Return the names of the trackers that a config asks for: by default TensorBoard, if it is installed.

    Raises:
        UserError: one that it names is not installed.
    """
    if config.trackers is None:
        return (_DEFAULT,) if _is_installed(_DEFAULT) else ()
    for name in config.trackers:
        if not _is_installed(name):
            raise UserError(
                f"{name} is not installed",
                code="tracking.not_installed",
                where="tracking.trackers",
                remedy=f"pip install 'veneer[{name}]'",
            )
    return config.trackers


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    # a folder of that name in the working directory, as wandb makes one, is a package without an origin
    return spec is not None and spec.origin is not None

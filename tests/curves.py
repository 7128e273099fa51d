"""A run's curves and sample sheets, as TensorBoard itself reads them from its folder."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from veneer.run.folder import TENSORBOARD


def events_in(output: Path) -> EventAccumulator:
    """Return all events: by default TensorBoard would keep a sample of many."""
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(output / TENSORBOARD), size_guidance=everything).Reload()


def curves(output: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of each point, by the names of the curves."""
    events = events_in(output)
    return {name: [(point.step, point.value) for point in events.Scalars(name)] for name in events.Tags()["scalars"]}


def sheets(output: Path) -> dict[int, bytes]:
    """Return the sample sheets' files, by step."""
    return {image.step: image.encoded_image_string for image in events_in(output).Images("samples")}

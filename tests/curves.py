"""What TensorBoard itself reads from a run's folder."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from veneer.run.folder import TENSORBOARD


def events_in(output: Path) -> EventAccumulator:
    """All of them: it would keep a sample of many."""
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(output / TENSORBOARD), size_guidance=everything).Reload()


def curves(output: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each point, by the names of the curves."""
    found = events_in(output)
    return {name: [(point.step, point.value) for point in found.Scalars(name)] for name in found.Tags()["scalars"]}


def sheets(output: Path) -> dict[int, bytes]:
    """The sample sheets' files, by step."""
    return {image.step: image.encoded_image_string for image in events_in(output).Images("samples")}

"""A sheet of the samples nearest to a training picture, and of real pictures to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from veneer.config.schema import RunConfig
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset
from veneer.data.transform import load_centered
from veneer.evaluate.copying import SampledPicture
from veneer.evaluate.results import Copying, Neighbour
from veneer.sample.sheet import sheet

__all__ = ["centered_picture", "copying_sheet"]

_COLUMNS = 8


def copying_sheet(
    copying: Copying, samples: Sequence[SampledPicture], pictures: Dataset, config: RunConfig, side: int
) -> Image.Image:
    """Draw the samples nearest to a training picture above those, and the same of real pictures below, nearest first.

    Args:
        copying: from ``find_copies``.
        samples: as there.
        pictures: as there.
        config: as there.
        side: of the squares that were compared, in pixels.
    """
    by_path = {str(sample.path): sample for sample in (*pictures.train.samples, *pictures.held_out.samples)}

    def real(path: str, mirrored: bool = False) -> Image.Image:
        image = centered_picture(by_path[path], config, side)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    images = {sample.file: sample.image for sample in samples}
    above = [(images[near.picture], real(near.nearest, near.mirrored)) for near in copying.samples[:_COLUMNS]]
    below = [(real(near.picture), real(near.nearest, near.mirrored)) for near in copying.real[:_COLUMNS]]
    return _stack(
        _draw_pairs(above, copying.samples, ("sample", "nearest training picture")),
        _draw_pairs(below, copying.real, (f"real: {copying.reference}", "nearest other training picture")),
    )


def centered_picture(sample: Sample, config: RunConfig, side: int) -> Image.Image:
    """Return the middle square of a real picture, as the model sees it."""
    levels_CHW = load_centered(sample, config.data, (side, side)).add(1.0).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(levels_CHW.permute(1, 2, 0).numpy())


def _draw_pairs(
    pairs: Sequence[tuple[Image.Image, Image.Image]], neighbours: Sequence[Neighbour], labels: Sequence[str]
) -> Image.Image:
    """Draw each pair as a column, below its angle."""
    headings = [f"{near.angle:.1f} degrees{': a copy?' if near.flagged else ''}" for near in neighbours]
    return sheet([[pair[row] for pair in pairs] for row in (0, 1)], columns=headings[: len(pairs)], labels=labels)


def _stack(above: Image.Image, below: Image.Image) -> Image.Image:
    """Draw one picture above the other."""
    paper = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    paper.paste(above, (0, 0))
    paper.paste(below, (0, above.height))
    return paper

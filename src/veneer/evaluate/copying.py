"""Does the adapter paint its training pictures again? The nearest one to each picture that it paints, and a yardstick.

Likeness is the angle between the base's latents, the smaller one of either way round: the length of latents is mostly
how full a picture is. The yardstick are real pictures that training did not show: how near each comes to a training
picture. A painted picture that is nearer than any of those was not come upon by style alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from veneer.config.schema import RunConfig
from veneer.data.duplicates import THUMB, lookalikes
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset
from veneer.data.transform import load_centered
from veneer.errors import UserError
from veneer.evaluate.heldout import choose_pictures
from veneer.evaluate.results import Copying, Neighbour
from veneer.family.protocol import Family
from veneer.sample.sheet import sheet

__all__ = ["Painted", "copying_sheet", "find_copies", "picture_of"]

_ENOUGH = 20
"""Held-out pictures from which on they are the yardstick alone: by luck one sample in 21 is nearer than all of them."""
_COLUMNS = 8


@dataclass(frozen=True)
class Painted:
    """A picture that was painted.

    Attributes:
        caption: its prompt.
        file: its name, for the report.
        image: the picture.
    """

    caption: str
    file: str
    image: Image.Image


@dataclass(frozen=True)
class _Query:
    """A picture whose nearest one is looked for.

    Attributes:
        caption: of it.
        file: of it.
        pixels_CHW: in [-1, 1].
        own: its place among the training pictures, which is not to be found; -1 if it is none of them.
    """

    caption: str
    file: str
    pixels_CHW: Tensor
    own: int = -1


class _Gallery:
    """The training pictures, by the direction of their latents, and by a thumbnail.

    Args:
        family: whose autoencoder is asked.
        config: background.
        samples: the pictures.
    """

    def __init__(self, family: Family, config: RunConfig, samples: Sequence[Sample]) -> None:
        self._family, self._config, self._samples = family, config, samples
        pixels = [self.pixels_of(sample) for sample in samples]
        self._directions_ND = torch.stack([self._direction(each) for each in pixels])
        self._thumbs = np.stack([_thumb(each) for each in pixels])

    def pixels_of(self, sample: Sample) -> Tensor:
        """A real picture's middle square at the base's own resolution."""
        return load_centered(sample, self._config.data, self._family.resolution)

    def nearest(self, query: _Query) -> Neighbour:
        """The training picture at the smallest angle, other than the query itself."""
        ways_2D = torch.stack([self._direction(query.pixels_CHW), self._direction(query.pixels_CHW.flip(-1))])
        cosine_2N = ways_2D @ self._directions_ND.T
        if query.own >= 0:
            cosine_2N[:, query.own] = -2
        way, place = divmod(int(cosine_2N.argmax()), len(self._samples))
        found = self._samples[place]
        mine = query.pixels_CHW.flip(-1) if way else query.pixels_CHW
        return Neighbour(
            caption=query.caption,
            picture=query.file,
            nearest=str(found.path),
            angle=float(torch.rad2deg(torch.acos(cosine_2N[way, place].clamp(-1, 1)))),
            pixels=float((mine - self.pixels_of(found)).square().mean().sqrt()) / 2,
            mirrored=bool(way),
            flagged=False,
        )

    def lookalikes(self, queries: Sequence[_Query]) -> set[int]:
        """Places of the queries that look like a training picture other than themselves, either way round."""
        return {place for place, query in enumerate(queries) if self._has_lookalike(query)}

    def _has_lookalike(self, query: _Query) -> bool:
        ways = (_thumb(pixels_CHW) for pixels_CHW in (query.pixels_CHW, query.pixels_CHW.flip(-1)))
        alike_2N = np.stack([lookalikes(self._thumbs, thumb) for thumb in ways])
        if query.own >= 0:
            alike_2N[:, query.own] = False
        return bool(alike_2N.any())

    def _direction(self, pixels_CHW: Tensor) -> Tensor:
        latent_D = self._family.encode_image(pixels_CHW[None]).mean.flatten().double().cpu()
        return nn.functional.normalize(latent_D, dim=0)


def _thumb(pixels_CHW: Tensor) -> npt.NDArray[np.uint8]:
    """A picture (3, H, W) in [-1, 1] as the means of a few cells (8, 8, 3), 0 to 255; as the preflight has it."""
    cells_CHW = nn.functional.adaptive_avg_pool2d(pixels_CHW, THUMB).add(1.0).mul(127.5).round().to(torch.uint8)
    thumb: npt.NDArray[np.uint8] = cells_CHW.permute(1, 2, 0).numpy()
    return thumb


def find_copies(
    config: RunConfig, family: Family, pictures: Dataset, painted: Sequence[Painted]
) -> tuple[Copying, list[str]]:
    """Look for the nearest training picture of each painted one, and of real ones.

    The yardstick are the held-out pictures. Where these are fewer than 20, training pictures are added, each held
    against the others. A real picture that looks like a training picture is no yardstick: it would hide any copy.

    Args:
        config: background, and how many real pictures at most.
        family: the base without the adapter; only its autoencoder is asked.
        pictures: those trained on, all of which are looked at, and those held out.
        painted: with the adapter.

    Returns:
        What was found, and a sentence if pictures were left out of the yardstick.

    Raises:
        UserError: there are too few real pictures to compare with.
    """
    samples = pictures.train.samples
    most = config.validation.pictures
    if not samples:
        raise _too_few()
    gallery = _Gallery(family, config, samples)
    yardstick, alike = _unlike(gallery, [(sample, -1) for sample in choose_pictures(pictures.held_out, most).samples])
    alone = len(yardstick) >= _ENOUGH
    if not alone and len(samples) > 1:
        place_of = {sample.id: place for place, sample in enumerate(samples)}
        more = [(sample, place_of[sample.id]) for sample in choose_pictures(pictures.train, most).samples]
        others, alike_too = _unlike(gallery, more)
        yardstick, alike = yardstick + others, alike + alike_too
    if not yardstick:
        raise _too_few()
    real = [gallery.nearest(each) for each in yardstick]
    found = [gallery.nearest(_Query(each.caption, each.file, _pixels(each.image, family))) for each in painted]
    return _judged(found, real, "held-out pictures" if alone else "held-out and training pictures"), _left_out(alike)


def _too_few() -> UserError:
    what = "there are too few real pictures to tell a copy by"
    return UserError(what, remedy="one training picture and one held-out one that looks different are the least")


def _left_out(count: int) -> list[str]:
    looks = "picture looks" if count == 1 else "pictures look"
    told = f"{count} real {looks} like a training picture, so left out of what a copy is told by"
    return [told] if count else []


def _unlike(gallery: _Gallery, pictures: Sequence[tuple[Sample, int]]) -> tuple[list[_Query], int]:
    """Real pictures, each with its place among the training pictures, less lookalikes of these; and how many are."""
    queries = [_Query(sample.captions[0], str(sample.path), gallery.pixels_of(sample), own) for sample, own in pictures]
    alike = gallery.lookalikes(queries)
    return [each for place, each in enumerate(queries) if place not in alike], len(alike)


def _pixels(image: Image.Image, family: Family) -> Tensor:
    """A painted picture as the autoencoder takes it."""
    side = family.resolution
    pixels_HWC = torch.from_numpy(np.array(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)))
    return pixels_HWC.permute(2, 0, 1).float().div(127.5).sub(1.0)


def _judged(
    found: Iterable[Neighbour],
    real: Iterable[Neighbour],
    yardstick: Literal["held-out pictures", "held-out and training pictures"],
) -> Copying:
    """Flag what is nearer than any real one; of n + 1 alike ones each is the nearest with a chance of 1 / (n + 1)."""
    nearest_real = sorted(real, key=lambda each: each.angle)
    threshold = nearest_real[0].angle
    flagged = [_with_flag(each, threshold) for each in sorted(found, key=lambda each: each.angle)]
    return Copying(
        samples=tuple(flagged),
        real=tuple(nearest_real),
        threshold=threshold,
        flagged=sum(each.flagged for each in flagged),
        expected=len(flagged) / (len(nearest_real) + 1),
        yardstick=yardstick,
    )


def _with_flag(neighbour: Neighbour, threshold: float) -> Neighbour:
    return Neighbour(**{**vars(neighbour), "flagged": neighbour.angle < threshold})


def copying_sheet(
    copying: Copying, painted: Sequence[Painted], pictures: Dataset, config: RunConfig, side: int
) -> Image.Image:
    """The painted pictures nearest to a training picture above those, and the same of real ones below, nearest first.

    Args:
        copying: from ``find_copies``.
        painted: as there.
        pictures: as there.
        config: as there.
        side: of the squares that were compare_losses, in pixels.
    """
    samples = {str(sample.path): sample for sample in (*pictures.train.samples, *pictures.held_out.samples)}

    def real(path: str, mirrored: bool = False) -> Image.Image:
        image = picture_of(samples[path], config, side)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    images = {each.file: each.image for each in painted}
    above = [(images[each.picture], real(each.nearest, each.mirrored)) for each in copying.samples[:_COLUMNS]]
    below = [(real(each.picture), real(each.nearest, each.mirrored)) for each in copying.real[:_COLUMNS]]
    return _stacked(
        _pairs(above, copying.samples, ("painted", "nearest training picture")),
        _pairs(below, copying.real, (f"real: {copying.yardstick}", "nearest other training picture")),
    )


def picture_of(sample: Sample, config: RunConfig, side: int) -> Image.Image:
    """A real picture as the model sees it: its middle square."""
    levels_CHW = load_centered(sample, config.data, side).add(1.0).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(levels_CHW.permute(1, 2, 0).numpy())


def _pairs(
    pairs: Sequence[tuple[Image.Image, Image.Image]], neighbours: Sequence[Neighbour], labels: Sequence[str]
) -> Image.Image:
    headings = [f"{each.angle:.1f} degrees{': a copy?' if each.flagged else ''}" for each in neighbours]
    return sheet([[pair[row] for pair in pairs] for row in (0, 1)], columns=headings[: len(pairs)], labels=labels)


def _stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    paper = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    paper.paste(above, (0, 0))
    paper.paste(below, (0, above.height))
    return paper

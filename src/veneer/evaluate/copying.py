"""Copying: the training picture nearest to each sample of an adapter, compared with real pictures.

The distance is the angle between the base's latents, the smaller one of a picture's and its mirror image's: the length
of latents is mostly how full a picture is. Real pictures that training did not show tell how near a picture of the same
style comes to a training picture. A sample that is nearer than any of those was not come upon by style alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from veneer.config.schema import RunConfig
from veneer.data.duplicates import THUMB, lookalikes
from veneer.data.manifest import Manifest, Sample
from veneer.data.preflight import Dataset
from veneer.data.transform import load_centered
from veneer.errors import UserError
from veneer.evaluate.heldout import choose_pictures
from veneer.evaluate.results import Copying, Neighbour
from veneer.family.protocol import Family

__all__ = ["SampledPicture", "find_copies"]

_ENOUGH_HELD_OUT = 20
"""Held-out pictures that are enough to compare with: by chance one sample in 21 is nearer than all of them."""


_Reference = Literal["held-out pictures", "held-out and training pictures"]


@dataclass(frozen=True)
class SampledPicture:
    """A picture that was sampled with the adapter.

    Attributes:
        caption: its prompt.
        file: its name in the results.
        image: the picture.
    """

    caption: str
    file: str
    image: Image.Image


@dataclass(frozen=True)
class _Query:
    """A picture whose nearest training picture is looked for.

    Attributes:
        caption: of the picture.
        file: of the picture.
        pixels_CHW: in [-1, 1].
        own_index: its index among the training pictures, so that it does not find itself; None if it is none of them.
    """

    caption: str
    file: str
    pixels_CHW: Tensor
    own_index: int | None = None


class _TrainingPictures:
    """An index of the training pictures by the direction of their latents, and by their thumbnails.

    Args:
        family: whose autoencoder encodes the pictures.
        config: background.
        samples: the pictures.
    """

    def __init__(self, family: Family, config: RunConfig, samples: Sequence[Sample]) -> None:
        self._family, self._config, self._samples = family, config, samples
        pixels = [self.pixels_of(sample) for sample in samples]
        self._directions_ND = torch.stack([self._direction(pixels_CHW) for pixels_CHW in pixels])
        self._thumbs = np.stack([_thumb(pixels_CHW) for pixels_CHW in pixels])

    def query(self, sample: Sample, own_index: int | None = None) -> _Query:
        """Return the query of a real picture."""
        return _Query(sample.captions[0], str(sample.path), self.pixels_of(sample), own_index)

    def pixels_of(self, sample: Sample) -> Tensor:
        """Return the middle square of a real picture at the base's own resolution, (3, H, W) in [-1, 1]."""
        side = self._family.resolution
        return load_centered(sample, self._config.data, (side, side))

    def nearest(self, query: _Query) -> Neighbour:
        """Return the training picture at the smallest angle, other than the query itself."""
        directions_2D = torch.stack([self._direction(query.pixels_CHW), self._direction(query.pixels_CHW.flip(-1))])
        cosine_2N = directions_2D @ self._directions_ND.T
        if query.own_index is not None:
            cosine_2N[:, query.own_index] = -2
        is_mirrored, index = divmod(int(cosine_2N.argmax()), len(self._samples))
        nearest = self._samples[index]
        pixels_CHW = query.pixels_CHW.flip(-1) if is_mirrored else query.pixels_CHW
        return Neighbour(
            caption=query.caption,
            picture=query.file,
            nearest=str(nearest.path),
            angle=float(torch.rad2deg(torch.acos(cosine_2N[is_mirrored, index].clamp(-1, 1)))),
            pixels=float((pixels_CHW - self.pixels_of(nearest)).square().mean().sqrt()) / 2,
            mirrored=bool(is_mirrored),
            flagged=False,
        )

    def has_lookalike(self, query: _Query) -> bool:
        """Return whether the query or its mirror image looks like a training picture other than itself."""
        thumbs = (_thumb(pixels_CHW) for pixels_CHW in (query.pixels_CHW, query.pixels_CHW.flip(-1)))
        alike_2N = np.stack([lookalikes(self._thumbs, thumb) for thumb in thumbs])
        if query.own_index is not None:
            alike_2N[:, query.own_index] = False
        return bool(alike_2N.any())

    def _direction(self, pixels_CHW: Tensor) -> Tensor:
        """Return a picture's latents as a vector of length 1, (D,)."""
        latent_D = self._family.encode_image(pixels_CHW[None]).mean.flatten().double().cpu()
        return nn.functional.normalize(latent_D, dim=0)


def _thumb(pixels_CHW: Tensor) -> npt.NDArray[np.uint8]:
    """Return the thumbnail (8, 8, 3) of a picture (3, H, W) in [-1, 1], from 0 to 255, as the preflight makes it."""
    cells_CHW = nn.functional.adaptive_avg_pool2d(pixels_CHW, THUMB).add(1.0).mul(127.5).round().to(torch.uint8)
    thumb: npt.NDArray[np.uint8] = cells_CHW.permute(1, 2, 0).numpy()
    return thumb


def find_copies(
    config: RunConfig, family: Family, pictures: Dataset, samples: Sequence[SampledPicture]
) -> tuple[Copying, list[str]]:
    """Find the nearest training picture of each sample, and of real pictures to compare with.

    Samples are compared with the held-out pictures. Where these are fewer than 20, training pictures are added, each of
    which is compared with the others. A real picture that looks like a training picture is left out, for it would hide
    any copy.

    Args:
        config: background, and how many real pictures at most.
        family: the base without the adapter; only its autoencoder is used.
        pictures: those trained on, all of which are searched, and those held out.
        samples: of the adapter.

    Returns:
        The nearest pictures, and a note if real pictures were left out.

    Raises:
        UserError: there are too few real pictures to compare with.
    """
    if not pictures.train.samples:
        raise _too_few()
    index = _TrainingPictures(family, config, pictures.train.samples)
    comparable, left_out, reference = _real_queries(index, pictures, config.validation.pictures)
    if not comparable:
        raise _too_few()
    real = [index.nearest(query) for query in comparable]
    queries = [_Query(sample.caption, sample.file, _pixels(sample.image, family)) for sample in samples]
    return _flag_copies([index.nearest(query) for query in queries], real, reference), _left_out_note(left_out)


def _too_few() -> UserError:
    what = "there are too few real pictures to recognise a copy by"
    remedy = "one training picture and one held-out one that looks different are the least"
    return UserError(what, code="evaluate.too_few_pictures", remedy=remedy)


def _left_out_note(count: int) -> list[str]:
    looks = "picture looks" if count == 1 else "pictures look"
    return [f"{count} real {looks} like a training picture, so left out of the search for copies"] if count else []


def _real_queries(index: _TrainingPictures, pictures: Dataset, limit: int) -> tuple[list[_Query], int, _Reference]:
    """Return real pictures to compare with, how many were left out as lookalikes, and which pictures they are."""
    candidates = [index.query(sample) for sample in choose_pictures(pictures.held_out, limit).samples]
    unlike = [query for query in candidates if not index.has_lookalike(query)]
    if len(unlike) >= _ENOUGH_HELD_OUT:
        return unlike, len(candidates) - len(unlike), "held-out pictures"
    if len(pictures.train.samples) > 1:
        more = _training_queries(index, pictures.train, limit)
        candidates += more
        unlike += [query for query in more if not index.has_lookalike(query)]
    return unlike, len(candidates) - len(unlike), "held-out and training pictures"


def _training_queries(index: _TrainingPictures, pictures: Manifest, limit: int) -> list[_Query]:
    """Return queries of training pictures, none of which finds itself."""
    index_of = {sample.id: number for number, sample in enumerate(pictures.samples)}
    return [index.query(sample, index_of[sample.id]) for sample in choose_pictures(pictures, limit).samples]


def _pixels(image: Image.Image, family: Family) -> Tensor:
    """Return a sampled picture as the autoencoder takes it, (3, H, W) in [-1, 1]."""
    side = family.resolution
    pixels_HWC = torch.from_numpy(np.array(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)))
    return pixels_HWC.permute(2, 0, 1).float().div(127.5).sub(1.0)


def _flag_copies(samples: Sequence[Neighbour], real: Sequence[Neighbour], reference: _Reference) -> Copying:
    """Flag samples that are nearer than any of n real pictures.

    Of n + 1 pictures that are alike in this, each is the nearest with a chance of 1 / (n + 1).
    """
    nearest_real = sorted(real, key=lambda neighbour: neighbour.angle)
    nearest_samples = sorted(samples, key=lambda neighbour: neighbour.angle)
    threshold = nearest_real[0].angle
    flagged = tuple(replace(neighbour, flagged=neighbour.angle < threshold) for neighbour in nearest_samples)
    return Copying(
        samples=flagged,
        real=tuple(nearest_real),
        threshold=threshold,
        flagged=sum(neighbour.flagged for neighbour in flagged),
        expected=len(flagged) / (len(nearest_real) + 1),
        reference=reference,
    )

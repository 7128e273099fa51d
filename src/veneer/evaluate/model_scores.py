"""Scores of sampled pictures by the user's models: likeness, beauty, and Frechet and kernel distances.

Base and adapter sample the same captions from the same seeds, so each score is a paired difference. A score of single
pictures has the interval of ``mean_interval``; a distance between sets of pictures has the jackknife's, over captions
(Efron and Tibshirani 1993, chapter 11).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from veneer.errors import UserError
from veneer.evaluate.interval import LEVEL, mean_interval, t_quantile
from veneer.evaluate.results import PictureScore
from veneer.evaluate.score_models import FeatureExtractor, ScoreModels

__all__ = ["frechet_distance", "kernel_distance", "score_pictures"]

_MIN_CAPTIONS = 8
"""Fewest captions for a distance between sets of pictures."""

Distance = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class _Features:
    """The features of the real pictures, the base's and the adapter's, each (N, D)."""

    real_ND: Tensor
    base_ND: Tensor
    adapter_ND: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> _Features:
        """Return the results of a function of each."""
        return _Features(function(self.real_ND), function(self.base_ND), function(self.adapter_ND))


def score_pictures(
    models: ScoreModels,
    captions: Sequence[str],
    real: Sequence[Image.Image],
    base: Sequence[Image.Image],
    adapter: Sequence[Image.Image],
    seed: int = 0,
) -> tuple[tuple[PictureScore, ...], list[str]]:
    """Score the pictures that base and adapter sampled.

    Args:
        models: the user's.
        captions: the prompts.
        real: a real picture of each caption.
        base: a sampled picture of each.
        adapter: the same with the adapter.
        seed: of the resampling.

    Returns:
        The scores, and a note for each that could not be computed.
    """
    scores: list[PictureScore] = []
    features: _Features | None = None
    for name, extractor in (("clip", models.clip), ("dino", models.dino)):
        if extractor is not None:
            features = _Features(*(extractor.image_features(images) for images in (real, base, adapter)))
            scores += _single_scores(models, name, extractor, captions, features, seed)
    if features is None:
        return (), []
    try:  # by DINO's features, which came last, where there are some
        distances = _distance_scores("dino" if models.dino else "clip", features.map(Tensor.double))
    except UserError as fault:
        return tuple(scores), [str(fault)]
    return (*scores, *distances), []


def _single_scores(
    models: ScoreModels,
    name: str,
    extractor: FeatureExtractor,
    captions: Sequence[str],
    features: _Features,
    seed: int,
) -> list[PictureScore]:
    """Score single pictures: likeness to the real picture, likeness to the caption, and beauty."""

    def paired(score: str, function: Callable[[Tensor], Tensor]) -> PictureScore:
        return _paired(score, function(features.base_ND), function(features.adapter_ND), seed)

    scores = [paired(f"{name}_image", lambda sampled_ND: (features.real_ND * sampled_ND).sum(1))]
    if name == "clip":
        text_ND = extractor.text_features(captions)
        scores.append(paired("clip_text", lambda sampled_ND: (text_ND * sampled_ND).sum(1)))
        if models.aesthetic is not None:
            scores.append(paired("aesthetic", models.aesthetic.score))
    return scores


def _paired(name: str, base_N: Tensor, adapter_N: Tensor, seed: int) -> PictureScore:
    """Return the score of single pictures, with an interval of the difference."""
    base, adapter = base_N.double().numpy(), adapter_N.double().numpy()
    low, high = mean_interval(adapter - base, seed)
    means = float(base.mean()), float(adapter.mean())
    return PictureScore(name, *means, means[1] - means[0], low, high, len(base), higher_is_better=True)


def _distance_scores(name: str, features: _Features) -> list[PictureScore]:
    """Return Frechet and kernel distances of the sampled sets to the real one, by torchmetrics.

    Raises:
        UserError: there are too few captions, or torchmetrics is not installed.
    """
    count = len(features.real_ND)
    if count < _MIN_CAPTIONS:
        what = f"FID and KID of {count} pictures would say nothing; {_MIN_CAPTIONS} captions are the least"
        raise UserError(what, code="evaluate.too_few_captions")
    return [
        _jackknifed(f"fid_{name}", frechet_distance, _in_their_span(features)),
        _jackknifed(f"kid_{name}", kernel_distance, features),
    ]


def _jackknifed(name: str, distance: Distance, features: _Features) -> PictureScore:
    """Return both distances and their difference; each caption is left out once, with all three pictures of it."""
    base, adapter = distance(features.real_ND, features.base_ND), distance(features.real_ND, features.adapter_ND)
    count = len(features.real_ND)
    masks = [torch.arange(count) != place for place in range(count)]
    parts = [_Features(features.real_ND[mask], features.base_ND[mask], features.adapter_ND[mask]) for mask in masks]
    differences = np.array(
        [distance(part.real_ND, part.adapter_ND) - distance(part.real_ND, part.base_ND) for part in parts]
    )
    # Efron and Tibshirani 1993, eq. 11.5
    error = math.sqrt((count - 1) / count * float(np.square(differences - differences.mean()).sum()))
    reach, mean = t_quantile(count - 1, LEVEL) * error, adapter - base
    return PictureScore(name, base, adapter, mean, mean - reach, mean + reach, count, higher_is_better=False)


def frechet_distance(real_ND: Tensor, sampled_MD: Tensor) -> float:
    """Return the Frechet distance of two Gaussians (Heusel et al. 2017, eq. 6) with the sets' means and covariances."""
    from_image = _torchmetrics("fid")
    make = partial(from_image.FrechetInceptionDistance, feature=_Identity(real_ND.shape[1]))
    return _computed(make, real_ND, sampled_MD)


def kernel_distance(real_ND: Tensor, sampled_MD: Tensor) -> float:
    """Return the squared maximum mean discrepancy with a cubic kernel, unbiased (Binkowski et al. 2018, section 4)."""
    from_image = _torchmetrics("kid")
    size = min(len(real_ND), len(sampled_MD))
    features = _Identity(real_ND.shape[1])
    make = partial(from_image.KernelInceptionDistance, feature=features, subsets=1, subset_size=size)
    return _computed(make, real_ND, sampled_MD)


def _computed(make: Callable[[], Any], real_ND: Tensor, sampled_MD: Tensor) -> float:
    """Return what a metric of torchmetrics computes of two sets of features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that features are kept in memory, as they should be
        metric = make()
    metric.set_dtype(torch.float64)
    metric.update(real_ND, real=True)
    metric.update(sampled_MD, real=False)
    with torch.random.fork_rng(devices=[]):
        # KID draws its subsets with PyTorch's global generator; the only subset has all in it, but its order is in the
        # last bits
        torch.default_generator.manual_seed(0)
        result = metric.compute()
    return float(result[0] if isinstance(result, tuple) else result)


def _torchmetrics(module: str) -> Any:
    try:
        return import_module(f"torchmetrics.image.{module}")
    except ImportError:
        what, remedy = "FID and KID need torchmetrics", "pip install 'veneer[scores]'"
        raise UserError(what, code="evaluate.torchmetrics_missing", remedy=remedy) from None


class _Identity(nn.Module):
    """A feature extractor for torchmetrics that takes features and returns them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features_ND: Tensor) -> Tensor:
        """Return the features (N, D)."""
        return features_ND


def _in_their_span(features: _Features) -> _Features:
    """Return the same points in coordinates of the space that they span: distances stay, and covariances are small."""
    all_ND = torch.cat([features.real_ND, features.base_ND, features.adapter_ND])
    mean_D = all_ND.mean(dim=0)
    basis_KD = torch.linalg.svd(all_ND - mean_D, full_matrices=False).Vh
    return features.map(lambda points_ND: (points_ND - mean_D) @ basis_KD.T)

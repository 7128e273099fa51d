"""A measure of how alike two pictures are as things, whatever their style; fitted on real drawings only.

Between two sets the drawings of one thing differ in many ways that have nothing to do with the thing: how much paper is
covered, how dark the edges are. So each set's mean is taken off, the directions in which drawings of one thing differ
are shrunk, and those in which things differ are kept (linear discriminant analysis, Fisher 1936; Rao 1948). Likeness is
the cosine of the angle in what is left. How much is shrunk and how many directions are kept is chosen by
cross-validation on things that the demo does not hold out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["WEIGHTS", "Likeness", "chosen", "fit", "found", "load", "places_by_angle", "save"]

WEIGHTS = Path(__file__).parent / "likeness.safetensors"
RIDGES, DIRECTIONS = (0.1, 0.3, 1.0, 3.0), (32, 64, 128)
FOLDS = 6
TOP = 5

Drawn = Mapping[str, Mapping[str, Tensor]]
"""Latents by set and name; each (2, F): as drawn, and mirrored."""


@dataclass(frozen=True)
class Likeness:
    """The directions of a latent in which things differ, and styles do not.

    Attributes:
        directions_FD: the directions, scaled.
        mean_F: of OpenMoji's drawings.
    """

    directions_FD: Tensor
    mean_F: Tensor

    def places(self, made_NF: Tensor, real_2NF: Tensor) -> Tensor:
        """Return each picture's own drawing's place, the n-th of ``real_2NF``, among all, either way round; 0 is first.

        Args:
            made_NF: latents of pictures, whose own mean is taken off.
            real_2NF: OpenMoji's drawings, as they are and mirrored.
        """
        made_NF, real_2NF = made_NF - made_NF.mean(0), real_2NF - self.mean_F
        return places_by_angle(made_NF @ self.directions_FD, real_2NF @ self.directions_FD)


def places_by_angle(made_NF: Tensor, real_2NF: Tensor) -> Tensor:
    """Return the places by the bare angle between the latents as they are.

    The angle, not the distance: the length of latents is how much of the paper is covered, in which the sets differ.
    """
    made, real = nn.functional.normalize(made_NF), nn.functional.normalize(real_2NF, dim=-1)
    alike = (made @ real.mT).amax(0)
    return (alike > alike.diagonal()[:, None]).sum(1)


def found(places: Tensor) -> float:
    """Return the share of pictures whose own drawing is among the first five."""
    return (places < TOP).float().mean().item()


def fit(drawn: Drawn, names: Sequence[str], ridge: float, directions: int) -> Likeness:
    """Fit on the drawings of ``names`` in every set that has them.

    Args:
        drawn: by set and name.
        names: the things.
        ridge: added to the covariance within a thing, as a share of its mean variance.
        directions: kept.
    """
    means = {style: torch.stack([of[n][0] for n in names if n in of]).mean(0) for style, of in drawn.items()}
    things = [
        torch.stack([of[name][side] - means[style] for style, of in drawn.items() if name in of])
        for name in names
        for side in (0, 1)
    ]
    centres = torch.stack([thing.mean(0) for thing in things])
    apart = torch.cat([thing - centre for thing, centre in zip(things, centres, strict=True)])
    within = _covariance(apart)
    within += ridge * within.diagonal().mean() * torch.eye(len(within))
    variances, axes = torch.linalg.eigh(within)
    whiten = axes @ torch.diag(variances.rsqrt()) @ axes.T
    _, kept = torch.linalg.eigh(whiten @ _covariance(centres - centres.mean(0)) @ whiten)
    return Likeness(whiten @ kept[:, -directions:], means["openmoji"])


def _covariance(centred_NF: Tensor) -> Tensor:
    return centred_NF.T @ centred_NF / len(centred_NF)


def chosen(drawn: Drawn, names: Sequence[str]) -> tuple[float, int, float]:
    """Return ridge and directions by which Noto's drawings best find OpenMoji's of things left out, and how often."""
    folds = [list(names[fold::FOLDS]) for fold in range(FOLDS)]
    tried = {}
    for ridge, directions in product(RIDGES, DIRECTIONS):
        shares = []
        for fold in folds:
            likeness = fit(drawn, [name for name in names if name not in set(fold)], ridge, directions)
            shares.append(real_share(likeness, drawn, fold))
        tried[ridge, directions] = sum(shares) / FOLDS
    best = max(tried, key=lambda each: tried[each])
    return *best, tried[best]


def real_share(likeness: Likeness, drawn: Drawn, names: Sequence[str]) -> float:
    """Return how often Noto's real drawings find OpenMoji's of the same things: the best that a picture can do."""
    noto = torch.stack([drawn["noto"][name][0] for name in names])
    openmoji = torch.stack([drawn["openmoji"][name] for name in names], dim=1)
    return found(likeness.places(noto, openmoji))


def save(likeness: Likeness, path: Path = WEIGHTS) -> None:
    """Write the measure."""
    save_file({"directions": likeness.directions_FD.contiguous(), "mean": likeness.mean_F.contiguous()}, path)


def load(path: Path = WEIGHTS) -> Likeness:
    """Load the committed measure."""
    tensors = load_file(path)
    return Likeness(tensors["directions"], tensors["mean"])

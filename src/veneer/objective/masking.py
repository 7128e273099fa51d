"""Weights of the loss by place: a mask says how much each part of a picture counts.

Masks are 1 where a picture is learned and 0 where it is not, as kohya's scripts, OneTrainer and ai-toolkit have them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["masked_mean_B", "place_weights"]


def place_weights(mask: Tensor, unmasked_weight: float) -> Tensor:
    """Return w = 1 - (1 - u) (1 - m): 1 in the mask, u outside of it; where the mask is 1 it is 1 to the bit.

    Args:
        mask: m, in [0, 1].
        unmasked_weight: u, in [0, 1).
    """
    return 1 - (1 - unmasked_weight) * (1 - mask)


def masked_mean_B(error: Tensor, weights: Tensor, *, normalized: bool) -> Tensor:
    """Return the mean error of each row by the weights w of its N places, and over channels and frames (B,).

    sum_i w_i e_i / sum_i w_i where it is normalized, so that a picture of a small mask counts as much as one of a large
    mask (OneTrainer's ``normalize_masked_area_loss``, ai-toolkit); else sum_i w_i e_i / N (kohya's ``masked_loss``). A
    row of weights 0 has the loss 0. Weights of 1 give the plain mean to the bit.

    Args:
        error: squared error (B, ..., h, w).
        weights: (B, 1, h, w), the same for all channels and frames.
        normalized: by the area of the weights.
    """
    places = weights.shape[-2] * weights.shape[-1]
    everywhere = weights.view(len(weights), *[1] * (error.ndim - 3), *weights.shape[-2:])
    mean_B = (error * everywhere).flatten(1).mean(dim=1)
    if not normalized:
        return mean_B
    # divided, for a mean by a GPU multiplies by the reciprocal, which does not give 1 for every number of ones
    area_B = weights.flatten(1).sum(dim=1) / places
    return mean_B / area_B.clamp(min=torch.finfo(area_B.dtype).tiny)

"""Latents as tokens: squares of 2 x 2 of them in one row, for families whose transformers are given such."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PATCH", "pack", "places", "unpack"]

PATCH = 2
"""Latents that one token of a picture is wide."""


def pack(latents_BCHW: Tensor) -> Tensor:
    """Turn latents into tokens (B, H/2 W/2, 4C), each of a square of 2 x 2 with its channels in the order (c, y, x)."""
    squares: Tensor = latents_BCHW.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens_BLC: Tensor, rows: int) -> Tensor:
    """Turn tokens back into latents (B, C/4, 2 rows, 2 columns).

    Args:
        tokens_BLC: row by row.
        rows: how many rows of tokens there are.
    """
    grid: Tensor = tokens_BLC.unflatten(1, (rows, -1)).unflatten(3, (-1, PATCH, PATCH))  # (B, rows, columns, C, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def places(height: int, width: int, device: torch.device, picture: int = 0) -> Tensor:
    """Return (picture, row, column) of each token of a picture (H W, 3), float32."""
    rows_HW, columns_HW = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([torch.full_like(rows_HW, picture), rows_HW, columns_HW], dim=-1).flatten(0, 1).float()

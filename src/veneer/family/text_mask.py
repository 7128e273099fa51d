"""Texts of different lengths in one batch, for families whose denoisers see no padding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from veneer.family.protocol import Conditioning

__all__ = ["cut_to_longest", "without_padding"]


def without_padding(conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
    """Return ``text`` (B, T, ...) up to the longest row's last token, and its ``mask`` (B, T) if it masks anything.

    Args:
        conditioning: whose ``mask`` is true where a token is.
    """
    text, mask_BT = conditioning["text"], conditioning["mask"]
    if isinstance(mask_BT, FakeTensor) or mask_BT.is_meta:  # a plan's, which has no numbers: all are taken to be there
        return text, None
    longest = int(mask_BT.any(dim=0).nonzero().max()) + 1
    text, mask_BT = text[:, :longest], mask_BT[:, :longest].bool()
    return text, None if bool(mask_BT.all()) else mask_BT


def cut_to_longest(conditioning: Conditioning) -> Conditioning:
    """Return ``text`` and ``mask`` without what is padding in every row, as they are stored."""
    text, mask_BT = without_padding(conditioning)
    mask_BT = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask_BT is None else mask_BT
    return Conditioning({"text": text, "mask": mask_BT})

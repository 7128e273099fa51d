"""Texts of different lengths in one batch, for families whose denoisers see no padding."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from veneer.family.protocol import Conditioning

__all__ = ["without_padding"]


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

"""Which of PyTorch's fused attention kernels are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["trusted_attention"]


@contextmanager
def trusted_attention() -> Iterator[None]:
    """Leave attention to flash and memory-efficient kernels, also where PyTorch prefers cuDNN's: on Hopper GPUs.

    Where the gradient of the output is a slice of a larger tensor, as in FLUX behind its joined projections, cuDNN's
    backward pass reads other memory: wrong gradients, NaN, or an illegal access (seen with PyTorch 2.11). The
    backward pass belongs inside as well, since recomputed blocks choose their kernels there.
    """
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_enabled)

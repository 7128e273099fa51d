"""Random numbers keyed by what they are for, never by what was drawn before them.

Noise, timesteps, crops, caption dropout and order depend on (seed, step, sample id, purpose) alone, so they are the
same whatever the number of workers, processes or restarts, and any batch can be recomputed alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_SEED", "key", "torch_generator", "uniform"]

MAX_SEED = 2**63 - 1
"""The greatest seed that a user may give: PyTorch takes less than 2**64, and a sheet's pictures count up from it."""


def key(*parts: int | str) -> int:
    """Return a 63-bit number for a tuple of parts; the same on every machine and in every Python."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(*parts: int | str) -> float:
    """Return a number in [0, 1) for a tuple of parts."""
    return key(*parts) / 2**63


def torch_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator whose numbers depend on the parts alone."""
    import torch

    return torch.Generator().manual_seed(key(*parts))

"""The base of a run, on the machine's GPU where it has one."""

from __future__ import annotations

import torch

from veneer.family.base import Family
from veneer.family.registry import load_family

__all__ = ["load_base"]


def load_base(base: str) -> Family:
    """Load a base model in float32, on the GPU if PyTorch finds one: ``bundled``, a folder, a file or a hub id."""
    family = load_family(base)
    return family.to(torch.device("cuda"), torch.float32) if torch.cuda.is_available() else family

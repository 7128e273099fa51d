"""A merged adapter costs no time (Hu et al. 2021, section 4.1: "no additional inference latency")."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.adapter.merge import merge
from veneer.family.protocol import Family
from veneer.family.registry import load_family

_TURNS = 60


def _seconds(family: Family) -> float:
    """One forward pass of the denoiser."""
    unet: Any = family.networks["unet"]
    noisy = torch.zeros(2, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    context = torch.zeros(2, 4, unet.config.cross_attention_dim)
    began = time.perf_counter()
    with torch.no_grad():
        family.predict(noisy, torch.tensor([1, 2]), context)
    return time.perf_counter() - began


def _fastest(first: Family, second: Family) -> tuple[float, float]:
    """The least time of each, measured in turn, so that a busy moment meets both."""
    pairs = [(_seconds(first), _seconds(second)) for _ in range(_TURNS)]
    return min(one for one, _ in pairs), min(two for _, two in pairs)


def test_merged_is_as_fast_as_the_base_and_unmerged_is_not(tiny_base: Path) -> None:
    base, merged, injected = (load_family(str(tiny_base)) for _ in range(3))
    spec = {"unet": LoraSpec(4, 4.0, ("to_q", "to_k", "to_v", "to_out.0"))}
    live = inject(injected.networks, spec, seed=0)
    merge(merged.networks, [(live.weights(), 1.0)])
    plain, fused = _fastest(base, merged)
    assert fused < 1.1 * plain
    # the yardstick can tell: the same adapter left unmerged is slower
    plain, split = _fastest(base, injected)
    assert split > 1.1 * plain

"""A merged adapter costs no time (Hu et al. 2021, section 4.1: "no additional inference latency")."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.adapter.merge import merge
from veneer.family.protocol import Conditioning, Family
from veneer.family.registry import load_family


class _Operations(TorchDispatchMode):
    """Counts what is computed, by operation and sizes: unlike a clock, it says the same on a busy machine."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sizes = [tuple(each.shape) for each in args if isinstance(each, torch.Tensor)]
        self.counts[f"{func} {sizes}"] += 1
        return func(*args, **(kwargs or {}))


def _operations(family: Family) -> Counter[str]:
    """Those of one forward pass of the denoiser."""
    unet: Any = family.networks["unet"]
    noisy = torch.zeros(2, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    text = Conditioning({"text": torch.zeros(2, 4, unet.config.cross_attention_dim)})
    with torch.no_grad(), _Operations() as operations:
        family.predict(noisy, torch.tensor([0.2, 0.4], dtype=torch.float64), text)
    return operations.counts


def test_merged_computes_what_the_base_does_and_unmerged_more(tiny_base: Path) -> None:
    base, merged, injected = (load_family(str(tiny_base)) for _ in range(3))
    spec = {"unet": LoraSpec(4, 4.0, ("to_q", "to_k", "to_v", "to_out.0"))}
    live = inject(injected.networks, spec, seed=0)
    merge(merged.networks, [(live.weights(), 1.0)])
    assert _operations(merged) == _operations(base)
    assert _operations(injected) > _operations(base)

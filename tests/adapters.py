"""A network of a convolution and a linear layer, and adapters of it, for the tests of merging and stacking."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights

__all__ = ["adapter", "equal", "small_networks", "weights"]


def adapter(
    seed: int, rank: int = 2, alpha: float = 3.0, names: tuple[str, ...] = ("net.0", "net.1")
) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)

    def factors(name: str) -> LoraFactors:
        kernel, place = ((3, 3), (1, 1)) if name == "net.0" else ((), ())
        down = torch.randn(rank, 4, *kernel, generator=generator)
        return LoraFactors(down, torch.randn(4, rank, *place, generator=generator), alpha)

    return {name: factors(name) for name in names}


def small_networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"net": nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(4, 4))}


def weights(networks: dict[str, nn.Module]) -> list[Tensor]:
    return [networks["net"][0].weight.detach().clone(), networks["net"][1].weight.detach().clone()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

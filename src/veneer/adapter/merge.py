"""Adapters added to each other, and merged into the networks' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from veneer.adapter.layers import Layer, fit, layers_of
from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.adapter.protocol import AdapterWeights, check_weight
from veneer.errors import UserError

__all__ = ["Merged", "combine", "is_mergeable", "merge"]


def combine(adapters: Sequence[tuple[AdapterWeights, float]]) -> dict[str, LoraFactors]:
    """One adapter that does what the weighted sum of several does, exactly: their ranks side by side.

    sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...], with alpha = r. The factors are float32 at
    least: in half precision w_i s_i B_i would be rounded by up to 1 in 2,000.

    Raises:
        UserError: two of them disagree on the shape of a layer, or a weight is no finite number.
    """
    _check_weights(adapters)
    names = sorted({name for factors, _ in adapters for name in factors})
    return {name: _stack(name, [(f[name], weight) for f, weight in adapters if name in f]) for name in names}


def _stack(name: str, parts: list[tuple[LoraFactors, float]]) -> LoraFactors:
    shapes = {part.shape for part, _ in parts}
    if len(shapes) > 1:
        raise UserError(f"the adapters are of different architectures: {name} is {' and '.join(map(str, shapes))}")
    down = torch.cat([_wide(part.down) for part, _ in parts])
    up = torch.cat([_wide(part.up) * (weight * part.scale) for part, weight in parts], dim=1)
    return LoraFactors(down, up, alpha=float(len(down)))


def _wide(factor: Tensor) -> Tensor:
    """In float32 at least."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


def _check_weights(adapters: Sequence[tuple[AdapterWeights, float]]) -> None:
    for place, (_, weight) in enumerate(adapters, start=1):
        check_weight(weight, f"adapter {place} of {len(adapters)}")


class Merged:
    """Adapters that are in the networks' weights; made by :func:`merge`."""

    def __init__(self, swaps: list[tuple[Layer, nn.Parameter, nn.Parameter]]) -> None:
        self._swaps = swaps

    def undo(self) -> None:
        """Put the original weights back, bit for bit; a second call does nothing.

        Raises:
            UserError: other adapters were merged later and are still in.
        """
        if any(layer.weight is not merged for layer, _, merged in self._swaps):
            raise UserError("other adapters were merged after these", remedy="undo those first")
        for layer, original, merged in self._swaps:
            original.data = original.data.to(merged.device, merged.dtype)  # the network may have moved meanwhile
            layer.weight = original
        self._swaps = []


def merge(networks: Mapping[str, nn.Module], adapters: Sequence[tuple[AdapterWeights, float]]) -> Merged:
    """Make each weight W0 + sum of w_i delta W_i, at the base's own speed (Hu et al. 2021, section 4.1).

    The originals are set aside, not written over. The sum is taken in float32 at least, and rounded once.

    Raises:
        UserError: an adapter is of another architecture, a weight is no finite number, or the base is quantised; no
            network has been changed then.
    """
    _check_weights(adapters)
    layers = layers_of(networks)
    fitted = [(fit(factors, layers), weight) for factors, weight in adapters]
    _refuse_quantised({name: layers[name] for factors, _ in fitted for name in factors})
    swaps = []
    for name in sorted({name for factors, _ in fitted for name in factors}):
        original = layers[name].weight
        assert isinstance(original, nn.Parameter)
        total = _sum(original, [(factors[name], weight) for factors, weight in fitted if name in factors])
        merged = nn.Parameter(total, requires_grad=original.requires_grad)
        layers[name].weight = merged
        swaps.append((layers[name], original, merged))
    return Merged(swaps)


def is_mergeable(layer: Layer) -> bool:
    """Whether a layer has a weight that another can take the place of; what is quantised has none."""
    return isinstance(layer._parameters.get("weight"), nn.Parameter)


def _refuse_quantised(layers: Mapping[str, Layer]) -> None:
    for name, layer in layers.items():
        if not is_mergeable(layer):
            what = f"{name} is quantised, so nothing can be merged into its weight"
            raise UserError(what, remedy="load the base in full for that")


@torch.no_grad()
def _sum(weight: Tensor, parts: list[tuple[LoraFactors, float]]) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = weight.detach().to(wide, copy=True)
    for part, share in parts:
        total += share * delta_weight(part.to(weight.device, wide))
    return total.to(weight.dtype)

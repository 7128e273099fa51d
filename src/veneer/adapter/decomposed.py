"""DoRA over LoHa and LoKr (LyCORIS, ``weight_decompose``): ``W' = m (W0 + delta W) / |W0 + delta W|``.

The norm is of each output's row or, in older files, of each input's column, as the magnitudes m are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from veneer.adapter.dora import normalised
from veneer.adapter.loha import LOHA, LohaFactors
from veneer.adapter.lokr import LOKR, LokrFactors
from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method, WeightedLayer
from veneer.adapter.stored import bad_factors, check_parts, layer_product

__all__ = ["DOHA", "DOKR", "DecomposedFactors"]

_MAGNITUDE = "dora_scale"


@dataclass(frozen=True, eq=False)
class DecomposedFactors:
    """One layer's DoRA over another method.

    Attributes:
        inner: the method's numbers.
        magnitude: m, over outputs (out, 1) or (out, 1, 1, 1), or over inputs (1, in) or (1, in, 1, 1).
    """

    inner: LohaFactors | LokrFactors
    magnitude: Tensor

    def __post_init__(self) -> None:
        """Refuse magnitudes that are of neither the outputs nor the inputs."""
        shape = tuple(self.magnitude.shape)
        if len(shape) < 2 or shape[self.axis] != self.magnitude.numel() or not self._is_of(self.inner.shape):
            what = f"magnitudes of shape {shape} are neither of the outputs nor of the inputs of {self.inner.shape}"
            raise bad_factors(what)

    def _is_of(self, shape: tuple[int, ...]) -> bool:
        """Return whether there are as many magnitudes as a weight has outputs or inputs, as far as its shape tells."""
        count = self.magnitude.numel()
        return count == shape[self.axis] or (self.axis == 1 and len(shape) == 2 and shape[1] % count == 0)

    @property
    def axis(self) -> int:
        """Axis of the weight that m is over: 0, its outputs, or 1, its inputs."""
        return 0 if self.magnitude.shape[0] == self.inner.shape[0] else 1

    @property
    def method(self) -> Method:
        """The method: DoRA over LoHa or over LoKr."""
        return DOHA if isinstance(self.inner, LohaFactors) else DOKR

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it changes, as far as it is known."""
        return self.inner.shape

    @property
    def bias_size(self) -> None:
        """None: it changes no bias."""

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters."""
        return self.inner.parameter_count + self.magnitude.numel()

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """Those of the method under it."""
        return self.inner.hyperparameters

    @property
    def is_untrained(self) -> bool:
        """True where the method under it makes a delta W of zero."""
        return self.inner.is_untrained

    def fitted(self, shape: tuple[int, ...]) -> DecomposedFactors | None:
        """Return the same numbers for a weight of a shape; None: they do not fit."""
        inner = self.inner.fitted(shape)
        if inner is None or self.magnitude.numel() != shape[self.axis]:
            return None
        axes = [1] * len(shape)
        axes[self.axis] = -1
        return DecomposedFactors(inner, self.magnitude.reshape(axes))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> DecomposedFactors:
        """Return the same numbers on another device or in another dtype."""
        return replace(self, inner=self.inner.to(device, dtype), magnitude=self.magnitude.to(device, dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """Return all of it as named tensors."""
        return {**self.inner.state_dict(), _MAGNITUDE: self.magnitude}

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return the tensors of a file by part."""
        return {**self.inner.file_parts(naming), _MAGNITUDE: self.magnitude}

    def peft_settings(self) -> dict[str, Any]:
        """Return nothing: peft has no such method."""
        return {}

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W = W' - W0."""
        direction = weight + self.inner.delta_weight(weight)
        return normalised(direction, self.magnitude, self.axis) - weight

    def delta_bias(self, bias: Tensor) -> None:
        """Return None: nothing is added to the bias."""

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return |W' - W0|^2; it takes the base's weight."""
        assert weight is not None, "DoRA's delta W depends on the base's weight"
        return float(self.to(weight.device, torch.float64).delta_weight(weight.double()).square().sum())

    def bypass(self, layer: WeightedLayer) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that adds delta W x to a layer's output; delta W is made anew each time, in float32."""

        @torch.no_grad()
        def add(x: Tensor, output: Tensor) -> Tensor:
            delta = self.to(x.device, torch.float32).delta_weight(layer.weight.detach().to(x.device, torch.float32))
            return output + layer_product(layer, x.float(), delta).to(output.dtype)

        return add

    def low_rank(self) -> None:
        """Return None: the update is no product of two thin matrices."""


def _method(name: str, inner: Method, factors: type[LohaFactors] | type[LokrFactors]) -> Method:
    """Return DoRA over a method."""

    def from_state(state: Mapping[str, Tensor]) -> DecomposedFactors:
        rest = {part: tensor for part, tensor in state.items() if part != _MAGNITUDE}
        return DecomposedFactors(factors.from_state(rest), state[_MAGNITUDE])

    def from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> DecomposedFactors:
        check_parts(parts, [_MAGNITUDE])
        rest = {part: tensor for part, tensor in parts.items() if part != _MAGNITUDE}
        return DecomposedFactors(factors.from_file(rest, settings), parts[_MAGNITUDE])

    return replace(
        inner, names=PART_NAMES[name], is_additive=False, from_state=from_state, from_file=from_file, row_parts={}
    )


DOHA = _method("doha", LOHA, LohaFactors)
DOKR = _method("dokr", LOKR, LokrFactors)

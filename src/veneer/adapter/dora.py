"""DoRA (Liu et al. 2024, eq. 5): ``W' = m (W0 + s B A) / |W0 + s B A|``, a magnitude m beside LoRA's A and B.

The norm is taken of each output's row, and is treated as a constant in the backward pass (section 4.3). m starts as
|W0|, so that W' = W0. As W' depends on W0 by more than a sum, adapters of this method can be merged into a base, but
not be combined, mixed in a batch or cut to a lower rank without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from veneer.adapter.lora import InjectedLora, LoraFactors, LoraSpec, delta_weight, product_with
from veneer.adapter.lora_parts import check_magnitude, column_shape, magnitude_part, magnitude_shape
from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.peft_library import BaseTunerLayer, LoraLayer
from veneer.adapter.peft_model import ADAPTER_NAME, parameter_in
from veneer.adapter.protocol import Folding, InjectedLayer, Layer, LayerAdapter, Method, WeightedLayer, refitted
from veneer.adapter.stored import as_channels
from veneer.errors import UserError

__all__ = ["DORA", "DoraFactors", "DoraSpec", "merged_weight", "normalised", "weight_norm"]


@dataclass(frozen=True)
class DoraSpec(LoraSpec):
    """The plan of one network's DoRA; its attributes are those of a LoRA."""

    peft_markers: ClassVar[Mapping[str, Any]] = PART_NAMES["dora"].peft_markers

    def check_layer(self, path: str, layer: Layer) -> None:
        """Refuse what LoRA refuses, and a weight with an output of zeros, which has no direction.

        Raises:
            UserError: the layer cannot be adapted.
        """
        super().check_layer(path, layer)
        weight = layer.weight.detach()
        if weight.is_meta or isinstance(weight, FakeTensor):  # of a model that is only counted
            return
        if not bool(weight_norm(weight.float(), axis=0).all()):
            what = (
                f"{path} has an output whose weights are all zero, so it has no direction to keep apart from its size"
            )
            raise UserError(what, code="adapter.zero_direction", remedy="take it off the targets, or use method lora")

    def injected_layer(self, module: BaseTunerLayer) -> InjectedLayer:
        """Return the handle of a layer that peft wrapped."""
        assert isinstance(module, LoraLayer)
        return InjectedDora(module, InjectedLora(module, self.alpha))


@dataclass(frozen=True)
class InjectedDora:
    """peft's layer of one DoRA.

    Attributes:
        module: the layer.
        lora: its A and B.
    """

    module: LoraLayer
    lora: InjectedLora

    @property
    def magnitude(self) -> nn.Parameter:
        """m as peft has it: (out,) of a linear layer, (1, out, 1, 1) of a convolution."""
        return parameter_in(self.module.lora_magnitude_vector)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return A, B and m, float32."""
        return {**self.lora.named_parameters(), "lora_magnitude_vector": self.magnitude}

    def initialise(self, seed: int, path: str) -> None:
        """Start A and B as LoRA does, and m as the norms of the base's weight, taken in float32.

        They are taken by the function that the forward pass divides by, so that m/n is 1 to the bit.
        """
        self.lora.initialise(seed, path)
        layer: Any = self.module.lora_magnitude_vector[ADAPTER_NAME].to(torch.float32)
        weight = self.module.get_base_layer().weight
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            self.magnitude.copy_(layer.get_weight_norm(weight.detach().float(), 0.0, 1.0))

    def read(self) -> DoraFactors:
        """Return copies of A, B and m."""
        lora, magnitude = self.lora.read(), self.magnitude.detach()
        column = magnitude.reshape(column_shape(lora.shape))
        return DoraFactors(lora, column.to(lora.down.device, torch.float32, copy=True))

    def check(self, path: str, weights: LayerAdapter) -> None:
        """Refuse numbers of another method or rank, and magnitudes over inputs, which peft does not train.

        Raises:
            UserError: they are.
        """
        if not isinstance(weights, DoraFactors):
            what = f"{path} has a {weights.method.title} in the adapter and a {DORA.title} here"
            raise UserError(what, code="adapter.other_method")
        self.lora.check(path, weights.lora)
        _check_over_outputs(path, weights)

    @torch.no_grad()
    def load(self, weights: LayerAdapter) -> None:
        """Take m and A as they are, and B with the strength that it has."""
        assert isinstance(weights, DoraFactors)
        self.lora.load(weights.lora)
        self.magnitude.copy_(weights.magnitude.view_as(self.magnitude))


@dataclass(frozen=True, eq=False)
class DoraFactors:
    """One layer's DoRA.

    Attributes:
        lora: A, B and alpha.
        magnitude: m, over outputs (out, 1) or (out, 1, 1, 1); older files of LyCORIS have it over inputs, (1, in) or
            (1, in, 1, 1), and take the norm of each input's column.
    """

    lora: LoraFactors
    magnitude: Tensor

    def __post_init__(self) -> None:
        """Refuse magnitudes that are of neither the outputs nor the inputs."""
        check_magnitude(tuple(self.magnitude.shape), self.shape)

    @property
    def method(self) -> Method:
        """The method: DoRA."""
        return DORA

    @property
    def axis(self) -> int:
        """Axis of the weight that m is over: 0, its outputs, or 1, its inputs."""
        return 0 if tuple(self.magnitude.shape) == column_shape(self.shape) else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of delta W: (out, in) or (out, in, kh, kw)."""
        return self.lora.shape

    @property
    def bias_size(self) -> None:
        """None: it changes no bias."""

    @property
    def parameter_count(self) -> int:
        """Number of parameters in A, B and m."""
        return self.lora.parameter_count + self.magnitude.numel()

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """Rank and alpha."""
        return self.lora.hyperparameters

    @property
    def is_untrained(self) -> bool:
        """True where B is zero, as it is at the start."""
        return self.lora.is_untrained

    def fitted(self, shape: tuple[int, ...]) -> DoraFactors | None:
        """Return the same numbers for a weight of a shape; None: they do not fit."""
        lora = self.lora.fitted(shape)
        return None if lora is None else DoraFactors(lora, refitted(self.magnitude, len(shape)))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> DoraFactors:
        """Return the same numbers on another device or in another dtype."""
        return DoraFactors(self.lora.to(device, dtype), self.magnitude.to(device, dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """Return A, B, alpha and m as tensors."""
        return {**self.lora.state_dict(), "magnitude": self.magnitude}

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> DoraFactors:
        """Return the numbers that :meth:`state_dict` gave."""
        return DoraFactors(LoraFactors.from_state(state), state["magnitude"])

    @staticmethod
    def from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> DoraFactors:
        """Return the numbers that a file has: m as peft writes it, or as LyCORIS does.

        Raises:
            UserError: a part is missing or does not fit, or the config contradicts the parts.
        """
        lora = LoraFactors.from_file({part: parts[part] for part in parts if part not in _MAGNITUDES}, settings)
        part = magnitude_part(parts)
        magnitude = parts[part].reshape(magnitude_shape(part, tuple(parts[part].shape), lora.shape))
        return DoraFactors(lora, magnitude)

    def folded(self) -> DoraFactors:
        """Return the same DoRA with its strength in B and alpha = r."""
        return DoraFactors(self.lora.folded(), self.magnitude)

    def unfolded(self, alpha: float) -> DoraFactors:
        """Return a DoRA that was folded with a given alpha as it was before, up to rounding."""
        return DoraFactors(self.lora.unfolded(alpha), self.magnitude)

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return A and B as LoRA has them, and m in the shape that the readers expect.

        Raises:
            UserError: m is over inputs, for which peft has no place.
        """
        parts = self.lora.file_parts(naming)
        if naming == "kohya":
            return {**parts, _KOHYA_PART: self.magnitude}
        _check_over_outputs("the layer", self)
        shape = (-1,) if self.magnitude.ndim == 2 else (1, -1, 1, 1)
        return {**parts, _PEFT_PART: self.magnitude.reshape(shape)}

    def peft_settings(self) -> dict[str, Any]:
        """Return rank and alpha."""
        return self.lora.peft_settings()

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W = W' - W0."""
        return merged_weight(weight, self) - weight

    def delta_bias(self, bias: Tensor) -> None:
        """Return None: nothing is added to the bias."""

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return |W' - W0|^2; it takes the base's weight."""
        assert weight is not None, "DoRA's delta W depends on the base's weight"
        wide = self.to(weight.device, torch.float64)
        return float(wide.delta_weight(weight.double()).square().sum())

    def bypass(self, layer: WeightedLayer) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that makes a layer's output W' x + b of W0 x + b: m/n (W0 x + s B A x) + b.

        Raises:
            UserError: m is over inputs, which an output of W0 cannot be corrected for.
        """
        _check_over_outputs("the layer", self)
        weight, lora = layer.weight.detach().to(self.magnitude.dtype), self.lora
        own = self.to(weight.device, weight.dtype)
        factor = (own.magnitude / _safe(weight_norm(weight + delta_weight(own.lora), axis=0))).flatten()
        factor = as_channels(layer, factor)
        bias = 0 if layer.bias is None else as_channels(layer, layer.bias)

        def change(x: Tensor, output: Tensor) -> Tensor:
            product = output - bias + lora.scale * product_with(lora, layer, x).to(output.dtype)
            return (factor.to(x.device) * product + bias).to(output.dtype)

        return change

    def low_rank(self) -> None:
        """Return None: the update is no product of two thin matrices."""


_PEFT_PART, _KOHYA_PART = "magnitude", "dora_scale"
_MAGNITUDES = (_PEFT_PART, _KOHYA_PART)


def weight_norm(weight: Tensor, axis: int) -> Tensor:
    """Return the Euclidean norm of each slice of a weight along an axis, of a shape that broadcasts to the weight.

    Args:
        weight: (out, in) or (out, in, kh, kw).
        axis: 0, of each output, or 1, of each input.
    """
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    norm: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return norm


def merged_weight(weight: Tensor, factors: DoraFactors) -> Tensor:
    """Return W' = m (W0 + s B A) / |W0 + s B A| (Liu et al. 2024, eq. 5), of the weight's shape.

    Args:
        weight: W0.
        factors: in the dtype and on the device of the weight.
    """
    return normalised(weight + delta_weight(factors.lora), factors.magnitude, factors.axis)


def normalised(direction: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    """Return a weight whose slices along an axis have the directions of one weight's and given magnitudes."""
    return magnitude / _safe(weight_norm(direction, axis)) * direction


def _safe(norm: Tensor) -> Tensor:
    """Return norms to divide by; a slice of zeros stays one."""
    return norm.clamp_min(torch.finfo(norm.dtype).tiny)


def _check_over_outputs(name: str, factors: DoraFactors) -> None:
    if factors.axis != 0:
        what = f"{name} has magnitudes over inputs, which older files of LyCORIS have"
        remedy = "merge it into a base that is loaded in full"
        raise UserError(what, code="adapter.magnitudes_over_inputs", remedy=remedy)


DORA = Method(
    names=PART_NAMES["dora"],
    is_additive=False,
    is_mergeable=True,
    spec=DoraSpec.from_config,
    from_state=DoraFactors.from_state,
    from_file=DoraFactors.from_file,
    row_parts={"up": "down", "magnitude": None},
    folding=Folding(DoraFactors.folded, DoraFactors.unfolded),
)

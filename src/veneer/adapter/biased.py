"""A trained bias beside a method that changes the weight: of peft's LoRA with ``lora_bias``, or a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from veneer.adapter.lora import LoraFactors
from veneer.adapter.part_names import PART_NAMES, PartNames
from veneer.adapter.protocol import LayerAdapter, Method, WeightedLayer
from veneer.adapter.stored import as_channels, bad_factors

__all__ = ["BIAS_PARTS", "BiasedAdapter", "biased_method", "with_bias"]

_NAMES = PART_NAMES["biased"]
BIAS_PARTS = tuple(_NAMES.spellings)
"""The parts of a file that are biases."""
_DIFFERENCE, _OF_UP = "diff_b", "up_bias"


@dataclass(frozen=True, eq=False)
class BiasedAdapter:
    """One layer's adapter with a trained bias.

    Attributes:
        inner: what changes the weight.
        bias: (out,), what is added to the layer's bias.
    """

    inner: LayerAdapter
    bias: Tensor

    def __post_init__(self) -> None:
        """Refuse a bias that is not one of the layer's outputs."""
        if self.bias.ndim != 1 or (self.inner.shape[0] not in (-1, len(self.bias))):
            raise bad_factors(f"a bias of shape {tuple(self.bias.shape)} is not of the outputs of {self.inner.shape}")

    @property
    def method(self) -> Method:
        """The method of the weight, called one with a bias."""
        inner = self.inner.method
        parts = {_inside(inner, part): other and _inside(inner, other) for part, other in inner.row_parts.items()}
        rows = {**parts, _DIFFERENCE: None} if parts else {}
        return replace(inner, names=_names(inner.names), from_state=self._from_state, row_parts=rows)

    def _from_state(self, state: Mapping[str, Tensor]) -> BiasedAdapter:
        return _from_state(self.inner.method, state)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it changes, as far as it is known."""
        return self.inner.shape

    @property
    def bias_size(self) -> int:
        """How many entries the bias has that it needs the layer to have."""
        return len(self.bias)

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters."""
        return self.inner.parameter_count + self.bias.numel()

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """Those of what changes the weight."""
        return self.inner.hyperparameters

    @property
    def is_untrained(self) -> bool:
        """True where neither weight nor bias is changed."""
        return self.inner.is_untrained and not self.bias.any()

    def fitted(self, shape: tuple[int, ...]) -> BiasedAdapter | None:
        """Return the same numbers for a weight of a shape; None: they do not fit."""
        inner = self.inner.fitted(shape)
        return None if inner is None else BiasedAdapter(inner, self.bias)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> BiasedAdapter:
        """Return the same numbers on another device or in another dtype."""
        return BiasedAdapter(self.inner.to(device, dtype), self.bias.to(device, dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """Return all of it as named tensors; those of the weight have the name of its method in front."""
        method, own = self.inner.method, self.inner.state_dict()
        inner = {_inside(method, part): tensor for part, tensor in own.items()}
        return {**inner, _DIFFERENCE: self.bias}

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return the tensors of a file by part; peft's strength is 1, so that its bias is the difference."""
        return {**self.inner.file_parts(naming), _DIFFERENCE if naming == "kohya" else _OF_UP: self.bias}

    def peft_settings(self) -> dict[str, Any]:
        """Return what peft's config says of the weight's part."""
        return self.inner.peft_settings()

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W."""
        return self.inner.delta_weight(weight)

    def delta_bias(self, bias: Tensor) -> Tensor:
        """Return what is added to the bias."""
        own = self.inner.delta_bias(bias)
        return self.bias if own is None else own + self.bias

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return |delta W|^2."""
        return self.inner.squared_norm(weight)

    def bypass(self, layer: WeightedLayer) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that changes a layer's output as the weight's part does, and adds the bias."""
        change = self.inner.bypass(layer)
        bias = as_channels(layer, self.bias)
        return lambda x, output: change(x, output) + bias.to(output.device, output.dtype)

    def low_rank(self) -> None:
        """Return None: the bias would be lost."""


def _names(inner: PartNames) -> PartNames:
    """Return the names of a method's parts with a bias; of peft's methods LoRA alone can have one."""
    endings = {"kohya": {**inner.endings.get("kohya", {}), "diff_b": _DIFFERENCE}}
    is_lora = inner.method == "lora"
    for naming in ("peft", "diffusers"):
        if is_lora and naming in inner.endings:
            endings[naming] = {**inner.endings[naming], "lora_B.bias": _OF_UP}
    markers = {**inner.peft_markers, **(_NAMES.peft_markers if is_lora else {})}
    title = f"{inner.title} with {_NAMES.title}"
    return replace(inner, method=_NAMES.method, title=title, endings=endings, peft_markers=markers)


def with_bias(inner: LayerAdapter, parts: Mapping[str, Tensor]) -> LayerAdapter:
    """Return an adapter with the biases that a file has beside it.

    The bias of B has LoRA's strength alpha/r, as B has (peft, ``lora_bias``); a difference is added as it is.

    Raises:
        UserError: there are two, or the bias of B is beside another method.
    """
    if len(parts) > 1:
        raise bad_factors("has two biases")
    (part, bias) = next(iter(parts.items()))
    if part == _DIFFERENCE:
        return BiasedAdapter(inner, bias)
    if not isinstance(inner, LoraFactors):
        raise bad_factors(f"has a bias of B beside a {inner.method.title}")
    return BiasedAdapter(inner, bias if inner.scale == 1 else inner.scale * bias.to(torch.float32))


def _inside(method: Method, part: str) -> str:
    """Return what a state calls a part of the method of the weight."""
    return f"{method.name}:{part}"


def _from_state(method: Method, state: Mapping[str, Tensor]) -> BiasedAdapter:
    inner = {part.removeprefix(_inside(method, "")): tensor for part, tensor in state.items() if part != _DIFFERENCE}
    return BiasedAdapter(method.from_state(inner), state[_DIFFERENCE])


def biased_method(methods: Mapping[str, Method]) -> Method:
    """Return the method of adapters with a bias, which is told by its file's parts and never by itself.

    Args:
        methods: those that may be inside, by name.
    """

    def from_state(state: Mapping[str, Tensor]) -> BiasedAdapter:
        return _from_state(methods[next(part for part in state if ":" in part).partition(":")[0]], state)

    def from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> LayerAdapter:
        raise bad_factors("has a bias and nothing that changes the weight")

    return Method(_NAMES, is_additive=True, is_mergeable=True, spec=None, from_state=from_state, from_file=from_file)

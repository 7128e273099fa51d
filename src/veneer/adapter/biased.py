"""A trained bias beside a method that changes the weight: of peft's LoRA with ``lora_bias``, or a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from veneer.adapter.lora import LoraFactors
from veneer.adapter.part_names import PART_NAMES, PartNames
from veneer.adapter.protocol import Folding, LayerAdapter, Method, WeightedLayer
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
        is_of_up: whether it is the bias of LoRA's B, and has LoRA's strength as B has.
    """

    inner: LayerAdapter
    bias: Tensor
    is_of_up: bool = False

    def __post_init__(self) -> None:
        """Refuse a bias that is not one of the layer's outputs."""
        if self.bias.ndim != 1 or (self.inner.shape[0] not in (-1, len(self.bias))):
            raise bad_factors(f"a bias of shape {tuple(self.bias.shape)} is not of the outputs of {self.inner.shape}")

    @property
    def method(self) -> Method:
        """The method of the weight, called one with a bias."""
        inner = self.inner.method
        parts = {_inside(inner, part): other and _inside(inner, other) for part, other in inner.row_parts.items()}
        rows = {**parts, self._part: None} if parts else {}
        folding = None if inner.folding is None else Folding(BiasedAdapter.folded, BiasedAdapter.unfolded)
        own = {"from_state": self._from_state, "row_parts": rows, "folding": folding, "is_low_rank": False}
        return replace(inner, names=_names(inner.names), **own)  # type: ignore[arg-type]

    @property
    def _part(self) -> str:
        return _OF_UP if self.is_of_up else _DIFFERENCE

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
        return None if inner is None else replace(self, inner=inner)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> BiasedAdapter:
        """Return the same numbers on another device or in another dtype."""
        return replace(self, inner=self.inner.to(device, dtype), bias=self.bias.to(device, dtype))

    def folded(self) -> BiasedAdapter:
        """Return the same adapter with its strength in the tensors, rounded to their dtype."""
        assert self.inner.method.folding is not None
        bias = _times(self.bias, _scale(self.inner)) if self.is_of_up else self.bias
        return replace(self, inner=self.inner.method.folding.fold(self.inner), bias=bias)

    def unfolded(self, alpha: float) -> BiasedAdapter:
        """Return the adapter with its strength in alpha again."""
        assert self.inner.method.folding is not None
        inner = self.inner.method.folding.unfold(self.inner, alpha)
        return replace(self, inner=inner, bias=_times(self.bias, 1 / _scale(inner)) if self.is_of_up else self.bias)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all of it as named tensors; those of the weight have the name of its method in front."""
        method, own = self.inner.method, self.inner.state_dict()
        inner = {_inside(method, part): tensor for part, tensor in own.items()}
        return {**inner, self._part: self.bias}

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return the tensors of a file by part: for kohya's readers the difference, for peft's the bias of B."""
        parts, of_up = self.inner.file_parts(naming), naming != "kohya"
        if of_up == self.is_of_up:
            return {**parts, _OF_UP if of_up else _DIFFERENCE: self.bias}
        scale = _scale(self.inner)
        return {**parts, **({_OF_UP: _times(self.bias, 1 / scale)} if of_up else {_DIFFERENCE: self.difference})}

    @property
    def difference(self) -> Tensor:
        """(out,), what is added to the layer's bias."""
        return _times(self.bias, _scale(self.inner)) if self.is_of_up else self.bias

    def with_difference(self) -> BiasedAdapter:
        """Return the same adapter with a bias that is independent of the strength."""
        return BiasedAdapter(self.inner, self.difference)

    def peft_settings(self) -> dict[str, Any]:
        """Return what peft's config says of the weight's part."""
        return self.inner.peft_settings()

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W."""
        return self.inner.delta_weight(weight)

    def delta_bias(self, bias: Tensor) -> Tensor:
        """Return what is added to the bias."""
        own = self.inner.delta_bias(bias)
        return self.difference if own is None else own + self.difference

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return |delta W|^2."""
        return self.inner.squared_norm(weight)

    def bypass(self, layer: WeightedLayer) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that changes a layer's output as the weight's part does, and adds the bias."""
        change = self.inner.bypass(layer)
        bias = as_channels(layer, self.difference)
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
    if part == _OF_UP and not isinstance(inner, LoraFactors):
        raise bad_factors(f"has a bias of B beside a {inner.method.title}")
    return BiasedAdapter(inner, bias, part == _OF_UP)


def _scale(inner: LayerAdapter) -> float:
    """Return LoRA's strength; other methods' biases have none."""
    return inner.scale if isinstance(inner, LoraFactors) else 1.0


def _times(tensor: Tensor, factor: float) -> Tensor:
    """Return a product that is rounded once."""
    return tensor if factor == 1 else (tensor.double() * factor).to(tensor.dtype)


def _inside(method: Method, part: str) -> str:
    """Return what a state calls a part of the method of the weight."""
    return f"{method.name}:{part}"


def _from_state(method: Method, state: Mapping[str, Tensor]) -> BiasedAdapter:
    inner = {part.removeprefix(_inside(method, "")): tensor for part, tensor in state.items() if ":" in part}
    (part, bias) = next((part, tensor) for part, tensor in state.items() if ":" not in part)
    return BiasedAdapter(method.from_state(inner), bias, part == _OF_UP)


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

"""What an adapter method offers, and what an adapter is to whoever does not know its method.

A method (LoRA, DoRA, ...) is one file with four parts: the plan of an adapter (:class:`AdapterSpec`), one layer's share
of it in a live network (:class:`InjectedLayer`), the numbers of that share (:class:`LayerAdapter`), and the
:class:`Method` itself, which ties them together and is entered in :mod:`veneer.adapter.registry`. Whatever else handles
adapters (injection, merging, stacks, checkpoints, files, plans) uses these four and knows nothing of their insides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from veneer.adapter.part_names import PartNames
from veneer.adapter.peft_library import BaseTunerLayer
from veneer.errors import UserError

if TYPE_CHECKING:
    from veneer.config.adapter_config import AdapterConfig, TextEncoderAdapterConfig

__all__ = [
    "AdapterSpec",
    "AdapterWeights",
    "Folding",
    "InjectedLayer",
    "Layer",
    "LayerAdapter",
    "LowRank",
    "Method",
    "WeightedLayer",
    "check_strength",
    "low_rank_of",
    "method_without_low_rank",
    "refitted",
]

Layer: TypeAlias = "nn.Linear | nn.Conv2d"
"""A layer that an adapter may be trained on."""
WeightedLayer: TypeAlias = "nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm"
"""A layer that an adapter may change: also a norm of any class, whose weight has one axis."""


class AdapterSpec(Protocol):
    """The plan of one network's adapter."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names, or endings of dotted paths, of the layers to adapt."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """Blocks that these are looked for in; none: the whole network."""

    def check_layer(self, path: str, layer: Layer) -> None:
        """Refuse a layer that the method cannot adapt.

        Args:
            path: of the layer, for the message.
            layer: the layer.

        Raises:
            UserError: it cannot be adapted.
        """

    def wrap_layers(self, network: nn.Module, paths: Sequence[str]) -> None:
        """Wrap these layers of a network into modules that adapt them.

        Args:
            network: changed in place.
            paths: of the layers within the network.
        """

    def injected_layer(self, module: BaseTunerLayer) -> InjectedLayer:
        """Return the handle of a layer that :meth:`wrap_layers` wrapped."""


class InjectedLayer(Protocol):
    """One adapted layer in a live network."""

    @property
    def module(self) -> BaseTunerLayer:
        """The module that stands in the network in the layer's place."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return all that trains, float32, by the ending that peft's files give it: ``lora_A.weight``."""

    def initialise(self, seed: int, path: str) -> None:
        """Set the parameters to their start, at which the layer's output is the base's.

        Args:
            seed: of the run.
            path: of the layer, network's prefix included: random numbers are keyed by both.
        """

    def read(self) -> LayerAdapter:
        """Return a copy of the numbers as they are now, float32 on the CPU."""

    def check(self, path: str, weights: LayerAdapter) -> None:
        """Refuse numbers that :meth:`load` cannot take.

        Raises:
            UserError: they are of another method or size.
        """

    def load(self, weights: LayerAdapter) -> None:
        """Take these numbers; the layer then does exactly what they do, whatever its own settings are."""


class LayerAdapter(Protocol):
    """The numbers of an adapter on one layer."""

    @property
    def method(self) -> Method:
        """The method whose numbers these are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it changes: (out, in) or (out, in, kh, kw), or (size,) of a norm.

        Some methods' numbers tell less than that: axes that they do not tell are -1 or left out at the end, and a
        kernel's may be multiplied into the one before. :meth:`fitted` completes it.
        """

    @property
    def bias_size(self) -> int | None:
        """How many entries the bias has that it needs the layer to have; None: it needs none."""

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters."""

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """The sizes and strengths that it was made with, by the method's own names: ``rank``, ``alpha``."""

    @property
    def is_untrained(self) -> bool:
        """True where training has left no trace in it, as far as can be told without the base."""

    def fitted(self, shape: tuple[int, ...]) -> LayerAdapter | None:
        """Return the same adapter for a weight of a shape; None: it does not fit.

        A linear layer's fits a convolution of 1 x 1 and the other way round: one base has the one where another release
        or tool has the other.
        """

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LayerAdapter:
        """Return the same adapter on another device or in another dtype."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all of it as named tensors, from which ``Method.from_state`` makes it again bit for bit."""

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return the tensors of a file by part, in the shapes that its readers expect.

        Args:
            naming: a key of ``Method.endings``.
        """

    def peft_settings(self) -> dict[str, Any]:
        """Return what peft's config says of this layer beside the tensors of naming ``peft``."""

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W, what is added to a layer's weight.

        Args:
            weight: the base's, of ``shape``, in the dtype and on the device of these numbers; methods that are additive
                do not look at it.
        """

    def delta_bias(self, bias: Tensor) -> Tensor | None:
        """Return what is added to a layer's bias, of its shape; None: nothing.

        Args:
            bias: the base's, in the dtype and on the device of these numbers.
        """

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return the squared Frobenius norm of delta W, float64.

        Args:
            weight: the base's; only methods that are additive can do without.
        """

    def bypass(self, layer: WeightedLayer) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function of a layer's input and output that gives the output with this adapter.

        It is for layers that have no weight to merge into, because it is quantised.
        """

    def low_rank(self) -> LowRank | None:
        """Return the update as a product of two thin matrices; None if it is no such product.

        What is one can be combined with others into one adapter, be applied to single rows of a batch, and be cut to a
        lower rank.
        """


AdapterWeights: TypeAlias = Mapping[str, LayerAdapter]
"""An adapter's numbers by the layer's full dotted path, network first: ``transformer.blocks.0.attn.to_q``."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """An update that is a product of two thin matrices, ``scale * up @ down``.

    Attributes:
        down: (r, in) of a linear layer or (r, in, kh, kw) of a convolution.
        up: (out, r) or (out, r, 1, 1).
        scale: what the product is multiplied by.
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Number r of rows of ``down``."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the update: (out, in) or (out, in, kh, kw)."""
        return (self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class Folding:
    """How a strength is taken into an adapter's tensors, for readers that are told none, and out of them again.

    Attributes:
        fold: returns the same adapter with its strength in the tensors, in their dtype, which may round them.
        unfold: returns the adapter with the strength in a given alpha again; what rounding took is not brought back.
    """

    fold: Callable[[Any], LayerAdapter]
    unfold: Callable[[Any, float], LayerAdapter]


@dataclass(frozen=True)
class Method:
    """An adapter method.

    Attributes:
        names: what files call its parts, and what it is called itself.
        is_additive: whether delta W depends on the adapter alone, not on the base's weight.
        is_mergeable: whether it has a delta W at all; what has none is computed beside the layer.
        is_low_rank: whether delta W is a product of two thin matrices, as ``LayerAdapter.low_rank`` gives it.
        spec: makes the plan of one network's adapter from its section of the config; None: it is not trained here, only
            read, merged and written.
        from_state: makes one layer's numbers from what ``LayerAdapter.state_dict`` gave.
        from_file: makes them from the parts that a file has and, where there is one, the config of the layer beside
            them (peft's); raises UserError if a part is missing, or the config contradicts the parts.
        row_parts: parts of the state that have a row for each output of the layer, all that depends on the output; each
            with the part whose rows its columns are multiplied by, if any. None at all: the method's adapters cannot be
            cut by outputs.
        has_row_blocks: whether a row may stand for several outputs that follow one another, as in a Kronecker product.
        folding: of the strength, where diffusers loads the method and has no place for a strength of its own.
    """

    names: PartNames
    is_additive: bool
    is_mergeable: bool
    spec: Callable[[AdapterConfig | TextEncoderAdapterConfig], AdapterSpec] | None
    from_state: Callable[[Mapping[str, Tensor]], LayerAdapter]
    from_file: Callable[[Mapping[str, Tensor], Mapping[str, Any] | None], LayerAdapter]
    row_parts: Mapping[str, str | None] = field(default_factory=dict)
    has_row_blocks: bool = False
    folding: Folding | None = None
    is_low_rank: bool = False

    @property
    def name(self) -> str:
        """Its value of ``adapter.method``."""
        return self.names.method

    @property
    def title(self) -> str:
        """Its name in prose."""
        return self.names.title

    @property
    def endings(self) -> Mapping[str, Mapping[str, str]]:
        """Part by ending, by naming, as ``PartNames`` has it."""
        return self.names.endings

    @property
    def spellings(self) -> Mapping[str, str]:
        """Pattern by part, as ``PartNames`` has it."""
        return self.names.spellings

    @property
    def peft_markers(self) -> Mapping[str, Any]:
        """Settings of peft's config that are set for this method only."""
        return self.names.peft_markers


def refitted(tensor: Tensor, axes: int) -> Tensor:
    """Return a factor of a linear layer or of a convolution of 1 x 1 with 2 or 4 axes."""
    return tensor.reshape(*tensor.shape[:2], *([1] * (axes - 2)))


def low_rank_of(weights: AdapterWeights) -> dict[str, LowRank]:
    """Return an adapter's updates as products of two thin matrices, by layer; all of them are such products."""
    products = {path: layer.low_rank() for path, layer in weights.items()}
    assert all(product is not None for product in products.values()), "asked for without method_without_low_rank"
    return {path: product for path, product in products.items() if product is not None}


def method_without_low_rank(weights: AdapterWeights) -> Method | None:
    """Return the first method of an adapter whose update is no product of two thin matrices; None if all are."""
    return next((layer.method for layer in weights.values() if layer.low_rank() is None), None)


def check_strength(strength: object, adapter: str) -> None:
    """Refuse a strength that is no finite number.

    Args:
        strength: what the adapter's delta W is multiplied by.
        adapter: names it in the message.

    Raises:
        UserError: it is none.
    """
    if not isinstance(strength, (Real, Tensor)) or not math.isfinite(strength):
        what = f"the strength of {adapter} is {strength!r}"
        raise UserError(what, code="adapter.bad_strength", remedy="use a number; 1 is what it was trained at")

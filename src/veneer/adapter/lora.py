"""LoRA (Hu et al. 2021): ``h = W0 x + (alpha/r) B A x``, with A (r, in) drawn, B (out, r) zero, and W0 frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from veneer.adapter.lora_parts import alpha_in, check_names, product_shape, with_core
from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.peft_library import BaseTunerLayer, LoraConfig, LoraLayer
from veneer.adapter.peft_model import ADAPTER_NAME, parameter_in, wrap_with_peft
from veneer.adapter.protocol import (
    Folding,
    InjectedLayer,
    Layer,
    LayerAdapter,
    LowRank,
    Method,
    WeightedLayer,
    refitted,
)
from veneer.adapter.stored import alpha_tensor, layer_product, number_in
from veneer.adapter.targets import pattern_of
from veneer.config.adapter_config import AdapterConfig, TextEncoderAdapterConfig
from veneer.errors import UserError
from veneer.rng import torch_generator

__all__ = ["LORA", "LoraFactors", "LoraSpec", "concatenate", "delta_weight", "product_with"]


@dataclass(frozen=True)
class LoraSpec:
    """The plan of one network's LoRA.

    Attributes:
        rank: r, rows of A and columns of B.
        alpha: numerator of the strength; the rank makes it 1.
        targets: names, or endings of dotted paths, of the layers to adapt.
        dropout: share of the adapter's inputs zeroed while training.
        blocks: in which these are looked for; none: the whole network.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    blocks: tuple[str, ...] = ()
    peft_markers: ClassVar[Mapping[str, Any]] = {}
    """Settings of peft's config that mark the method; none for plain LoRA."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.rank < 1:
            raise UserError(f"the rank is {self.rank}", code="adapter.bad_rank", remedy="use 1 or more; 4 is usual")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            remedy = "use a number above 0; the rank is usual"
            raise UserError(f"alpha is {self.alpha}", code="adapter.bad_alpha", remedy=remedy)
        if not 0 <= self.dropout < 1:
            remedy = "use a share from 0 to below 1"
            raise UserError(f"the dropout is {self.dropout}", code="adapter.bad_dropout", remedy=remedy)
        if not self.targets or not all(self.targets):
            remedy = "name some, e.g. to_q to_k to_v to_out.0"
            raise UserError("no target layers are named", code="adapter.no_targets", remedy=remedy)

    @classmethod
    def from_config(cls, config: AdapterConfig | TextEncoderAdapterConfig) -> LoraSpec:
        """Return the plan that a section of a run's config states."""
        alpha = float(config.rank) if config.alpha is None else config.alpha
        assert not isinstance(config.target_modules, str), "a preset has been expanded"
        return cls(config.rank, alpha, config.target_modules or (), config.dropout, config.blocks or ())

    def to_peft(self) -> LoraConfig:
        """Return the same plan for ``network.add_adapter`` and ``peft.get_peft_model``."""
        settings: dict[str, Any] = {"lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha}
        settings |= {"r": self.rank, "lora_dropout": self.dropout, "init_lora_weights": "gaussian"}
        settings |= self.peft_markers
        targets = pattern_of(self.targets, self.blocks) if self.blocks else list(self.targets)
        return LoraConfig(target_modules=targets, **settings)

    @classmethod
    def from_peft(cls, config: LoraConfig) -> LoraSpec:
        """Return the plan that a peft config states.

        Raises:
            UserError: it states more than a plan of this method can, or less, so it would train something else.
        """
        code, default = "adapter.unsupported_peft_config", LoraConfig(**cls.peft_markers)
        changed = [f.name for f in fields(config) if getattr(config, f.name) != getattr(default, f.name)]
        if unsupported := sorted(set(changed) - _EXPRESSED):
            settings = ", ".join(f"{name}={getattr(config, name)!r:.40}" for name in unsupported)
            raise UserError(f"the peft config sets {settings}", code=code, remedy="a plan has no place for that")
        if (start := config.init_lora_weights) not in (True, "gaussian"):
            raise UserError(f"the peft config's init_lora_weights is {start!r}", code=code, remedy="use gaussian")
        targets = config.target_modules
        if targets is None or isinstance(targets, str):
            what = f"the peft config's target_modules is {targets!r}"
            raise UserError(what, code=code, remedy="give a list of layer names")
        return cls(config.r, float(config.lora_alpha), tuple(sorted(targets)), config.lora_dropout)

    def check_layer(self, path: str, layer: Layer) -> None:
        """Refuse a rank that the layer's matrix does not have, and convolutions that peft adapts wrongly.

        Raises:
            UserError: it cannot be adapted.
        """
        largest = min(layer.weight.shape[0], layer.weight[0].numel())
        if self.rank > largest:
            what = f"rank {self.rank} is larger than the matrix of {path} {tuple(layer.weight.shape)}"
            raise UserError(what, code="adapter.rank_too_large", remedy=f"use at most {largest}")
        if isinstance(layer, nn.Conv2d) and (layer.groups, layer.dilation, layer.padding_mode) != (1, (1, 1), "zeros"):
            what = f"{path} is a convolution with groups, dilation or padding other than zeros"
            raise UserError(what, code="adapter.unsupported_convolution", remedy="take it off the targets")

    def wrap_layers(self, network: nn.Module, paths: Sequence[str]) -> None:
        """Let peft wrap these layers."""
        wrap_with_peft(network, self.to_peft(), paths)

    def injected_layer(self, module: BaseTunerLayer) -> InjectedLayer:
        """Return the handle of a layer that peft wrapped."""
        assert isinstance(module, LoraLayer)
        return InjectedLora(module, self.alpha)


_PLAN = {"r", "lora_alpha", "target_modules", "lora_dropout", "init_lora_weights"}
_PROVENANCE = {"peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"}
_EXPRESSED = _PLAN | _PROVENANCE


@dataclass(frozen=True)
class InjectedLora:
    """peft's layer of one LoRA.

    Attributes:
        module: the layer.
        alpha: numerator of its strength.
    """

    module: LoraLayer
    alpha: float

    @property
    def down(self) -> nn.Parameter:
        """A, (r, in) or (r, in, kh, kw)."""
        return parameter_in(self.module.lora_A)

    @property
    def up(self) -> nn.Parameter:
        """B, (out, r) or (out, r, 1, 1)."""
        return parameter_in(self.module.lora_B)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return A and B, float32."""
        return {"lora_A.weight": self.down, "lora_B.weight": self.up}

    def initialise(self, seed: int, path: str) -> None:
        """Draw A from a normal distribution of deviation 1/r, keyed by (seed, path), and make B zero."""
        for factor in (self.module.lora_A, self.module.lora_B):
            factor[ADAPTER_NAME].to(torch.float32)
        noise = torch.randn(self.down.shape, generator=torch_generator(seed, "adapter", path))
        with torch.no_grad():
            self.down.copy_(noise / self.down.shape[0])
            self.up.zero_()

    def read(self) -> LoraFactors:
        """Return copies of A and B."""
        return LoraFactors(_copy(self.down), _copy(self.up), self.alpha)

    def check(self, path: str, weights: LayerAdapter) -> None:
        """Refuse factors of another method or rank.

        Raises:
            UserError: they are.
        """
        if not isinstance(weights, LoraFactors):
            what = f"{path} has a {weights.method.title} in the adapter and a {LORA.title} here"
            raise UserError(what, code="adapter.other_method")
        if weights.rank != self.down.shape[0]:
            what = f"{path} has rank {weights.rank} in the adapter and {self.down.shape[0]} here"
            raise UserError(what, code="adapter.other_rank")

    @torch.no_grad()
    def load(self, weights: LayerAdapter) -> None:
        """Take A as it is, and B such that the strength is that of ``weights``, whatever alpha is here."""
        assert isinstance(weights, LoraFactors)
        self.down.copy_(weights.down)
        self.up.copy_(weights.up * (weights.alpha / self.alpha))


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """One layer's LoRA, delta W = (alpha/r) B A.

    Attributes:
        down: A, (r, in) of a linear layer or (r, in, kh, kw) of a convolution.
        up: B, (out, r) or (out, r, 1, 1).
        alpha: numerator of the strength.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        """Refuse factors whose product is not a layer's weight."""
        product_shape(tuple(self.down.shape), tuple(self.up.shape))
        if not math.isfinite(self.alpha):
            raise UserError(f"alpha is {self.alpha}", code="adapter.bad_alpha")

    @property
    def method(self) -> Method:
        """The method: LoRA."""
        return LORA

    @property
    def rank(self) -> int:
        """Number r of rows of A."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor alpha/r of B A."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of delta W: (out, in) or (out, in, kh, kw)."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def bias_size(self) -> None:
        """None: it changes no bias."""

    @property
    def parameter_count(self) -> int:
        """Number of parameters in A and B."""
        return self.down.numel() + self.up.numel()

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """Rank and alpha."""
        return {"rank": self.rank, "alpha": self.alpha}

    @property
    def is_untrained(self) -> bool:
        """True where B is zero, as it is at the start."""
        return not bool(self.up.any())

    def fitted(self, shape: tuple[int, ...]) -> LoraFactors | None:
        """Return the same factors for a weight of a shape; None: they do not fit."""
        if self.shape == shape:
            return self
        if self.shape[:2] != shape[:2] or math.prod(self.shape[2:]) * math.prod(shape[2:]) != 1:
            return None
        return LoraFactors(refitted(self.down, len(shape)), refitted(self.up, len(shape)), self.alpha)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LoraFactors:
        """Return the same factors on another device or in another dtype."""
        return LoraFactors(self.down.to(device, dtype), self.up.to(device, dtype), self.alpha)

    def state_dict(self) -> dict[str, Tensor]:
        """Return A, B and alpha as tensors."""
        return {"down": self.down, "up": self.up, "alpha": torch.tensor(self.alpha, dtype=torch.float64)}

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> LoraFactors:
        """Return the factors that :meth:`state_dict` gave."""
        return LoraFactors(state["down"], state["up"], float(state["alpha"]))

    @staticmethod
    def from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> LoraFactors:
        """Return the factors that a file has.

        Args:
            parts: A, B, perhaps alpha, which is a number or one for each row of A, perhaps the core of a Tucker
                decomposition between A and B, and perhaps the scalar that LyCORIS multiplies by where it is told to.
            settings: peft's config of the layer, which tells the strength; None: alpha does, and without it is r.

        Raises:
            UserError: a part is missing, parts do not fit, alpha is not one number, or the config tells another rank
                or strength.
        """
        check_names(parts)
        down, up = _without_core(parts) if "mid" in parts else (parts["down"], parts["up"])
        rank = down.shape[0] if down.ndim else 0
        told, scalar = parts.get("alpha"), number_in("scalar", parts["scalar"]) if "scalar" in parts else 1.0
        if told is not None and told.numel() == rank > 1 and settings is None:
            return LoraFactors(_wide(down), _times_each(up, told.flatten().double() / rank), rank * scalar)
        return LoraFactors(down, up, scalar * alpha_in(None if told is None else told.flatten(), settings, rank))

    def folded(self) -> LoraFactors:
        """Return the same LoRA with its strength in B and alpha = r."""
        return LoraFactors(self.down, _times(self.up, self.scale), float(self.rank))

    def unfolded(self, alpha: float) -> LoraFactors:
        """Return a LoRA that was folded with a given alpha as it was before, up to rounding."""
        return LoraFactors(self.down, _times(self.up, self.rank / alpha if alpha else 1.0), alpha)

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return A and B, for kohya's readers with alpha; peft's find it in the settings."""
        alpha = {"alpha": alpha_tensor(self.alpha)} if naming == "kohya" else {}
        return {"down": self.down, "up": self.up, **alpha}

    def peft_settings(self) -> dict[str, Any]:
        """Return rank and alpha."""
        return {"r": self.rank, "lora_alpha": int(self.alpha) if self.alpha.is_integer() else self.alpha}

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W; the base's weight does not matter."""
        return delta_weight(self)

    def delta_bias(self, bias: Tensor) -> None:
        """Return None: nothing is added to the bias."""

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return |delta W|^2 = s^2 |B A|^2, where |B A|^2 = sum of (B'B) * (A A'), without making B A."""
        down, up = self.down.double().flatten(1), self.up.double().flatten(1)
        return float(self.scale**2 * ((up.T @ up) * (down @ down.T)).sum())

    def bypass(self, layer: WeightedLayer) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that adds s B A x to a layer's output (Hu et al. 2021, eq. 3)."""
        return lambda x, output: output + self.scale * product_with(self, layer, x).to(output.dtype)

    def low_rank(self) -> LowRank:
        """Return A and B with their strength."""
        return LowRank(self.down, self.up, self.scale)


def product_with(factors: LoraFactors, layer: WeightedLayer, x: Tensor) -> Tensor:
    """Return B A x, with a convolution's stride and padding in A; its B is 1 x 1."""
    down, up = factors.down.to(x.device), factors.up.to(x.device)
    low = layer_product(layer, x if torch.is_autocast_enabled(x.device.type) else x.to(down.dtype), down)
    return functional.conv2d(low, up) if up.ndim > 2 else functional.linear(low, up)


def delta_weight(factors: LoraFactors | LowRank) -> Tensor:
    """Return delta W = (alpha/r) B A (Hu et al. 2021, section 4.1), (out, in) or (out, in, kh, kw).

    A convolution's B is 1 x 1, so the product over r is taken at each place of A's kernel.
    """
    product = factors.up.flatten(1) @ factors.down.flatten(1)
    return factors.scale * product.reshape(factors.shape)


def concatenate(parts: Sequence[tuple[LowRank, float]]) -> LoraFactors:
    """Return one LoRA whose delta W is the sum of w_i s_i B_i A_i: the ranks side by side, with alpha = r.

    sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]. The factors are float32 at least: in half
    precision w_i s_i B_i would be rounded by up to 1 in 2,000.

    Args:
        parts: products of one layer, with the strength w_i of each.
    """
    down = torch.cat([_wide(part.down) for part, _ in parts])
    up = torch.cat([_wide(part.up) * (strength * part.scale) for part, strength in parts], dim=1)
    return LoraFactors(down, up, alpha=float(len(down)))


def _wide(factor: Tensor) -> Tensor:
    """Return a tensor in float32 at least."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


def _times(factor: Tensor, scale: float) -> Tensor:
    """Return a tensor times a number, rounded once, in its dtype."""
    if scale == 1:
        return factor
    is_power_of_two = abs(math.frexp(scale)[0]) == 0.5  # which no float is rounded by
    return factor * scale if is_power_of_two else (factor.double() * scale).to(factor.dtype)


def _times_each(up: Tensor, scales: Tensor) -> Tensor:
    """Return B (out, r) or (out, r, 1, 1) with each column times a number of its own, in float32 at least."""
    product = up.double() * scales.reshape(1, -1, *(1 for _ in up.shape[2:]))
    return product.to(torch.promote_types(up.dtype, torch.float32))


def _copy(parameter: Tensor) -> Tensor:
    """Return a copy on the CPU in float32; of a model that is only counted, on its meta device."""
    device = parameter.device if parameter.is_meta else "cpu"
    return parameter.detach().to(device, torch.float32, copy=True)


def _without_core(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the A and B that make the same delta W as A (r, in, 1, 1), B (out, r, 1, 1) and a core (r, r, kh, kw).

    The core is multiplied into A: A'[p, i, h, w] = sum_q core[p, q, h, w] A[q, i] (LyCORIS, ``rebuild_tucker``).

    Raises:
        UserError: they do not fit together.
    """
    down, up, core = parts["down"], parts["up"], parts["mid"]
    with_core(tuple(down.shape), tuple(up.shape), tuple(core.shape))
    return torch.einsum("pqhw,qi->pihw", _wide(core), _wide(down).flatten(1)), _wide(up)


LORA = Method(
    names=PART_NAMES["lora"],
    is_additive=True,
    is_mergeable=True,
    spec=LoraSpec.from_config,
    from_state=LoraFactors.from_state,
    from_file=LoraFactors.from_file,
    row_parts={"up": "down"},
    folding=Folding(LoraFactors.folded, LoraFactors.unfolded),
    is_low_rank=True,
)

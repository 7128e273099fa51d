"""What is measured: bases and denoisers of the sizes that people train, and tiny ones of the same kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models
from veneer.family.published import read_published

__all__ = ["DENOISERS", "Denoiser", "flux", "z_image"]


@dataclass(frozen=True)
class Denoiser:
    """A transformer that is measured without the rest of its base.

    Attributes:
        network: frozen, in evaluation mode.
        call: does one forward pass on fixed inputs and returns its output.
        targets: endings of the layers that get adapters.
    """

    network: nn.Module
    call: Callable[[nn.Module], Tensor]
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


def flux(device: torch.device, dtype: torch.dtype, pixels: int, is_full: bool) -> Denoiser:
    """Make FLUX.1-dev's transformer: 12 billion parameters."""
    from diffusers import FluxTransformer2DModel

    config = dict(read_published("flux-dev").parts["transformer"])
    if not is_full:
        config |= {"num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
        config |= {"joint_attention_dim": 24, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8)}
    network = _make(FluxTransformer2DModel, config, device, dtype)
    side, words = pixels // 16, 512 if is_full else 5
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(float(side)), torch.arange(float(side))).to(device)
    inputs = {
        "hidden_states": _noise(device, dtype, 1, side * side, config["in_channels"]),
        "encoder_hidden_states": _noise(device, dtype, 1, words, config["joint_attention_dim"]),
        "pooled_projections": _noise(device, dtype, 1, config["pooled_projection_dim"]),
        "timestep": torch.tensor([0.5], device=device, dtype=dtype),
        "guidance": torch.tensor([3.5], device=device, dtype=dtype),
        "img_ids": places,
        "txt_ids": torch.zeros(words, 3, device=device),
    }
    return Denoiser(network, lambda model: model(**inputs, return_dict=False)[0])


def z_image(device: torch.device, dtype: torch.dtype, pixels: int, is_full: bool) -> Denoiser:
    """Make Z-Image's transformer: 6 billion parameters."""
    from diffusers import ZImageTransformer2DModel

    config: dict[str, Any] = {}
    if not is_full:
        config = {"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 24}
        config |= {"axes_dims": [4, 6, 6]}
    network = _make(ZImageTransformer2DModel, config, device, dtype)
    latents = [_noise(device, dtype, 16, 1, pixels // 8, pixels // 8)]
    words = [_noise(device, dtype, 128 if is_full else 5, config.get("cap_feat_dim", 2560))]
    time = torch.tensor([0.5], device=device, dtype=dtype)
    return Denoiser(network, lambda model: model(latents, time, words, return_dict=False)[0][0])


DENOISERS = {"flux": flux, "z-image": z_image}


def _make(kind: Any, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> nn.Module:
    from veneer.family.abstract import make_network

    network = make_network(kind, config, dtype)
    models.fill(network, device, torch.Generator(device).manual_seed(0))
    return network


def _noise(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(device, dtype)

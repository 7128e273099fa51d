"""Tiny networks of every supported kind, random but the same each time, with adapters of peft in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "UNEVEN", "Network", "adapt", "adapt_made", "gradients", "worst"]


@dataclass(frozen=True)
class Network:
    """One kind: how it is made, how it is called, and what of it gets adapters."""

    make: Callable[[], nn.Module]
    call: Callable[[nn.Module, torch.dtype], Tensor]
    targets: tuple[str, ...]


def _noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _unet(**more: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    two_levels = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=4,
        **(two_levels | more),
    )


def _call_sd(model: nn.Module, dtype: torch.dtype, size: tuple[int, int] = (8, 8)) -> Tensor:
    noisy, text = _noise(2, 4, *size).to(dtype), _noise(2, 5, 24, seed=2).to(dtype)
    sample: Tensor = model(noisy, torch.tensor([3, 700]), text).sample
    return sample


def _sdxl() -> nn.Module:
    return _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
    )


def _call_sdxl(model: nn.Module, dtype: torch.dtype) -> Tensor:
    noisy, text = _noise(2, 4, 8, 8).to(dtype), _noise(2, 5, 24, seed=2).to(dtype)
    added = {"text_embeds": _noise(2, 16, seed=3).to(dtype), "time_ids": torch.full((2, 6), 8.0).to(dtype)}
    sample: Tensor = model(noisy, torch.tensor([3, 700]), text, added_cond_kwargs=added).sample
    return sample


def _sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )


def _call_sd3(model: nn.Module, dtype: torch.dtype) -> Tensor:
    noisy, text, pooled = _noise(2, 4, 8, 8), _noise(2, 5, 24, seed=2), _noise(2, 16, seed=3)
    sample: Tensor = model(noisy.to(dtype), text.to(dtype), pooled.to(dtype), torch.tensor([3.0, 700.0])).sample
    return sample


def _flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )


def _call_flux(model: nn.Module, dtype: torch.dtype) -> Tensor:
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    sample: Tensor = model(
        hidden_states=_noise(2, 16, 4).to(dtype),
        encoder_hidden_states=_noise(2, 5, 24, seed=2).to(dtype),
        pooled_projections=_noise(2, 16, seed=3).to(dtype),
        timestep=torch.tensor([0.1, 0.7], dtype=dtype),
        img_ids=places,
        txt_ids=torch.zeros(5, 3),
    ).sample
    return sample


def _clip() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return CLIPTextModel(CLIPTextConfig(vocab_size=50, max_position_embeddings=16, **sizes))


def _t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=50, feed_forward_proj="gated-gelu", dropout_rate=0.0, **sizes))


def _call_text(model: nn.Module, dtype: torch.dtype) -> Tensor:
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    state: Tensor = model(ids).last_hidden_state
    return state


_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "proj_in", "downsamplers.0.conv")

NETWORKS = {
    "sd": Network(_unet, _call_sd, _ATTENTION),
    "sd, all of it": Network(_unet, _call_sd, (*_ATTENTION, *_FEED_FORWARD, *_CONVOLUTIONS)),
    "sdxl": Network(_sdxl, _call_sdxl, (*_ATTENTION, *_FEED_FORWARD, "proj_in", "time_emb_proj")),
    "sd3": Network(_sd3, _call_sd3, (*_ATTENTION, *_FEED_FORWARD, "norm1.linear")),
    "flux": Network(_flux, _call_flux, (*_ATTENTION, "add_k_proj", "proj_mlp", "proj_out", "norm.linear")),
    "clip": Network(_clip, _call_text, ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    "t5": Network(_t5, _call_text, ("q", "v", "wi_0", "wo")),
}


def _deep_unet() -> nn.Module:
    """As deep as Stable Diffusion's, which halves three times."""
    return _unet(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    )


UNEVEN = Network(_deep_unet, partial(_call_sd, size=(13, 10)), NETWORKS["sd, all of it"].targets)
"""Stable Diffusion's UNet on latents that do not halve evenly: 13, 7, 4, 2 rows."""


def adapt(network: Network, dropout: float = 0.0, rank: int = 4) -> nn.Module:
    """The network, frozen, with random adapters (B too), in training mode."""
    return adapt_made(network, lambda model: None, dropout, rank)


def adapt_made(
    network: Network, change: Callable[[nn.Module], object], dropout: float = 0.0, rank: int = 4
) -> nn.Module:
    """The same, changed before the adapters are put in."""
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.make().requires_grad_(False)
        change(model)
        settings: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": dropout}
        config = LoraConfig(target_modules=list(network.targets), init_lora_weights=False, **settings)
        return inject_adapter_in_model(config, model).train()


def gradients(
    network: Network, model: nn.Module, dtype: torch.dtype = torch.float32, autocast: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """One step's output and its gradient for every trainable parameter; dropout from the same random numbers."""
    model.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = network.call(model, dtype)
    weight = _noise(*output.shape, seed=9).to(output.dtype)
    wide = output if output.dtype == torch.float64 else output.float()
    torch.autograd.backward((wide * weight).sum())
    return output.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest error of any element, over the largest element of its tensor."""
    assert found.keys() == truth.keys()
    return max(
        float((found[name].double() - truth[name].double()).abs().max() / truth[name].abs().max().double())
        for name in truth
    )

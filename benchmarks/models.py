"""Make what is measured: the bundled base, Stable Diffusion 1.5's UNet at full size, and adapters for them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging
from peft import LoraConfig
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

import veneer
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights

__all__ = [
    "ATTENTION",
    "adapted",
    "adapter",
    "adapters",
    "autoencoder",
    "beside",
    "bundled",
    "denoise",
    "full_size",
    "full_size_pipeline",
    "narrow",
    "quiet",
    "squared_error",
    "twin",
]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def quiet() -> None:
    """Silence the libraries' notices, which would stand between the tables."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()


def bundled() -> StableDiffusionPipeline:
    """Load the bundled base."""
    pipeline: Any = veneer.load_base("bundled").pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def full_size() -> UNet2DConditionModel:
    """Make Stable Diffusion 1.5's UNet: 859,520,964 random parameters, float32, 3.4 GB."""
    return _unet((320, 640, 1280, 1280))


def narrow() -> UNet2DConditionModel:
    """Make the same network a fifth as wide, for what would take too long at full size."""
    return _unet((64, 128, 256, 256))


def _unet(widths: tuple[int, ...]) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=768,
    )
    return unet.eval().requires_grad_(False)


def autoencoder() -> AutoencoderKL:
    """Make Stable Diffusion 1.5's autoencoder, at full size and random."""
    made = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=512,
    )
    return made.eval().requires_grad_(False)


def full_size_pipeline() -> StableDiffusionPipeline:
    """Make Stable Diffusion 1.5, at full size and random; the tokenizer is the bundled base's, which pads alike."""
    pipeline: Any = bundled()
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    parts = {"unet": full_size(), "vae": autoencoder(), "text_encoder": CLIPTextModel(text)}
    for part in parts.values():
        part.eval().requires_grad_(False)
    return StableDiffusionPipeline(**{**pipeline.components, **parts})


def adapted(unet: UNet2DConditionModel, rank: int = 4) -> UNet2DConditionModel:
    """Make a twin in training mode with peft's adapters on the attention, A and B random."""
    other: Any = twin(unet)
    torch.manual_seed(1)
    other.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=list(ATTENTION)))
    trained: UNet2DConditionModel = other.train()
    return trained


def squared_error(unet: nn.Module, rows: int, pixels: int, input_learns: bool = False) -> Tensor:
    """Return the loss of one forward pass for pictures of a side of ``pixels``, with a text of 77 tokens each.

    Args:
        unet: the denoiser.
        rows: how many pictures.
        pixels: their side.
        input_learns: whether the noisy latents require a gradient; needed where nothing else does.
    """
    config: Any = unet.config
    generator, side = torch.Generator().manual_seed(2), pixels // 8
    noisy = torch.randn(rows, config.in_channels, side, side, generator=generator).requires_grad_(input_learns)
    text = torch.randn(rows, 77, config.cross_attention_dim, generator=generator)
    predicted: Tensor = unet(noisy, torch.full((rows,), 500), text).sample
    return predicted.square().mean()


def twin(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Make another network over the very same weights: what is injected into one does not slow the other."""
    with torch.device("meta"):
        other = UNet2DConditionModel.from_config(unet.config)
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def beside(pipeline: Any) -> Any:
    """Make a pipeline with a denoiser of its own over the same weights, and the other parts shared."""
    other: Any = StableDiffusionPipeline(**{**pipeline.components, "unet": twin(pipeline.unet)})
    other.set_progress_bar_config(disable=True)
    return other


def adapter(
    networks: Mapping[str, nn.Module], rank: int, seed: int, targets: tuple[str, ...] = ATTENTION
) -> dict[str, LoraFactors]:
    """Draw random factors for the layers that end in ``targets``, alpha the rank."""
    generator = torch.Generator().manual_seed(seed)
    endings = tuple(f".{target}" for target in targets)
    found = {path: layer.weight.shape for path, layer in layers_of(networks).items() if path.endswith(endings)}
    return {path: _factors(shape, rank, generator) for path, shape in found.items()}


def _factors(shape: torch.Size, rank: int, generator: torch.Generator) -> LoraFactors:
    down = torch.randn(rank, *shape[1:], generator=generator) / rank
    up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator) / 100
    return LoraFactors(down, up, float(rank))


def adapters(networks: Mapping[str, nn.Module], count: int, rank: int = 4) -> dict[str, AdapterWeights]:
    """Draw several adapters, by name: ``a0``, ``a1``, ..."""
    return {f"a{number}": adapter(networks, rank, number) for number in range(count)}


@torch.inference_mode()
def denoise(unet: nn.Module, rows: int, pixels: int) -> Tensor:
    """Run one forward pass for pictures of a side of ``pixels``, with a text of 77 tokens each."""
    config: Any = unet.config
    side = pixels // 8
    noisy = torch.full((rows, config.in_channels, side, side), 0.1)
    text = torch.full((rows, 77, config.cross_attention_dim), 0.1)
    sample: Tensor = unet(noisy, torch.full((rows,), 500), text).sample
    return sample

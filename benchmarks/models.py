"""Make what is measured: the bundled base, Stable Diffusion 1.5's UNet at full size, and adapters for them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging
from peft import LoraConfig
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import veneer
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights
from veneer.family.abstract import make_network, make_scheduler
from veneer.family.protocol import Family
from veneer.family.published import read_published
from veneer.family.registry import family_class

__all__ = [
    "ATTENTION",
    "adapted",
    "adapter",
    "adapters",
    "autoencoder",
    "beside",
    "bundled",
    "denoise",
    "denoiser_inputs",
    "fill",
    "full_size",
    "full_size_pipeline",
    "narrow",
    "published_family",
    "quiet",
    "squared_error",
    "tiny",
    "twin",
    "warm_up",
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


def tiny() -> UNet2DConditionModel:
    """Make a small network of the same kind, to try on the CPU what is measured on a GPU."""
    return _unet((32, 64), layers_per_block=1, norm_num_groups=8, **_TINY_BLOCKS)


_TINY_BLOCKS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def published_family(name: str, device: torch.device, is_full: bool = True) -> Family:
    """Make a base of a published architecture with random weights in float32, made where they are needed.

    Its tokenizers are the bundled base's; neither time nor memory depends on their words.

    Args:
        name: a key of ``veneer.family.published``.
        device: where its networks are made.
        is_full: its own size; else a tiny network of the same kind, to try on the CPU what is measured on a GPU.
    """
    published = read_published(name)
    parts = {part: {**config, **({} if is_full else _SHRUNK.get(part, {}))} for part, config in published.parts.items()}
    if not is_full:
        parts["unet"] |= _SHRUNK_UNET[name]
    networks = {
        part: make_network(_CLASSES[part], parts[part], torch.float32) for part in sorted(parts.keys() & _CLASSES)
    }
    generator = torch.Generator(device).manual_seed(0)
    for network in networks.values():
        fill(network, device, generator)
    kind: Any = family_class(published.pipeline)
    tokenizers = {part: _tokenizer() for part in kind.tokenizers.values()}
    scheduler = make_scheduler(parts["scheduler"])
    family: Family = kind({**networks, **tokenizers, "scheduler": scheduler, **dict.fromkeys(kind.left_out)})
    return family


def _tokenizer() -> Any:
    """Return the bundled base's tokenizer, with as many tokens as the published text encoders read."""
    return CLIPTokenizer.from_pretrained(veneer.base_path() / "tokenizer", model_max_length=77)


_CLASSES: dict[str, type[Any]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
_TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_SHRUNK: dict[str, dict[str, Any]] = {
    "vae": {
        "block_out_channels": (8, 8, 8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
    "text_encoder": {**_TINY_TEXT, "projection_dim": 32},
    "text_encoder_2": {**_TINY_TEXT, "projection_dim": 32},
}
_SHRUNK_UNET: dict[str, dict[str, Any]] = {
    "sd15": {
        **_TINY_BLOCKS,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "sample_size": 8,
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 32),
        "transformer_layers_per_block": (1, 2),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
        "sample_size": 8,
    },
}


@torch.no_grad()
def fill(network: nn.Module, device: torch.device, generator: torch.Generator) -> None:
    """Give a network on the meta device random weights, small enough that no output overflows."""
    network.to_empty(device=device).eval().requires_grad_(False)
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if not tensor.is_floating_point():
            tensor.copy_(torch.arange(tensor.numel(), device=device).view(tensor.shape))  # positions
        elif tensor.ndim == 1 and name.endswith("weight"):
            tensor.fill_(1.0)  # norms
        else:
            tensor.normal_(0.0, 0.02, generator=generator)


def warm_up(device: torch.device) -> None:
    """Use products and convolutions once, since their libraries take memory when they are first called."""
    layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(2), nn.Linear(64, 64)).to(device)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            layers(torch.randn(2, 4, 8, 8, device=device)).float().sum().backward()


def _unet(widths: tuple[int, ...], **changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2}
    settings |= {"block_out_channels": widths, "attention_head_dim": 8, "cross_attention_dim": 768}
    unet = UNet2DConditionModel(**(settings | changes))
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
    noisy, t_B, text = denoiser_inputs(unet, rows, pixels)
    predicted: Tensor = unet(noisy.requires_grad_(input_learns), t_B, text).sample
    return predicted.square().mean()


def denoiser_inputs(unet: nn.Module, rows: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy latents, times and texts for a UNet, where it is and in its dtype; the same numbers each time."""
    config: Any = unet.config
    generator, side = torch.Generator().manual_seed(2), pixels // 8
    noisy = torch.randn(rows, config.in_channels, side, side, generator=generator)
    text = torch.randn(rows, 77, config.cross_attention_dim, generator=generator)
    weight = next(unet.parameters())
    return noisy.to(weight), torch.full((rows,), 500, device=weight.device), text.to(weight)


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

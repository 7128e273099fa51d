"""Ideogram 4: a packed sequence, thirteen layers of Qwen3-VL, and a second transformer to guide by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.chat_tokenizers import qwen_tokenizer
from tests.families.flux2 import tiny_autoencoder

__all__ = ["CASE", "LENGTH", "velocity", "write_tiny_ideogram"]

LENGTH = 128
"""Tokens that texts are filled up to: the pipeline's own 2048 take longer, and are masked."""
TEXT_WIDTH = 8


def write_tiny_ideogram(folder: Path) -> Path:
    """Write an Ideogram 4 of random weights (seed 0), one token for each 4 x 4 pixels; the same bits each time."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Ideogram4Pipeline

    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"vae": tiny_autoencoder(), "text_encoder": _tiny_qwen(len(tokenizer))}
        parts |= {name: _tiny_transformer() for name in ("transformer", "unconditional_transformer")}
    scheduler = FlowMatchEulerDiscreteScheduler()
    Ideogram4Pipeline(**parts, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


def _tiny_transformer() -> Any:
    from diffusers import Ideogram4Transformer2DModel

    return Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=48,
        adaln_dim=16,
        llm_features_dim=13 * TEXT_WIDTH,
        mrope_section=(4, 2, 2),
    )


def _tiny_qwen(vocabulary: int) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLModel

    text = {
        "vocab_size": vocabulary,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 36,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)).eval()


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    return vae.bn.running_mean, torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)


def _tokens(latents: Tensor) -> Tensor:
    """The autoencoder's own latents as tokens (B, L, 4C): what the pipeline's decoding undoes."""
    count, channels, height, width = latents.shape
    squares = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return squares.reshape(count, -1, 4 * channels)


def _grid(tokens: Tensor, size: Sequence[int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    posterior = pipeline.vae.encode(pixels).latent_dist
    mean, std = _statistics(pipeline.vae)
    size = [side // 2 for side in posterior.mean.shape[-2:]]
    return _grid((_tokens(posterior.mean) - mean) / std, size), _grid(_tokens(posterior.std) / std, size)


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    """As in the last lines of ``Ideogram4Pipeline.__call__``."""
    (mean, std), patch = _statistics(pipeline.vae), pipeline.patch_size
    count, channels, rows, columns = latents.shape
    z = latents.flatten(2).transpose(1, 2) * std + mean
    z = z.view(count, rows, columns, patch, patch, channels // patch**2).permute(0, 5, 1, 3, 2, 4).contiguous()
    pixels: Tensor = pipeline.vae.decode(z.view(count, -1, rows * patch, columns * patch)).sample
    return pixels


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str], length: int = LENGTH) -> Tensor:
    rows, columns = latents.shape[-2:]
    features, positions, segments, indicators = pipeline.encode_prompt(list(captions), rows, columns, length, "cpu")
    tokens = latents.flatten(2).transpose(1, 2)
    filled = torch.cat([torch.zeros(len(latents), length, tokens.shape[2]), tokens], dim=1)
    answer = pipeline.transformer(
        hidden_states=filled,
        timestep=1.0 - sigma_B,
        encoder_hidden_states=features,
        position_ids=positions,
        segment_ids=segments,
        indicator=indicators,
        return_dict=False,
    )[0]
    return -_grid(answer[:, length:], latents.shape[-2:])


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor * pipeline.patch_size for side in latents.shape[-2:])
    tokens = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=1.0,
        guidance_schedule=None,
        max_sequence_length=LENGTH,
        latents=latents.flatten(2).transpose(1, 2),
        output_type="latent",
    ).images
    return _grid(tokens, latents.shape[-2:])


CASE = FamilyCase(
    pipeline="Ideogram4Pipeline",
    write=write_tiny_ideogram,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"ideogram4": "ideogram4"},
    key_tables=("ideogram4",),
    tolerance=1e-5,
)

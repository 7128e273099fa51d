"""Wan 2.1's text to video, of which a picture is one frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.parts import t5_tokenizer

__all__ = ["CASE", "write_tiny_wan"]

_TIMES = 1000


def write_tiny_wan(
    folder: Path, *, expand_timesteps: bool = False, boundary: float | None = None, taken: int = 4
) -> Path:
    """Write a Wan pipeline of random weights (seed 0); the same bits each time.

    Args:
        folder: where to.
        expand_timesteps: whether each token has a time.
        boundary: the time at which a second transformer takes over, of a base with two.
        taken: channels that the transformer takes.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    tokenizer = t5_tokenizer(512)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _networks(len(tokenizer), taken)
        if boundary is not None:
            networks["transformer_2"] = _networks(len(tokenizer))["transformer"]
    parts: dict[str, Any] = {"tokenizer": tokenizer, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    pipeline = WanPipeline(**parts, **networks, expand_timesteps=expand_timesteps, boundary_ratio=boundary)
    pipeline.save_pretrained(folder)
    return folder


def _networks(tokens: int, taken: int = 4) -> dict[str, Any]:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    text: dict[str, Any] = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return {
        "text_encoder": UMT5EncoderModel(UMT5Config(vocab_size=tokens, feed_forward_proj="gated-gelu", **text)),
        "vae": AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[-0.5, 0.1, 0.3, -0.2],
            latents_std=[1.5, 2.0, 0.7, 1.1],
            scale_factor_temporal=2,
            scale_factor_spatial=2,
        ),
        "transformer": WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=taken,
            out_channels=4,
            text_dim=24,
            freq_dim=8,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=64,
        ),
    }


def statistics(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of each channel, as the pipeline makes them."""
    config = pipeline.vae.config
    mean = torch.tensor(config.latents_mean).view(1, config.z_dim, 1, 1, 1)
    return mean, 1.0 / torch.tensor(config.latents_std).view(1, config.z_dim, 1, 1, 1)


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    mean, scale = statistics(pipeline)
    posterior = pipeline.vae.encode(pixels if pixels.ndim == 5 else pixels[:, :, None]).latent_dist
    return (posterior.mean - mean) * scale, posterior.std * scale


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    mean, scale = statistics(pipeline)
    pixels: Tensor = pipeline.vae.decode(latents / scale + mean).sample
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    text, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False, max_sequence_length=512)
    time = sigma_B * _TIMES
    if pipeline.config.expand_timesteps:
        frames = [torch.ones(latents.shape[-3:])[:, ::2, ::2] * t for t in time]
        time = torch.stack([frame.flatten() for frame in frames])
    output: Tensor = pipeline.transformer(
        hidden_states=latents, timestep=time, encoder_hidden_states=text, return_dict=False
    )[0]
    return output


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor_spatial for side in latents.shape[-2:])
    frames = (latents.shape[2] - 1) * pipeline.vae_scale_factor_temporal + 1
    result: Tensor = pipeline(
        list(captions),
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=latents,
        output_type="latent",
    ).frames
    return result


CASE = FamilyCase(
    pipeline="WanPipeline",
    write=write_tiny_wan,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={
        "wan21-1.3b": "wan21-t2v-1.3b",
        "wan21-14b": "wan21-t2v-14b",
        "wan22-5b": "wan22-ti2v-5b",
        "wan22-t2v-a14b": "wan21-t2v-14b",
    },
    key_tables=("wan21-t2v-1.3b",),
    frames=(9, 5),
    tolerance=1e-5,
)

"""LTX-Video, of which a picture is one frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.parts import t5_tokenizer

__all__ = ["CASE", "write_tiny_ltx"]


def write_tiny_ltx(folder: Path, *, decodes_by_time: bool = False) -> Path:
    """Write an LTX-Video pipeline of random weights (seed 0); the same bits each time."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline

    tokenizer = t5_tokenizer(512)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _networks(len(tokenizer), decodes_by_time)
    schedule: dict[str, Any] = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, **schedule)
    LTXPipeline(tokenizer=tokenizer, scheduler=scheduler, **networks).save_pretrained(folder)
    return folder


def _networks(tokens: int, decodes_by_time: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    text: dict[str, Any] = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False, False, False),
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=4,  # the pipeline asks for sides that 32 divides
        scaling_factor=0.9,
        timestep_conditioning=decodes_by_time,
    )
    vae.latents_mean.copy_(torch.tensor([-0.5, 0.1, 0.3, -0.2]))
    vae.latents_std.copy_(torch.tensor([1.5, 2.0, 0.7, 1.1]))
    return {
        "text_encoder": T5EncoderModel(T5Config(vocab_size=tokens, feed_forward_proj="gated-gelu", **text)),
        "vae": vae,
        "transformer": LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            num_layers=2,
            caption_channels=24,
        ),
    }


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    vae = pipeline.vae
    posterior = vae.encode(pixels if pixels.ndim == 5 else pixels[:, :, None]).latent_dist
    mean = pipeline._normalize_latents(posterior.mean, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    scale = vae.config.scaling_factor / vae.latents_std.view(1, -1, 1, 1, 1)
    return mean, posterior.std * scale


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    vae = pipeline.vae
    own = pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    pixels: Tensor = vae.decode(own).sample
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def velocity(
    pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str], frame_rate: float = 25
) -> Tensor:
    text, mask, _, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
    frames, height, width = latents.shape[2:]
    side = pipeline.vae_spatial_compression_ratio
    tokens = pipeline.transformer(
        hidden_states=pipeline._pack_latents(latents),
        encoder_hidden_states=text,
        timestep=sigma_B * 1000,
        encoder_attention_mask=mask,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(pipeline.vae_temporal_compression_ratio / frame_rate, side, side),
        return_dict=False,
    )[0]
    unpacked: Tensor = pipeline._unpack_latents(tokens, frames, height, width)
    return unpacked


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    frames, rows, columns = latents.shape[2:]
    side = pipeline.vae_spatial_compression_ratio
    tokens = pipeline(
        list(captions),
        height=rows * side,
        width=columns * side,
        num_frames=(frames - 1) * pipeline.vae_temporal_compression_ratio + 1,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=pipeline._pack_latents(latents),
        output_type="latent",
    ).frames
    unpacked: Tensor = pipeline._unpack_latents(tokens, frames, rows, columns)
    return unpacked


CASE = FamilyCase(
    pipeline="LTXPipeline",
    write=write_tiny_ltx,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"ltx-video-2b": "ltx-video-2b"},
    frames=(5, 3),
    tolerance=1e-4,
)

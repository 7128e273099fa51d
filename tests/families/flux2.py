"""What FLUX.2's two pipelines share, in diffusers' own terms: tiny parts, latents, one prediction, painting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["decode", "edit_velocity", "encode", "paint", "tiny_autoencoder", "tiny_transformer", "velocity", "write"]

TEXT_WIDTH = 8
"""Of the tiny language models; the transformers read three layers of them side by side."""


def tiny_autoencoder() -> Any:
    """FLUX.2's autoencoder of one latent for 2 x 2 pixels, its statistics unlike those of a new one."""
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    vae.bn.running_mean.copy_(torch.randn(16) * 0.5)
    vae.bn.running_var.copy_(torch.rand(16) + 0.5)
    return vae


def tiny_transformer(*, takes_guidance: bool) -> Any:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * TEXT_WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=takes_guidance,
    )


def scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    vae, posterior = pipeline.vae, pipeline.vae.encode(pixels).latent_dist
    mean, std = statistics(vae, vae.config.batch_norm_eps)
    return (pipeline._patchify_latents(posterior.mean) - mean) / std, pipeline._patchify_latents(posterior.std) / std


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    mean, std = statistics(pipeline.vae, pipeline.vae.config.batch_norm_eps)
    pixels: Tensor = pipeline.vae.decode(pipeline._unpatchify_latents(latents * std + mean)).sample
    return pixels


def statistics(vae: Any, epsilon: float) -> tuple[Tensor, Tensor]:
    return vae.bn.running_mean.view(1, -1, 1, 1), torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + epsilon)


@cache
def _texts(pipeline: Any, captions: tuple[str, ...]) -> Any:
    return pipeline.encode_prompt(list(captions), device="cpu")


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    tokens, ids = _tokens(pipeline, latents)
    answer = _answer(pipeline, (tokens, ids), sigma_B, _texts(pipeline, tuple(captions)))
    unpacked: Tensor = pipeline._unpack_latents_with_ids(answer, ids)
    return unpacked


def edit_velocity(
    pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str], references: Sequence[Sequence[Tensor]]
) -> Tensor:
    """The references of each row are encoded alone, as a run does; the pipeline shows all rows of a call the same."""
    tokens, ids = _tokens(pipeline, latents)
    each = [
        pipeline.prepare_image_latents([one[None] for one in own], 1, torch.Generator(), "cpu", latents.dtype)
        for own in references
    ]
    shown, shown_ids = (torch.cat(parts) for parts in zip(*each, strict=True))
    pictures = torch.cat([tokens, shown], dim=1), torch.cat([ids, shown_ids], dim=1)
    answer = _answer(pipeline, pictures, sigma_B, _texts(pipeline, tuple(captions)))
    unpacked: Tensor = pipeline._unpack_latents_with_ids(answer[:, : tokens.shape[1]], ids)
    return unpacked


def _tokens(pipeline: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of latents, and their places."""
    count, channels, height, width = latents.shape
    side = pipeline.vae_scale_factor * 2
    tokens, ids = pipeline.prepare_latents(
        count, channels // 4, height * side, width * side, latents.dtype, "cpu", None, latents
    )
    return tokens, ids


def _answer(pipeline: Any, pictures: tuple[Tensor, Tensor], sigma_B: Tensor, texts: tuple[Tensor, Tensor]) -> Tensor:
    """What the transformer makes of tokens of pictures and texts, each with its places."""
    answer: Tensor = pipeline.transformer(
        hidden_states=pictures[0],
        timestep=sigma_B,
        guidance=torch.full([len(sigma_B)], 1.0) if pipeline.transformer.config.guidance_embeds else None,
        encoder_hidden_states=texts[0],
        txt_ids=texts[1],
        img_ids=pictures[1],
        return_dict=False,
    )[0]
    return answer


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    """The latents after the last step: the pipeline's own result of [klein] is no more standardised."""
    kept: dict[str, Tensor] = {}

    def keep(_: Any, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.update(tensors)
        return tensors

    height, width = (side * pipeline.vae_scale_factor * 2 for side in latents.shape[-2:])
    pipeline(
        prompt=list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=latents,
        callback_on_step_end=keep,
        output_type="latent",
    )
    return kept["latents"].transpose(1, 2).unflatten(2, latents.shape[-2:])


def write(folder: Path, pipeline: Any, tokenizer: Any, text_encoder: Any, **options: Any) -> Path:
    """Write a pipeline of random weights; the generator's state decides them."""
    takes_guidance = "Klein" not in pipeline.__name__
    networks = {"vae": tiny_autoencoder(), "transformer": tiny_transformer(takes_guidance=takes_guidance)}
    parts = {**networks, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler()}
    pipeline(**parts, **options).save_pretrained(folder)
    return folder

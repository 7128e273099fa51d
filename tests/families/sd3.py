"""Stable Diffusion 3.5 as medium has it: its first blocks attend twice, and all attention has norms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.families import FamilyCase
from tests.families.parts import clip_text_encoder, clip_tokenizer, t5_text_encoder, t5_tokenizer, tiny_autoencoder

__all__ = ["CASE", "decode", "encode", "paint", "velocity", "write_sd3_file", "write_tiny_sd3"]


def write_tiny_sd3(folder: Path, *, is_first: bool = False, has_t5: bool = True) -> Path:
    """Write a Stable Diffusion 3 pipeline of random weights (seed 0) at 32 pixels; the same bits each time.

    Args:
        folder: the base's.
        is_first: whether it is as 3 medium: no block attends twice, and attention has no norms.
        has_t5: whether its third text encoder is there.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    first, second = clip_tokenizer(folder / "tokenizer"), clip_tokenizer(folder / "tokenizer_2", padding="!")
    tokenizers = {"tokenizer": first, "tokenizer_2": second, "tokenizer_3": t5_tokenizer(512) if has_t5 else None}
    kind: dict[str, Any] = {} if is_first else {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "transformer": SD3Transformer2DModel(
                sample_size=16,
                in_channels=4,
                out_channels=4,
                num_layers=4,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=96,
                caption_projection_dim=32,
                pooled_projection_dim=24 + 40,
                pos_embed_max_size=24,
                **kind,
            ),
            "vae": tiny_autoencoder(
                latent_channels=4,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            "text_encoder": clip_text_encoder(len(first), 32, 24),
            "text_encoder_2": clip_text_encoder(len(second), 48, 40, hidden_act="gelu"),
            "text_encoder_3": t5_text_encoder(len(t5_tokenizer(512)), 96),
        }
    if not has_t5:
        networks["text_encoder_3"] = None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = StableDiffusion3Pipeline(**networks, **tokenizers, scheduler=scheduler)
    pipeline.save_pretrained(folder)
    return folder


_OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    **{
        f"{native}_embedder.mlp.{place}": f"time_text_embed.{own}_embedder.linear_{number}"
        for native, own in (("t", "timestep"), ("y", "text"))
        for number, place in ((1, 0), (2, 2))
    },
}
_SIDES = (("x", "ff", "norm1", "attn.to_", "", "attn.to_out.0", ""),)
_SIDES += (("context", "ff_context", "norm1_context", "attn.add_", "_proj", "attn.to_add_out", "added_"),)


def write_sd3_file(folder: Path, path: Path, stem: str = "model.diffusion_model.") -> Path:
    """Write a Stable Diffusion 3 folder's transformer into one file, under the names that its authors gave it.

    Args:
        folder: from :func:`write_tiny_sd3`.
        path: the file to write.
        stem: what the names begin with.
    """
    own = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    tensors = {"pos_embed": own.pop("pos_embed.pos_embed")}
    last = sum(name.endswith("norm1_context.linear.weight") for name in own) - 1
    for native, layers in _native_layers(own).items():
        for kind in ("weight", "bias"):
            if f"{layers[0]}.{kind}" in own:
                tensors[f"{native}.{kind}"] = torch.cat([own.pop(f"{layer}.{kind}") for layer in layers])
    swapped = {
        "final_layer": "norm_out",
        f"joint_blocks.{last}.context_block": f"transformer_blocks.{last}.norm1_context",
    }
    for native, layer in swapped.items():
        for kind in ("weight", "bias"):
            scale, shift = own.pop(f"{layer}.linear.{kind}").chunk(2)
            tensors[f"{native}.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    assert not own, "each weight has its place"
    save_file({f"{stem}{name}": tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _native_layers(weights: dict[str, Tensor]) -> dict[str, list[str]]:
    """Which of diffusers' layers each native layer consists of, but for those whose halves are swapped."""
    found = {native: [layer] for native, layer in _OUTER.items()}
    blocks = sum(name.endswith("attn.to_q.weight") and ".attn." in name for name in weights)
    for number in range(blocks):
        block = f"transformer_blocks.{number}"
        for side, mlp, norm, projection, end, out, added in _SIDES:
            native = f"joint_blocks.{number}.{side}_block"
            if (side, number) != ("context", blocks - 1):
                found[f"{native}.adaLN_modulation.1"] = [f"{block}.{norm}.linear"]
            found[f"{native}.mlp.fc1"], found[f"{native}.mlp.fc2"] = (
                [f"{block}.{mlp}.net.0.proj"],
                [f"{block}.{mlp}.net.2"],
            )
            found[f"{native}.attn.qkv"] = [f"{block}.{projection}{letter}{end}" for letter in "qkv"]
            found[f"{native}.attn.proj"] = [f"{block}.{out}"]
            for letter in "qk":
                found[f"{native}.attn.ln_{letter}"] = [f"{block}.attn.norm_{added}{letter}"]
        second = f"joint_blocks.{number}.x_block.attn2"
        found[f"{second}.qkv"] = [f"{block}.attn2.to_{letter}" for letter in "qkv"]
        found[f"{second}.proj"] = [f"{block}.attn2.to_out.0"]
        for letter in "qk":
            found[f"{second}.ln_{letter}"] = [f"{block}.attn2.norm_{letter}"]
    return {native: layers for native, layers in found.items() if f"{layers[0]}.weight" in weights}


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    config, posterior = pipeline.vae.config, pipeline.vae.encode(pixels).latent_dist
    return (posterior.mean - config.shift_factor) * config.scaling_factor, posterior.std * config.scaling_factor


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    config = pipeline.vae.config
    pixels: Tensor = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    return pixels


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    each = [pipeline.encode_prompt([one], None, None, do_classifier_free_guidance=False) for one in captions]
    text, _, pooled, _ = (torch.cat(rows) if rows[0] is not None else None for rows in zip(*each, strict=True))
    answer: Tensor = pipeline.transformer(
        hidden_states=latents,
        timestep=1000 * sigma_B,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return answer


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    painted: Tensor = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=latents,
        output_type="latent",
    ).images
    return painted


CASE = FamilyCase(
    pipeline="StableDiffusion3Pipeline",
    write=write_tiny_sd3,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"sd3-medium": "sd3-medium", "sd35-medium": "sd35-medium", "sd35-large": "sd35-large"},
    key_tables=("sd3-medium", "sd35-medium"),
)

"""Chroma 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.flux import decode, encode, packed, unpacked
from tests.families.parts import t5_tokenizer

__all__ = ["CASE"]


def write_tiny_chroma(folder: Path) -> Path:
    """Write a Chroma pipeline of random weights (seed 0), one token for each 4 x 4 pixels; the same bits each time."""
    from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import T5Config, T5EncoderModel

    tokenizer = t5_tokenizer(512)
    text = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "text_encoder": T5EncoderModel(T5Config(vocab_size=len(tokenizer), **text)),
            "vae": AutoencoderKL(
                block_out_channels=(8, 16),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                layers_per_block=1,
                norm_num_groups=4,
                latent_channels=4,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            "transformer": ChromaTransformer2DModel(
                in_channels=16,
                num_layers=2,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=24,
                axes_dims_rope=(4, 6, 6),
                approximator_num_channels=8,
                approximator_hidden_dim=24,
                approximator_layers=2,
            ),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    ChromaPipeline(**networks, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    text, text_ids, mask, *_ = pipeline.encode_prompt(list(captions), device="cpu", do_classifier_free_guidance=False)
    rows, columns = (side // 2 for side in latents.shape[-2:])
    tokens = pipeline.transformer(
        hidden_states=packed(pipeline, latents),
        timestep=sigma_B,
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(len(latents), rows, columns, "cpu", latents.dtype),
        attention_mask=pipeline._prepare_attention_mask(len(latents), rows * columns, latents.dtype, mask),
        return_dict=False,
    )[0]
    return unpacked(pipeline, tokens, latents)


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    tokens = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=packed(pipeline, latents),
        output_type="latent",
    ).images
    return unpacked(pipeline, tokens, latents)


CASE = FamilyCase(
    pipeline="ChromaPipeline",
    write=write_tiny_chroma,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"chroma1": "chroma1"},
    key_tables=("flux1",),
)

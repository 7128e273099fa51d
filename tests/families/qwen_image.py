"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.qwen_parts import decode, encode, tiny_autoencoder, tiny_tokenizer

__all__ = ["CASE", "write_tiny_qwen_image"]


def write_tiny_qwen_image(folder: Path) -> Path:
    """Write a Qwen-Image pipeline of random weights (seed 0), one token for each 8 x 8 pixels."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "text_encoder": tiny_text_encoder(len(tokenizer)),
            "vae": tiny_autoencoder(),
            "transformer": QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=24,
                axes_dims_rope=(4, 6, 6),
            ),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
    QwenImagePipeline(**networks, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


def tiny_text_encoder(vocabulary: int) -> Any:
    """Return a Qwen2.5-VL of two layers, and two of vision."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": vocabulary,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 24,
        "fullatt_block_indexes": [1],
    }
    ids = dict(zip(("vision_start", "vision_end", "image", "video"), range(vocabulary - 4, vocabulary), strict=True))
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **{f"{k}_token_id": v for k, v in ids.items()})
    return Qwen2_5_VLForConditionalGeneration(config)


def packed(pipeline: Any, latents: Tensor) -> Tensor:
    tokens: Tensor = pipeline._pack_latents(latents, *latents.shape)
    return tokens


def unpacked(pipeline: Any, tokens: Tensor, like: Tensor) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in like.shape[-2:])
    latents: Tensor = pipeline._unpack_latents(tokens, height, width, pipeline.vae_scale_factor)
    return latents.squeeze(2)


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    text, mask = pipeline.encode_prompt(list(captions), "cpu", max_sequence_length=512)
    rows, columns = (side // 2 for side in latents.shape[-2:])
    tokens = pipeline.transformer(
        hidden_states=packed(pipeline, latents),
        timestep=sigma_B,
        encoder_hidden_states=text,
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, rows, columns)]] * len(latents),
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
        latents=packed(pipeline, latents),
        output_type="latent",
    ).images
    return unpacked(pipeline, tokens, latents)


CASE = FamilyCase(
    pipeline="QwenImagePipeline",
    write=write_tiny_qwen_image,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"qwen-image": "qwen-image"},
    key_tables=("qwen-image",),
    unused=("transformer_blocks.1.attn.to_add_out",),  # of the last block, whose text goes nowhere
    tolerance=1e-5,
)

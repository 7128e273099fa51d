"""Z-Image, the base: its scheduler has the shift 6."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.chat_tokenizers import qwen_tokenizer
from tests.families.flux import decode, encode
from tests.families.parts import tiny_autoencoder

__all__ = ["CASE", "write_tiny_z_image", "write_z_image_file"]


def write_tiny_z_image(folder: Path, shift: float = 6.0) -> Path:
    """Write a Z-Image pipeline of random weights (seed 0), one token for each 4 x 4 pixels; the same bits each time."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _networks(len(tokenizer))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    ZImagePipeline(**networks, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


def _networks(vocabulary: int) -> dict[str, Any]:
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    text: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 6, 6],
        axes_lens=[1536, 512, 512],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # zeros would hide whether they are used
    return {
        "transformer": transformer,
        "text_encoder": Qwen3Model(Qwen3Config(vocab_size=vocabulary, max_position_embeddings=1024, **text, **heads)),
        "vae": tiny_autoencoder(
            latent_channels=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    }


def write_z_image_file(folder: Path, path: Path, stem: str = "model.diffusion_model.") -> Path:
    """Write a Z-Image folder's transformer into one file, under the names that its authors gave it.

    Args:
        folder: from :func:`write_tiny_z_image`.
        path: the file to write.
        stem: what the names begin with, as ComfyUI has it.
    """
    from safetensors.torch import load_file, save_file

    own = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    tensors: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name.endswith(".attention.to_q.weight"):
            parts = [own[name.replace("to_q", f"to_{letter}")] for letter in "qkv"]
            tensors[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif not name.endswith((".to_k.weight", ".to_v.weight")):
            for theirs, native in _NATIVE.items():
                name = name.replace(theirs, native)
            tensors[name] = tensor
    save_file({f"{stem}{name}": tensor for name, tensor in tensors.items()}, path)
    return path


_NATIVE = {"all_x_embedder.2-1.": "x_embedder.", "all_final_layer.2-1.": "final_layer.", "to_out.0.": "out."}
_NATIVE |= {".norm_q.": ".q_norm.", ".norm_k.": ".k_norm."}


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    texts, _ = pipeline.encode_prompt(list(captions), device="cpu", do_classifier_free_guidance=False)
    timestep_B = sigma_B * 1000
    time_B = (1000 - timestep_B) / 1000
    output = pipeline.transformer(list(latents.unsqueeze(2).unbind(dim=0)), time_B, texts, return_dict=False)[0]
    return -torch.stack([one.float() for one in output], dim=0).squeeze(2)


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    painted: Tensor = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=0.0,  # it guides from 0 on, not from 1
        latents=latents,
        output_type="latent",
    ).images
    return painted


CASE = FamilyCase(
    pipeline="ZImagePipeline",
    write=write_tiny_z_image,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"z-image": "z-image", "z-image-turbo": "z-image"},
    key_tables=("z-image",),
    tolerance=1e-5,  # times are 1 - sigma in float64 here, and by way of 1000 in float32 there
)

"""Lumina 2's own names, which sd-scripts' files have.

Source: diffusers ``loaders/single_file_utils.py``, ``convert_lumina2_to_diffusers``; sd-scripts
``library/lumina_models.py``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, Outputs, native_names, qkv

__all__ = ["lumina2_names"]

_STACKS = ("layers.N", "noise_refiner.N", "context_refiner.N")
_BLOCK = {
    "attn.to_out.0": "attention.out",
    "attn.norm_q": "attention.q_norm",
    "attn.norm_k": "attention.k_norm",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
    "norm1.linear": "adaLN_modulation.1",
    "norm1.norm": "attention_norm1",
    "norm1": "attention_norm1",
    "norm2": "attention_norm2",
}
_NAMES = {
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_caption_embed.caption_embedder.N": "cap_embedder.N",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
    **{f"{stack}.{path}": f"{stack}.{native}" for stack in _STACKS for path, native in _BLOCK.items()},
}
_FUSED = {f"{stack}.attention.qkv": qkv(f"{stack}.attn") for stack in _STACKS}


def lumina2_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return native_names(outputs, _NAMES, _FUSED)

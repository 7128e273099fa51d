"""Wan's own names.

Source: diffusers ``scripts/convert_wan_to_diffusers.py``; musubi-tuner ``networks/lora_wan.py``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, Outputs, native_names

__all__ = ["wan_names"]

_ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "norm_added_k": "norm_k_img",
}
_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.N.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.N": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "blocks.N.norm2": "blocks.N.norm3",
    "blocks.N.ffn.net.0.proj": "blocks.N.ffn.0",
    "blocks.N.ffn.net.2": "blocks.N.ffn.2",
    **{
        f"blocks.N.{attention}.{path}": f"blocks.N.{native}.{own}"
        for attention, native in {"attn1": "self_attn", "attn2": "cross_attn"}.items()
        for path, own in _ATTENTION.items()
    },
    "proj_out": "head.head",
}


def wan_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return native_names(outputs, _NAMES)

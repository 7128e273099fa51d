"""Anima's own names, which are Cosmos-Predict2's.

Source: ComfyUI ``comfy/ldm/cosmos/predict2.py``; diffusers ``loaders/lora_conversion_utils.py``,
``_convert_non_diffusers_anima_lora_to_diffusers``; kohya sd-scripts ``networks/lora_anima.py``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, Outputs, native_names

__all__ = ["anima_names"]

_BLOCK, _NATIVE = "transformer_blocks.N", "blocks.N"
_ATTENTION = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "output_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
_NAMES = {
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "time_embed.norm": "t_embedding_norm",
    **{
        f"{_BLOCK}.{attention}.{path}": f"{_NATIVE}.{native}.{own}"
        for attention, native in {"attn1": "self_attn", "attn2": "cross_attn"}.items()
        for path, own in _ATTENTION.items()
    },
    **{
        f"{_BLOCK}.{norm}.linear_{number}": f"{_NATIVE}.adaln_modulation_{native}.{number}"
        for norm, native in {"norm1": "self_attn", "norm2": "cross_attn", "norm3": "mlp"}.items()
        for number in (1, 2)
    },
    f"{_BLOCK}.ff.net.0.proj": f"{_NATIVE}.mlp.layer1",
    f"{_BLOCK}.ff.net.2": f"{_NATIVE}.mlp.layer2",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}


def anima_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return native_names(outputs, _NAMES)

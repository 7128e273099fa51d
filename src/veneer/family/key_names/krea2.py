"""Krea 2's own names.

Source: diffusers ``loaders/lora_conversion_utils.py``, ``_convert_non_diffusers_krea2_lora_to_diffusers``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, Outputs, native_names

__all__ = ["krea2_names"]

_STACKS = {
    "transformer_blocks.N": "blocks.N",
    "text_fusion.layerwise_blocks.N": "txtfusion.layerwise_blocks.N",
    "text_fusion.refiner_blocks.N": "txtfusion.refiner_blocks.N",
}
_BLOCK = {
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_gate": "attn.gate",
    "attn.to_out.0": "attn.wo",
    "ff.gate": "mlp.gate",
    "ff.up": "mlp.up",
    "ff.down": "mlp.down",
}
_NAMES = {
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "text_fusion.projector": "txtfusion.projector",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    **{f"{stack}.{path}": f"{own}.{native}" for stack, own in _STACKS.items() for path, native in _BLOCK.items()},
    "final_layer.linear": "last.linear",
}


def krea2_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return native_names(outputs, _NAMES)

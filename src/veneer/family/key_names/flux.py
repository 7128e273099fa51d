"""FLUX.1's own names, which kohya's, x-labs' and Black Forest Labs' files have.

Source: ``flux/model.py`` of Black Forest Labs; sd-scripts ``networks/convert_flux_lora.py``; ComfyUI
``comfy/utils.py``, ``flux_to_diffusers``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, NameTable, Outputs, native_names, numbered_parts, qkv

__all__ = ["DOUBLE_FUSED", "FLUX", "flux_names", "linear1_qkv_names", "onetrainer_names", "x_labs_names"]

_SINGLE = "single_transformer_blocks.N"
_DOUBLE = "transformer_blocks.N"

_TOP = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_DOUBLE_BLOCK = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_SINGLE_BLOCK = {
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
_ADDED = tuple(f"{_DOUBLE}.attn.add_{part}_proj" for part in "qkv")
DOUBLE_FUSED = {
    "double_blocks.N.img_attn.qkv": qkv(f"{_DOUBLE}.attn"),
    "double_blocks.N.txt_attn.qkv": _ADDED,
}
"""The layers of FLUX's double blocks that are one in its own code."""
_SINGLE_QKV = qkv(f"{_SINGLE}.attn")


FLUX = NameTable(
    names={
        **_TOP,
        **{f"{_DOUBLE}.{path}": f"double_blocks.N.{native}" for path, native in _DOUBLE_BLOCK.items()},
        **{f"{_SINGLE}.{path}": f"single_blocks.N.{native}" for path, native in _SINGLE_BLOCK.items()},
    },
    fused={**DOUBLE_FUSED, "single_blocks.N.linear1": (*_SINGLE_QKV, f"{_SINGLE}.proj_mlp")},
    swapped=("norm_out.linear",),
)
"""The names of the transformer's layers."""


def flux_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return FLUX.native_names(outputs)


def x_labs_names(outputs: Outputs) -> Names:
    """Return what x-labs' files call the layers that its LoRAs change; ``.processor`` in them says nothing.

    Source: x-flux, ``src/flux/modules/layers.py``; its single blocks' first layer is changed in the rows of q, k and v.
    """
    names = {
        f"{_DOUBLE}.attn.to_out.0": "double_blocks.N.proj_lora1",
        f"{_DOUBLE}.attn.to_add_out": "double_blocks.N.proj_lora2",
        f"{_SINGLE}.proj_out": "single_blocks.N.proj",
    }
    fused = {
        "double_blocks.N.qkv_lora1": qkv(f"{_DOUBLE}.attn"),
        "double_blocks.N.qkv_lora2": _ADDED,
        "single_blocks.N.qkv": _SINGLE_QKV,
    }
    return native_names(outputs, names, fused)


def linear1_qkv_names(outputs: Outputs) -> Names:
    """Return what ComfyUI's files call the rows of q, k and v in the single blocks' first layer."""
    return native_names(outputs, {}, {"single_blocks.N.linear1_qkv": _SINGLE_QKV})


def onetrainer_names(outputs: Outputs) -> Names:
    """Return where OneTrainer's native names differ: parts of a fused layer are numbered.

    Source: OneTrainer, ``modules/util/convert/lora/convert_flux_lora.py``.
    """
    return {**numbered_parts(flux_names(outputs)), "x_embedder": "img_in.proj"}

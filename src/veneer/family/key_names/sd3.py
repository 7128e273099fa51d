"""Stable Diffusion 3's own names: joint blocks of a picture's tokens (``x``) and a text's (``context``).

Source: ComfyUI ``comfy/utils.py``, ``mmdit_to_diffusers``; diffusers ``loaders/single_file_utils.py``,
``convert_sd3_transformer_checkpoint_to_diffusers``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, NameTable, Outputs, qkv

__all__ = ["SD3", "also_swapped", "sd3_names"]

_X, _CONTEXT, _BLOCK = "joint_blocks.N.x_block", "joint_blocks.N.context_block", "transformer_blocks.N"
_NAMES = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    f"{_BLOCK}.norm1.linear": f"{_X}.adaLN_modulation.1",
    f"{_BLOCK}.norm1_context.linear": f"{_CONTEXT}.adaLN_modulation.1",
    f"{_BLOCK}.attn.to_out.0": f"{_X}.attn.proj",
    f"{_BLOCK}.attn.to_add_out": f"{_CONTEXT}.attn.proj",
    f"{_BLOCK}.attn.norm_q": f"{_X}.attn.ln_q",
    f"{_BLOCK}.attn.norm_k": f"{_X}.attn.ln_k",
    f"{_BLOCK}.attn.norm_added_q": f"{_CONTEXT}.attn.ln_q",
    f"{_BLOCK}.attn.norm_added_k": f"{_CONTEXT}.attn.ln_k",
    f"{_BLOCK}.attn2.to_out.0": f"{_X}.attn2.proj",
    f"{_BLOCK}.attn2.norm_q": f"{_X}.attn2.ln_q",
    f"{_BLOCK}.attn2.norm_k": f"{_X}.attn2.ln_k",
    f"{_BLOCK}.ff.net.0.proj": f"{_X}.mlp.fc1",
    f"{_BLOCK}.ff.net.2": f"{_X}.mlp.fc2",
    f"{_BLOCK}.ff_context.net.0.proj": f"{_CONTEXT}.mlp.fc1",
    f"{_BLOCK}.ff_context.net.2": f"{_CONTEXT}.mlp.fc2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_FUSED = {
    f"{_X}.attn.qkv": qkv(f"{_BLOCK}.attn"),
    f"{_X}.attn2.qkv": qkv(f"{_BLOCK}.attn2"),
    f"{_CONTEXT}.attn.qkv": tuple(f"{_BLOCK}.attn.add_{part}_proj" for part in "qkv"),
}


SD3 = NameTable(_NAMES, _FUSED, swapped=("norm_out.linear",))
"""The names of the transformer's layers, but for :func:`also_swapped`."""


def also_swapped(last: int) -> str:
    """Return the path of a layer whose halves are the other way round in the native code.

    The last block makes no more of the text, so that its modulation is a shift and a scale, as the last layer's is.

    Args:
        last: the number of the last block.
    """
    return f"transformer_blocks.{last}.norm1_context.linear"


def sd3_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    blocks = [int(path.split(".")[1]) for path in outputs if path.startswith("transformer_blocks.")]
    return SD3.native_names(outputs, [also_swapped(max(blocks, default=0))])

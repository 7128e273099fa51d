"""FLUX.2's own names: FLUX.1's double blocks, and single blocks that diffusers keeps as they are.

Source: diffusers ``loaders/single_file_utils.py``, ``convert_flux2_transformer_checkpoint_to_diffusers``. Its reader of
LoRAs leaves the halves of ``norm_out.linear`` as they are, its reader of checkpoints swaps them; so must a LoRA.
"""

from __future__ import annotations

from veneer.family.key_names.flux import DOUBLE_FUSED
from veneer.family.key_names.rules import Names, NameTable, Outputs

__all__ = ["FLUX2", "flux2_names"]

_NAMES = {
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "transformer_blocks.N.attn.to_out.0": "double_blocks.N.img_attn.proj",
    "transformer_blocks.N.attn.to_add_out": "double_blocks.N.txt_attn.proj",
    "transformer_blocks.N.attn.norm_q": "double_blocks.N.img_attn.norm.query_norm",
    "transformer_blocks.N.attn.norm_k": "double_blocks.N.img_attn.norm.key_norm",
    "transformer_blocks.N.attn.norm_added_q": "double_blocks.N.txt_attn.norm.query_norm",
    "transformer_blocks.N.attn.norm_added_k": "double_blocks.N.txt_attn.norm.key_norm",
    "transformer_blocks.N.ff.linear_in": "double_blocks.N.img_mlp.0",
    "transformer_blocks.N.ff.linear_out": "double_blocks.N.img_mlp.2",
    "transformer_blocks.N.ff_context.linear_in": "double_blocks.N.txt_mlp.0",
    "transformer_blocks.N.ff_context.linear_out": "double_blocks.N.txt_mlp.2",
    "single_transformer_blocks.N.attn.to_qkv_mlp_proj": "single_blocks.N.linear1",
    "single_transformer_blocks.N.attn.to_out": "single_blocks.N.linear2",
    "single_transformer_blocks.N.attn.norm_q": "single_blocks.N.norm.query_norm",
    "single_transformer_blocks.N.attn.norm_k": "single_blocks.N.norm.key_norm",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}


FLUX2 = NameTable(_NAMES, DOUBLE_FUSED, swapped=("norm_out.linear",))
"""The names of the transformer's layers."""


def flux2_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return FLUX2.native_names(outputs)

"""LTX-Video's own names.

Source: diffusers ``loaders/single_file_utils.py``, ``convert_ltx_transformer_checkpoint_to_diffusers``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, Outputs, native_names

__all__ = ["ltx_video_names"]

_TIME = {
    path: path.replace("time_embed", "adaln_single")
    for path in (
        "time_embed.emb.timestep_embedder.linear_1",
        "time_embed.emb.timestep_embedder.linear_2",
        "time_embed.linear",
    )
}
_NAMES = {
    "proj_in": "patchify_proj",
    **_TIME,
    **{
        f"transformer_blocks.N.{attention}.norm_{letter}": f"transformer_blocks.N.{attention}.{letter}_norm"
        for attention in ("attn1", "attn2")
        for letter in "qk"
    },
}


def ltx_video_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return native_names(outputs, _NAMES)

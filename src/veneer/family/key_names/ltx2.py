"""LTX-2's own names.

Source: diffusers ``loaders/lora_conversion_utils.py``, ``_convert_non_diffusers_ltx2_lora_to_diffusers``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, Outputs, native_names

__all__ = ["ltx2_names"]

_TIMES = {
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
}
_LAYERS = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_NAMES = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    **{f"{path}.{layer}": f"{native}.{layer}" for path, native in _TIMES.items() for layer in _LAYERS},
    **{
        f"transformer_blocks.N.{attention}.norm_{letter}": f"transformer_blocks.N.{attention}.{letter}_norm"
        for attention in _ATTENTIONS
        for letter in "qk"
    },
}


def ltx2_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return native_names(outputs, _NAMES)

"""Z-Image's own names; musubi's files have diffusers' path in underscores instead.

Source: ComfyUI ``comfy/utils.py``, ``z_image_to_diffusers``; musubi-tuner ``convert_z_image_lora_to_comfy.py``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, Outputs, native_names, qkv

__all__ = ["z_image_names"]

_STACKS = ("layers.N", "noise_refiner.N", "context_refiner.N")
_ATTENTION = {"to_out.0": "out", "norm_q": "q_norm", "norm_k": "k_norm"}
_NAMES = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.N": "final_layer.adaLN_modulation.N",
    **{
        f"{stack}.attention.{path}": f"{stack}.attention.{native}"
        for stack in _STACKS
        for path, native in _ATTENTION.items()
    },
}
_FUSED = {f"{stack}.attention.qkv": qkv(f"{stack}.attention") for stack in _STACKS}


def z_image_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return native_names(outputs, _NAMES, _FUSED)

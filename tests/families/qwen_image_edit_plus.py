"""Qwen-Image-Edit-2511: several references, whose tokens have a time of their own."""

from __future__ import annotations

from functools import partial

from tests.families import Edits, FamilyCase
from tests.families.qwen_image_edit import edit_velocity, open_pipeline, velocity, write_tiny_edit
from tests.families.qwen_parts import decode, encode

__all__ = ["CASE"]

CASE = FamilyCase(
    pipeline="QwenImageEditPlusPipeline",
    write=partial(write_tiny_edit, pipeline="QwenImageEditPlusPipeline", zero_cond_t=True),
    open=open_pipeline,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=None,  # it needs a reference
    published={"qwen-image-edit-2511": "qwen-image"},
    key_tables=("qwen-image",),
    unused=("transformer_blocks.1.attn.to_add_out",),
    edits=Edits((1, 2), edit_velocity),
    tolerance=1e-5,
)

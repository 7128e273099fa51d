"""Qwen-Image-Edit, over pipelines that paint areas of a tiny base's size."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from torch import Tensor

from tests.families import Edits, FamilyCase
from tests.families.qwen_image import packed, unpacked, write_tiny_qwen_image
from tests.families.qwen_parts import decode, encode
from veneer.family.qwen_processor import QwenProcessor, load_image_processor

__all__ = ["CASE", "DIMENSIONS", "edit_velocity", "open_pipeline", "velocity", "write_tiny_edit"]

_TINY = (32 / 1024) ** 2
"""The area that a tiny base paints, as a share of 1024 x 1024 pixels, which both pipelines have fixed in their code."""


def tiny_dimensions(area: int, ratio: float) -> tuple[int, int]:
    """As the pipelines' own ``calculate_dimensions``, of a smaller area, and no side of nothing."""
    width = math.sqrt(area * _TINY * ratio)
    return max(32, round(width / 32) * 32), max(32, round(width / ratio / 32) * 32)


DIMENSIONS = (pipeline_qwenimage_edit.calculate_dimensions, pipeline_qwenimage_edit_plus.calculate_dimensions)
"""Both pipelines' own."""
pipeline_qwenimage_edit.calculate_dimensions = lambda area, ratio: (*tiny_dimensions(area, ratio), None)
pipeline_qwenimage_edit_plus.calculate_dimensions = tiny_dimensions


def write_tiny_edit(folder: Path, pipeline: str = "QwenImageEditPipeline", **options: Any) -> Path:
    """Write Qwen-Image's tiny base with a processor of pictures.

    Args:
        folder: to write.
        pipeline: its class.
        options: of the transformer, beside Qwen-Image's.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    write_tiny_qwen_image(folder)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index |= {"_class_name": pipeline, "processor": ["transformers", "Qwen2VLProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    Qwen2VLImageProcessorPil().save_pretrained(folder / "processor")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), **options}), "utf-8")
    return folder


def open_pipeline(folder: Path, kind: Any) -> Any:
    """Open diffusers' pipeline; transformers' processor cannot be made without torchvision, so it gets another."""
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    processor = QwenProcessor(tokenizer, load_image_processor(folder / "processor"))
    index = folder / "model_index.json"
    values = json.loads(index.read_text("utf-8"))
    try:  # without the entry diffusers does not look for the class
        index.write_text(json.dumps({**values, "processor": [None, None]}), "utf-8")
        pipeline = kind.from_pretrained(folder, processor=None)
    finally:
        index.write_text(json.dumps(values), "utf-8")
    pipeline.register_modules(processor=processor)
    return pipeline


def encode_rows(pipeline: Any, captions: Sequence[str], images: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Encode each caption beside its pictures, as the pipeline does one at a time, and fill up the shorter ones."""
    rows = [pipeline.encode_prompt([text], own, "cpu")[0][0] for text, own in zip(captions, images, strict=True)]
    text = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True).bool()
    return text, mask


def answer(
    pipeline: Any, latents: Tensor, sigma_B: Tensor, text: tuple[Tensor, Tensor], references: Sequence[Tensor]
) -> Tensor:
    """The transformer's prediction as the pipelines ask for it; references are latents (B, C, h, w)."""
    tokens = [packed(pipeline, one) for one in (latents, *references)]
    shapes = [(1, one.shape[-2] // 2, one.shape[-1] // 2) for one in (latents, *references)]
    found = pipeline.transformer(
        hidden_states=torch.cat(tokens, dim=1),
        timestep=sigma_B,
        encoder_hidden_states=text[0],
        encoder_hidden_states_mask=text[1],
        img_shapes=[shapes] * len(latents),
        return_dict=False,
    )[0]
    return unpacked(pipeline, found[:, : tokens[0].shape[1]], latents)


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    return answer(pipeline, latents, sigma_B, encode_rows(pipeline, captions, [None] * len(captions)), ())


def edit_velocity(
    pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str], references: Sequence[Sequence[Tensor]]
) -> Tensor:
    pictures = [[seen(pipeline, one) for one in own] for own in references]
    images = (
        pictures
        if isinstance(pipeline, pipeline_qwenimage_edit_plus.QwenImageEditPlusPipeline)
        else [own[0] for own in pictures]
    )
    encoded = [
        torch.cat([pipeline._encode_vae_image(own[place][None, :, None], torch.Generator()) for own in references])
        for place in range(len(references[0]))
    ]
    return answer(
        pipeline, latents, sigma_B, encode_rows(pipeline, captions, images), [one.squeeze(2) for one in encoded]
    )


def seen(pipeline: Any, pixels: Tensor) -> Image.Image:
    """A reference as the text encoder is given it: 32 x 32 pixels of the tiny pipelines."""
    picture = pipeline.image_processor.postprocess(pixels[None], output_type="pil")[0]
    resized: Image.Image = pipeline.image_processor.resize(picture, 32, 32)
    return resized


CASE = FamilyCase(
    pipeline="QwenImageEditPipeline",
    write=write_tiny_edit,
    open=open_pipeline,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=None,  # it needs a reference
    published={"qwen-image-edit": "qwen-image"},
    key_tables=("qwen-image",),
    unused=("transformer_blocks.1.attn.to_add_out",),
    edits=Edits((1,), edit_velocity),
    tolerance=1e-5,
)

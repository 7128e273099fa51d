"""Qwen2-VL's processor of texts and pictures, out of its tokenizer and its image processor.

transformers has one, ``Qwen2VLProcessor``, which also takes clips and cannot be made without torchvision for that
reason. This one takes no clips and needs no torchvision; diffusers' pipelines take it in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["QwenProcessor", "load_image_processor"]

_PICTURE = "<|image_pad|>"
"""The token that stands for a picture in a text, in whose place come as many as the picture has."""


class QwenProcessor:
    """Makes of texts and pictures what a Qwen2-VL or Qwen2.5-VL takes.

    Args:
        tokenizer: of texts.
        image_processor: cuts pictures into patches.
    """

    def __init__(self, tokenizer: Any, image_processor: Any) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor

    def __call__(
        self,
        text: Sequence[str],
        images: Image.Image | Sequence[Image.Image] | None = None,
        padding: bool = False,
        return_tensors: str | None = None,
    ) -> Any:
        """Return ``input_ids`` and ``attention_mask`` of texts, ``pixel_values`` and ``image_grid_thw`` of pictures.

        Args:
            text: each has a token for each of its pictures, in order.
            images: of all texts, one after the other; none: those tokens are read as they are.
            padding: whether the shorter texts are filled up.
            return_tensors: ``pt`` for tensors.
        """
        from transformers import BatchFeature

        seen: dict[str, Any] = {}
        if images is not None:
            pictures = [images] if isinstance(images, Image.Image) else list(images)
            seen = dict(self.image_processor(images=pictures, return_tensors=return_tensors))
            text = self._with_places(text, seen["image_grid_thw"])
        tokens = self.tokenizer(list(text), padding=padding, return_tensors=return_tensors)
        return BatchFeature({**tokens, **seen})

    def _with_places(self, texts: Sequence[str], grids: Any) -> list[str]:
        """Return texts with as many tokens for each picture as it has patches after merging."""
        counts = [int(grid.prod()) // self.image_processor.merge_size**2 for grid in grids]
        filled = []
        for text in texts:
            first, *rest = text.split(_PICTURE)
            filled.append(first + "".join(_PICTURE * counts.pop(0) + part for part in rest))
        return filled


def load_image_processor(folder: Path) -> Any:
    """Load the image processor of a folder with a processor's files, the one that needs no torchvision."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil.from_pretrained(str(folder))

"""Qwen-Image-Edit (Qwen 2025), 2509 and 2511: Qwen-Image that is shown pictures, to which it applies an instruction.

A reference is shown twice: to the text encoder, which reads the instruction beside it, and to the transformer, as
latents behind the noisy ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from veneer.family.abstract import AbstractTokenizer
from veneer.family.libraries import one_line_errors
from veneer.family.offload import Loader
from veneer.family.pipeline_folder import PipelineFolder
from veneer.family.protocol import Conditioning
from veneer.family.qwen_image import QwenImage
from veneer.family.qwen_processor import QwenProcessor, load_image_processor
from veneer.weights.metadata import BaseLabels

__all__ = ["QwenImageEdit", "QwenImageEditPlus"]

_PREFIX = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n"
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_DROPPED = 64  # tokens of the prefix, whose states the transformer does not see
_CELL = 28  # pixels that a token of a picture is wide in the text encoder


class QwenImageEdit(QwenImage):
    """A Qwen-Image-Edit base; its conditioning is that of Qwen-Image, with one reference.

    The text encoder sees the reference at an area of its own, whatever it is trained at, as in the pipeline. As there,
    all tokens of a picture are in one row for it: diffusers does not tell transformers 5 which tokens are a picture's.
    """

    name = "qwen_image_edit"
    text_tokens = 1024
    reference_counts = range(1, 2)
    usual_references = 1
    text_reads_references = True
    left_out = ("processor",)
    seen_area: int = 1024 * 1024
    """Pixels of a reference as the text encoder sees it."""

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        from diffusers.image_processor import VaeImageProcessor

        super().__init__(parts, load, options)
        self._pictures = VaeImageProcessor(vae_scale_factor=self.multiple)

    @property
    def labels(self) -> BaseLabels:
        """Those of Qwen-Image, whose layers it has, under a name of its own."""
        tags = ("image-to-image", "qwen-image-edit")
        return replace(super().labels, architecture="Qwen-Image-Edit", version="qwen_image_edit", tags=tags)

    @property
    def settings(self) -> dict[str, str]:
        """As for Qwen-Image, and how the text encoder sees pictures."""
        processor = self._parts.get("processor")
        seen = {} if processor is None else processor.image_processor.to_dict()
        sizes = {
            f"processor.{key}": json.dumps(seen[key]) for key in ("size", "image_mean", "image_std") if key in seen
        }
        return {**super().settings, **sizes}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into what the denoiser is told where there are no references, which no pipeline paints from."""
        return self.encode_instructions(captions, [()] * len(captions))

    def encode_instructions(self, captions: Sequence[str], references: Sequence[Sequence[Tensor]]) -> Conditioning:
        """Turn captions and their references into ``text`` and ``mask``, each by itself."""
        self._offloader.restore("text_encoder")
        pairs = zip(captions, references, strict=True)
        return Conditioning.cat([self._encode_instruction(caption, own) for caption, own in pairs])

    def _encode_instruction(self, caption: str, references: Sequence[Tensor]) -> Conditioning:
        text_encoder = self._text_encoders["text_encoder"]
        inputs = {name: tensor.to(text_encoder.device) for name, tensor in self._inputs(caption, references).items()}
        states = text_encoder(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states
        text_1TD = states[-1][:, _DROPPED:]
        return Conditioning({"text": text_1TD, "mask": torch.ones_like(text_1TD[..., 0], dtype=torch.bool)})

    def _inputs(self, caption: str, references: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what the text encoder is given; in a plan, where pictures have no pixels, texts as long alone."""
        sentence, tokenizer = self._sentence(self._read(caption), len(references)), self._tokenizers["text_encoder"]
        processor = self._parts.get("processor")
        if processor is None or not references or isinstance(references[0], FakeTensor):
            ids = list(tokenizer([sentence]).input_ids[0])
            seen = round(isqrt(self.seen_area) / _CELL) ** 2 if references else 0
            return {"input_ids": torch.tensor([ids + [0] * (seen * len(references))])}
        pictures = [self._seen(pixels_CHW) for pixels_CHW in references]
        inputs = processor(text=[sentence], images=pictures, return_tensors="pt")
        return {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}

    def _read(self, caption: str) -> str:
        """Return the part of a caption that is read: the pipeline has no end, and a caption of this length no sense."""
        cut = self.unread([caption]) if not isinstance(self._tokenizers["text_encoder"], AbstractTokenizer) else {}
        return cut[caption].read if caption in cut and cut[caption].is_cut else caption

    def _sentence(self, caption: str, references: int) -> str:
        """Return what the text encoder is given in place of a caption."""
        return _PREFIX + _PICTURE + caption + _SUFFIX

    def _seen(self, pixels_CHW: Tensor) -> Image.Image:
        """Return a reference as the pipeline gives it to the text encoder."""
        picture: Image.Image = self._pictures.postprocess(pixels_CHW[None].float().cpu(), output_type="pil")[0]
        width, height = self._dimensions(self.seen_area, picture.width / picture.height)[:2]
        seen: Image.Image = self._pictures.resize(picture, height, width)
        return seen

    def _dimensions(self, area: int, ratio: float) -> Sequence[Any]:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

        found: Sequence[Any] = pipeline_qwenimage_edit.calculate_dimensions(area, ratio)
        return found

    def pipeline_references(self, references: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the pipeline's arguments for a reference, which it resizes to an area of 1024 x 1024 pixels."""
        (reference,) = references
        return {"image": reference}

    @classmethod
    def _other_parts(cls, folder: PipelineFolder) -> dict[str, Any]:
        place = folder.path / "processor"
        with one_line_errors(str(place), "its files are no Qwen2-VL processor's, or damaged"):
            image_processor = load_image_processor(place)
        tokenizer = folder.check_tokenizer("tokenizer").from_pretrained(str(folder.path / "tokenizer"))
        return {"processor": QwenProcessor(tokenizer, image_processor)}

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        """Return the names of all parts that are loaded."""
        return *super().part_names(), "processor"

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_DROPPED + cls.text_tokens, marks=_DROPPED)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import QwenImageEditPipeline

        return QwenImageEditPipeline


class QwenImageEditPlus(QwenImageEdit):
    """A Qwen-Image-Edit-2509 or -2511 base, of one to three references, which the text encoder sees smaller.

    2511 gives the tokens of references a time of their own, 0: ``zero_cond_t`` of its transformer.
    """

    name = "qwen_image_edit_plus"
    reference_counts = range(1, 4)
    seen_area = 384 * 384

    @property
    def labels(self) -> BaseLabels:
        """Those of Qwen-Image-Edit under the names that musubi-tuner has for these two."""
        is_2511 = bool(self._denoiser.config.zero_cond_t)
        return replace(super().labels, architecture=f"Qwen-Image-Edit-{'2511' if is_2511 else 'Plus'}")

    def _sentence(self, caption: str, references: int) -> str:
        pictures = "".join(f"Picture {number + 1}: {_PICTURE}" for number in range(references))
        return _PREFIX + pictures + caption + _SUFFIX

    def _dimensions(self, area: int, ratio: float) -> Sequence[Any]:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

        found: Sequence[Any] = pipeline_qwenimage_edit_plus.calculate_dimensions(area, ratio)
        return found

    def pipeline_references(self, references: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the pipeline's arguments for references, which it resizes to an area of 1024 x 1024 pixels each."""
        return {"image": list(references)}

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import QwenImageEditPlusPipeline

        return QwenImageEditPlusPipeline

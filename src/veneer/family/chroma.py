"""Chroma 1 (Lodestone Rock 2025): FLUX.1 [schnell] with one small network for all its modulations, told by T5 alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from veneer.config.objective_config import TimestepShift
from veneer.family.abstract import AbstractTokenizer
from veneer.family.flux import Flux
from veneer.family.key_names.flux import flux_names, linear1_qkv_names, onetrainer_names
from veneer.family.key_names.network import names_in
from veneer.family.packing import PATCH, unpack
from veneer.family.protocol import Conditioning
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["Chroma"]

_TEXT_LENGTH = 512  # tokens that the pipeline's call reads
_CHECKPOINTING = "_gradient_checkpointing_func"
_SINGLE_ARGUMENTS = 3  # that the transformer gives to a recomputed single block: all but the mask
_NAMES = {"kohya": flux_names, "onetrainer": onetrainer_names, "linear1_qkv": linear1_qkv_names}
"""What files call the transformer's layers, by who does."""


class Chroma(Flux):
    """A Chroma base; its conditioning has two tensors.

    ``text`` (B, 512, D): T5's last hidden states, those of padding too, though T5 itself does not look at it.
    ``mask`` (B, 512): 1 for a caption's tokens and for the first one behind them, 0 for all other padding.

    diffusers' pipeline gives its transformer the mask as numbers, which attention adds to its scores: padding is seen
    less by a factor of e, and not kept out (0.42.1). Training does the same, since the pipeline paints so.
    """

    name = "chroma"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = _TEXT_LENGTH - 1  # the last one marks the end
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})
    guided_batch = False  # by two passes

    @property
    def default_shift(self) -> TimestepShift:
        """None, whatever the scheduler paints with: the base's authors and kohya's scripts train without one."""
        return 1.0

    @property
    def labels(self) -> BaseLabels:
        """Those that kohya's scripts write, and Civitai's."""
        return BaseLabels(
            "chroma",
            "flux1",
            implementation="https://huggingface.co/lodestones/Chroma",
            module="networks.lora_flux",
            civitai="Chroma",
            tags=("chroma",),
        )

    @property
    def key_names(self) -> KeyNames:
        """FLUX.1's names, of the layers that are left of it."""
        return {kind: names_in(self.denoiser, self._denoiser, own) for kind, own in _NAMES.items()}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``."""
        self._offloader.restore("text_encoder")
        tokenizer, text_encoder = self._tokenizers["text_encoder"], self._text_encoders["text_encoder"]
        options = {"padding": "max_length", "max_length": _TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
        read = tokenizer(list(captions), **options)
        is_token_BT = read.attention_mask.to(text_encoder.device)
        text_BTD = text_encoder(read.input_ids.to(text_encoder.device), attention_mask=is_token_BT)[0]
        places_T = torch.arange(_TEXT_LENGTH, device=is_token_BT.device)
        mask_BT = places_T <= is_token_BT.sum(dim=1, keepdim=True)
        return Conditioning({"text": text_BTD, "mask": mask_BT.to(text_BTD.dtype)})

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W)."""
        text_BTD, dtype = conditioning["text"], self._denoiser.dtype
        picture_BLC, places_L3 = self._picture_tokens(noisy, conditioning)
        seen_BL = picture_BLC.new_ones(picture_BLC.shape[:2], dtype=dtype)
        mask_BL = torch.cat([conditioning["mask"].to(dtype), seen_BL], dim=1)
        with _masked_checkpoints(self._denoiser, mask_BL):
            output = self._denoiser(
                hidden_states=picture_BLC.to(dtype),
                timestep=t_B.to(dtype),
                encoder_hidden_states=text_BTD.to(dtype),
                txt_ids=text_BTD.new_zeros(text_BTD.shape[1], 3),
                img_ids=places_L3,
                attention_mask=mask_BL,
            )
        return unpack(output.sample, noisy.shape[-2] // PATCH)

    def _caption_tokenizers(self) -> Sequence[Any]:
        return [self._tokenizers["text_encoder"]]

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_TEXT_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import ChromaPipeline

        return ChromaPipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, ChromaTransformer2DModel
        from transformers import T5EncoderModel

        return {"transformer": ChromaTransformer2DModel, "vae": AutoencoderKL, "text_encoder": T5EncoderModel}


@contextmanager
def _masked_checkpoints(transformer: Any, mask_BL: Tensor) -> Iterator[None]:
    """Give the mask to single blocks that are recomputed: diffusers 0.42.1 leaves it out there, and there alone."""
    checkpoint = vars(transformer).get(_CHECKPOINTING)
    if checkpoint is None:
        yield
        return

    def checkpoint_masked(block: Any, *arguments: Any) -> Any:
        mask = (mask_BL,) if len(arguments) == _SINGLE_ARGUMENTS else ()
        return checkpoint(block, *arguments, *mask)

    setattr(transformer, _CHECKPOINTING, checkpoint_masked)
    try:
        yield
    finally:
        setattr(transformer, _CHECKPOINTING, checkpoint)

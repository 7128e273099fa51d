"""Lumina-Image 2.0 (Qin et al. 2025, arXiv 2503.21758): one transformer over a picture and a text that Gemma 2 read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from veneer.family.abstract import AbstractTokenizer
from veneer.family.key_names.lumina2 import lumina2_names
from veneer.family.key_names.network import dotted_in_comfy, names_in
from veneer.family.offload import Loader
from veneer.family.protocol import Conditioning
from veneer.family.shifted_latents import ShiftedLatents
from veneer.family.text_mask import without_padding
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["Lumina2"]

_LENGTH = 256  # tokens that the pipeline reads of a caption behind its system prompt (``encode_prompt``'s default)
_MARKS = 30
"""About as many of them as the system prompt takes, where there is no tokenizer that could count them."""
_START = " <Prompt Start> "
_WORD = "x"


class Lumina2(ShiftedLatents):
    """A Lumina 2 base; its conditioning is ``text`` (B, T, D) and ``mask`` (B, T), true where a token is.

    Gemma 2 reads the pipeline's system prompt before each caption. Of its states those before the last layer are taken,
    the system prompt's too. An empty caption is read without a system prompt: so the base was trained without a text,
    and that is what the pipeline guides away from.
    """

    name = "lumina2"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = _LENGTH
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})
    default_shift = "resolution"  # as sd-scripts trains; its scheduler paints with 6
    guided_batch = False  # it guides by two passes

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self.text_tokens = _LENGTH - self._tokens_before()
        self._denoiser.rope_embedder.register_forward_pre_hook(_take_texts_to_be_whole)

    def _tokens_before(self) -> int:
        """Return how many tokens the system prompt is, with the mark before it."""
        tokenizer = self._tokenizers["text_encoder"]
        if isinstance(tokenizer, AbstractTokenizer):
            return tokenizer.num_special_tokens_to_add()
        prompt: str = self._pipeline_class()(**self._parts).system_prompt
        alone = tokenizer(_WORD, add_special_tokens=False).input_ids
        return len(tokenizer(prompt + _START + _WORD).input_ids) - len(alone)

    @property
    def labels(self) -> BaseLabels:
        """Those that sd-scripts writes, and Civitai's."""
        return BaseLabels(
            "lumina-2",
            "lumina2",
            implementation="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
            module="networks.lora_lumina",
            civitai="Lumina",
            tags=("lumina-image-2",),
        )

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, the only ones that ComfyUI knows."""
        network = (self.denoiser, self._denoiser, lumina2_names)
        return {"kohya": names_in(*network), "comfy": dotted_in_comfy(*network)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``mask``, by the pipeline's own function."""
        device, is_one_empty = self._text_encoders["text_encoder"].device, "" in captions
        text_BTD, mask_BT, bare_BTD, bare_mask_BT = self._pipeline_for_text().encode_prompt(
            list(captions), do_classifier_free_guidance=is_one_empty, device=device
        )
        if is_one_empty:
            is_text_B1 = torch.tensor([[bool(caption)] for caption in captions], device=device)
            text_BTD = torch.where(is_text_B1[:, None], text_BTD, bare_BTD)
            mask_BT = torch.where(is_text_B1, mask_BT, bare_mask_BT)
        text_BTD, _ = without_padding(Conditioning({"text": text_BTD, "mask": mask_BT}))
        return Conditioning({"text": text_BTD, "mask": mask_BT[:, : text_BTD.shape[1]].bool()})

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W): the transformer answers x - eps, at the time 1 - sigma."""
        dtype = self._denoiser.dtype
        text_BTD, mask_BT = without_padding(conditioning)
        output = self._denoiser(
            hidden_states=noisy.contiguous().to(dtype),
            timestep=(1 - t_B).float(),
            encoder_hidden_states=text_BTD.to(dtype),
            encoder_attention_mask=torch.ones_like(text_BTD[..., 0]).bool() if mask_BT is None else mask_BT,
        )
        return -cast(Tensor, output.sample)

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_LENGTH, marks=_MARKS)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import Lumina2Pipeline

        return Lumina2Pipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, Lumina2Transformer2DModel
        from transformers import Gemma2Model

        return {"transformer": Lumina2Transformer2DModel, "vae": AutoencoderKL, "text_encoder": Gemma2Model}


class _WholeTexts:
    """A mask that masks nothing, as far as the transformer asks it for lengths.

    Args:
        shape: texts and tokens.
    """

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def sum(self, dim: int) -> _WholeTexts:
        """Return itself, for :meth:`tolist`."""
        return self

    def tolist(self) -> list[int]:
        """Return the length of each text."""
        return [self.shape[1]] * self.shape[0]


def _take_texts_to_be_whole(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Give the places of tokens lengths in a plan, whose masks have no numbers."""
    pictures, mask_BT = arguments
    return (pictures, _WholeTexts(mask_BT.shape)) if isinstance(mask_BT, FakeTensor) else None

"""Anima (CircleStone Labs 2026): the transformer of Cosmos-Predict2, told texts by Qwen3 through a conditioner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from veneer.family.abstract import AbstractTokenizer
from veneer.family.key_names.anima import anima_names
from veneer.family.key_names.network import dotted_in_comfy, names_in
from veneer.family.libraries import silence_libraries
from veneer.family.protocol import Conditioning
from veneer.family.qwen_latents import QwenLatents
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["Anima", "complete_transformer"]

_LENGTH = 512  # tokens that the pipeline reads of a text, by either tokenizer
_CONDITIONER = "text_conditioner"


class Anima(QwenLatents):
    """An Anima base; its conditioning is ``text`` (B, L, D), a vector for each of T5's tokens of a caption.

    The conditioner has a vector for each token of T5's, and attention over what Qwen3 makes of the same caption. So its
    tokenizer is T5's, whose text encoder is not there. Its vectors get zeros behind them, up to 512, when the
    transformer reads them: that sees no mask, so how many zeros there are matters.
    """

    name = "anima"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer", _CONDITIONER: "t5_tokenizer"})
    text_tokens = _LENGTH
    takes_packed = False
    encodes_prompts_apart = False  # blocks of a modular pipeline do it
    default_shift = 1.0  # as its authors and sd-scripts train; its scheduler paints with 3
    default_targets = MappingProxyType({"transformer": ("to_q", "to_k", "to_v", "to_out.0")})

    @property
    def longest_side(self) -> int:
        """Pixels of as many places as the transformer has a rotation for."""
        return int(max(self._denoiser.rope.max_size)) * self.multiple

    @property
    def settings(self) -> dict[str, str]:
        """As of all pipelines, and what the conditioner's weights do not tell."""
        heads = self._text_encoders[_CONDITIONER].config.num_attention_heads
        return {**super().settings, f"{_CONDITIONER}.num_attention_heads": str(heads)}

    @property
    def labels(self) -> BaseLabels:
        """Those that sd-scripts writes, and Civitai's."""
        return BaseLabels(
            "anima-preview",
            "anima",
            implementation="https://huggingface.co/circlestone-labs/Anima",
            module="networks.lora_anima",
            civitai="Anima",
            tags=("anima",),
            refuses_alpha=True,
            is_modular=True,
        )

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, which ComfyUI's and sd-scripts' files have."""
        network = (self.denoiser, self._denoiser, anima_names)
        return {"kohya": names_in(*network), "comfy": dotted_in_comfy(*network)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text``, each by itself, so that none is padded before the transformer."""
        for name in self._text_encoders:
            self._offloader.restore(name)
        return Conditioning.cat([Conditioning({"text": self._encode(caption)}) for caption in captions])

    def _encode(self, caption: str) -> Tensor:
        """Return the vectors (1, L, D) of T5's tokens of a caption."""
        text_encoder, conditioner = self._text_encoders["text_encoder"], self._text_encoders[_CONDITIONER]
        ids_1S, target_1L = (self._tokens_of(name, caption).to(text_encoder.device) for name in self._text_encoders)
        mask_1S = torch.ones_like(ids_1S)
        if ids_1S.shape[1] == 0:  # an empty text has no mark, and the conditioner then sees nothing of it
            ids_1S = mask_1S = ids_1S.new_zeros(1, 1)
        states_1SD = text_encoder(input_ids=ids_1S, attention_mask=mask_1S).last_hidden_state
        text_1LD = conditioner(
            source_hidden_states=(states_1SD * mask_1S.to(states_1SD)[..., None]).to(conditioner.dtype),
            target_input_ids=target_1L,
            target_attention_mask=torch.ones_like(target_1L),
            source_attention_mask=mask_1S,
        )
        return cast(Tensor, text_1LD[:, : target_1L.shape[1]])

    def _tokens_of(self, name: str, caption: str) -> Tensor:
        options = {"max_length": _LENGTH, "truncation": True, "return_tensors": "pt"}
        return cast(Tensor, self._tokenizers[name]([caption], **options).input_ids.long())

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W)."""
        dtype, text_BLD = self._denoiser.dtype, conditioning["text"].to(noisy.device)
        height, width = (side * self._pixels_a_latent for side in noisy.shape[-2:])
        complete_transformer()
        output = self._denoiser(
            hidden_states=noisy[:, :, None].to(dtype),
            timestep=t_B.to(dtype),
            encoder_hidden_states=torch.nn.functional.pad(text_BLD, (0, 0, 0, _LENGTH - text_BLD.shape[1])).to(dtype),
            padding_mask=noisy.new_zeros(1, 1, height, width, dtype=dtype),
        )
        return cast(Tensor, output.sample[:, :, 0])

    def _text_config(self, name: str) -> Any:
        """Return as a language model's the number of tokens that the conditioner has vectors for."""
        if name == _CONDITIONER:
            return SimpleNamespace(vocab_size=self._text_encoders[name].config.target_vocab_size)
        return super()._text_config(name)

    def _text_length(self, tokenizer: Any) -> int:
        """Return the tokens of a text that are kept: T5's end is one of those that are read."""
        return _LENGTH - int(tokenizer.num_special_tokens_to_add())

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_LENGTH, marks=0 if hasattr(text_encoder.config, "get_text_config") else 1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        return _pipeline_class()

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel
        from transformers import Qwen3Model

        return {
            "transformer": CosmosTransformer3DModel,
            "vae": AutoencoderKLQwenImage,
            "text_encoder": Qwen3Model,
            _CONDITIONER: AnimaTextConditioner,
        }


@cache
def _pipeline_class() -> Any:
    """Return diffusers' modular pipeline as a class that is made of its parts and told a scale of guidance."""
    from diffusers import AnimaModularPipeline, ClassifierFreeGuidance

    class AnimaPipeline(AnimaModularPipeline):  # type: ignore[misc]
        def __init__(self, **parts: Any) -> None:
            with silence_libraries():
                super().__init__()
                self.update_components(**parts)

        def __call__(self, state: Any = None, guidance_scale: float | None = None, **inputs: Any) -> Any:
            complete_transformer()
            if guidance_scale is not None:
                self.update_components(guider=ClassifierFreeGuidance(guidance_scale=guidance_scale))
            return super().__call__(state, **inputs)

        def set_progress_bar_config(self, **options: Any) -> None:
            for block in _blocks_within(self._blocks):  # ``blocks`` is a copy
                if hasattr(block, "set_progress_bar_config"):
                    block.set_progress_bar_config(**options)

    return AnimaPipeline


def _blocks_within(block: Any) -> Iterator[Any]:
    """Yield a pipeline's block and all that it consists of; diffusers sets the bars of the first level alone."""
    yield block
    for inner in getattr(block, "sub_blocks", {}).values():
        yield from _blocks_within(inner)


def complete_transformer() -> None:
    """Give diffusers' transformer the one function that it takes of torchvision, if that is not installed.

    It resizes the mask of padding to the latents' size, taking the nearest pixel.
    """
    from diffusers.models.transformers import transformer_cosmos

    if not hasattr(transformer_cosmos, "transforms"):
        functional = SimpleNamespace(resize=_resize_to_nearest)
        modes = SimpleNamespace(NEAREST="nearest")
        transformer_cosmos.transforms = SimpleNamespace(functional=functional, InterpolationMode=modes)


def _resize_to_nearest(image_BCHW: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    return torch.nn.functional.interpolate(image_BCHW, size=list(size), mode=interpolation)

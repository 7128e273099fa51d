"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): a transformer over patches of 2 x 2 latents and three texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor

from veneer.config.objective_config import Density
from veneer.data.transform import Geometry
from veneer.family.abstract import AbstractTokenizer
from veneer.family.key_names.network import names_in
from veneer.family.key_names.sd3 import sd3_names
from veneer.family.libraries import silence_libraries
from veneer.family.offload import Loader
from veneer.family.positions import check_in_grid
from veneer.family.protocol import Conditioning
from veneer.family.shifted_latents import ShiftedLatents
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["StableDiffusion3"]

_T5, _T5_LENGTH = "text_encoder_3", 256
"""The text encoder that a base may lack, and the tokens of a text that it reads (``encode_prompt``'s default)."""
_TIMES = 1000
"""What sigma is multiplied by before the transformer is told of it."""
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_CLIP = ("q_proj", "k_proj", "v_proj", "out_proj")


class StableDiffusion3(ShiftedLatents):
    """A Stable Diffusion 3 or 3.5 base; its conditioning has two tensors.

    ``text`` (B, L, D): the hidden states before the last layer of both CLIPs, side by side and filled up with zeros to
    T5's width, then T5's last ones; those of padding too, for the base was trained without a mask. ``pooled`` (B, P):
    both CLIPs' projected states at the text's end, side by side.

    A base may come without T5, which is most of its weights: zeros stand for what it would say.
    """

    name = "sd3"
    default_density: Density = "logit_normal"
    tokenizers = MappingProxyType(
        {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", _T5: "tokenizer_3"},
    )
    default_targets = MappingProxyType({"transformer": _ATTENTION, "text_encoder": _CLIP, "text_encoder_2": _CLIP})
    left_out = ("image_encoder", "feature_extractor")
    optional_parts = (_T5, "tokenizer_3")

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self.text_tokens = _T5_LENGTH - 1 if _T5 in self._tokenizers else None
        self.resolution = self._pixels_a_latent * int(self._denoiser.config.sample_size)

    @property
    def labels(self) -> BaseLabels:
        """Those of 3 medium, whose attention has no norms, of 3.5 medium, which attends twice, or of 3.5 large."""
        config = self._denoiser.config
        if config.qk_norm is None:
            return _labels("medium", "SD 3", "sd3", "sd3-diffusers")
        size = "medium" if config.dual_attention_layers else "large"
        return _labels(f"5-{size}", f"SD 3.5 {size.title()}", f"sd3.5-{size}", "sd3.5", "sd3.5-diffusers")

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, which kohya's files have."""
        return {"kohya": names_in(self.denoiser, self._denoiser, sd3_names)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text`` and ``pooled``; CLIP's tokenizers cut them at 77 tokens, T5's at 256."""
        device = self._text_encoders["text_encoder"].device
        with silence_libraries():  # it tells of every caption that is longer than CLIP reads
            text_BLD, _, pooled_BP, _ = self._pipeline_for_text().encode_prompt(
                list(captions), None, None, device, do_classifier_free_guidance=False, max_sequence_length=_T5_LENGTH
            )
        return Conditioning({"text": text_BLD, "pooled": pooled_BP})

    @property
    def longest_side(self) -> int:
        """What the transformer's grid of places has room for."""
        return int(self._denoiser.config.pos_embed_max_size) * self.multiple

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: this transformer is told nothing of sizes and crops.

        Raises:
            UserError: a picture is larger than the grid of places that the transformer has.
        """
        check_in_grid(geometries, self.longest_side)
        return text

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W)."""
        dtype = self._denoiser.dtype
        output = self._denoiser(
            hidden_states=noisy.to(dtype),
            timestep=(_TIMES * t_B).float(),
            encoder_hidden_states=conditioning["text"].to(dtype),
            pooled_projections=conditioning["pooled"].to(dtype),
        )
        return cast(Tensor, output.sample)

    def _caption_tokenizers(self) -> Sequence[Any]:
        """Return T5's where there is one: it reads on where CLIP's end."""
        return [self._tokenizers[_T5]] if _T5 in self._tokenizers else list(self._tokenizers.values())

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        if hasattr(text_encoder.config, "max_position_embeddings"):
            return super()._abstract_tokenizer(text_encoder)
        return AbstractTokenizer(_T5_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, SD3Transformer2DModel
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        clips = dict.fromkeys(("text_encoder", "text_encoder_2"), CLIPTextModelWithProjection)
        return {"transformer": SD3Transformer2DModel, "vae": AutoencoderKL, **clips, _T5: T5EncoderModel}


def _labels(version: str, civitai: str, *tags: str) -> BaseLabels:
    """Return the labels of a size; ``version`` is kohya's name of it (sd-scripts, ``library/sd3_utils.py``)."""
    return BaseLabels(
        f"stable-diffusion-3-{version}",
        version,
        implementation="https://github.com/Stability-AI/generative-models",
        module="networks.lora_sd3",
        civitai=civitai,
        tags=tags,
    )

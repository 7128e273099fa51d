"""AuraFlow (fal 2024), and what was trained from it: Pony V7. A transformer of few double and many single blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor

from veneer.config.data_config import MAX_TOKEN_WINDOWS
from veneer.config.objective_config import Density
from veneer.data.transform import Geometry
from veneer.family.abstract import AbstractTokenizer
from veneer.family.flow import flow_of
from veneer.family.libraries import silence_libraries
from veneer.family.offload import Loader
from veneer.family.pipeline_family import PipelineFamily
from veneer.family.positions import check_in_grid
from veneer.family.protocol import Conditioning
from veneer.weights.metadata import BaseLabels

__all__ = ["AuraFlow"]

_WINDOW = 256  # tokens that the pipeline reads where nobody asks for more, the end mark among them


class AuraFlow(PipelineFamily):
    """An AuraFlow base; its conditioning is ``text`` (B, L, D), the last hidden states of Pile-T5, zeros for padding.

    The transformer attends to the zeros, so that their number matters: 256 tokens a window. Pony V7 was trained with
    three (``data.token_windows``), which are one long window here.
    """

    name = "auraflow"
    denoiser = "transformer"
    default_density: Density = "logit_normal"
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    text_tokens = _WINDOW - 1
    max_token_windows = MAX_TOKEN_WINDOWS
    default_targets = MappingProxyType(
        {
            "transformer": (
                "to_q",
                "to_k",
                "to_v",
                "to_out.0",
                "add_q_proj",
                "add_k_proj",
                "add_v_proj",
                "to_add_out",
            )
        }
    )
    autoencoder_overflows = True

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self.noise = flow_of(parts["scheduler"])
        self.multiple = self._pixels_a_latent * int(self._denoiser.config.patch_size)
        self.resolution = self._pixels_a_latent * self.trained_side

    @property
    def labels(self) -> BaseLabels:
        """Those of AuraFlow, also of what was trained from it: its configuration is the same."""
        return BaseLabels(
            "auraflow",
            None,
            implementation="https://github.com/cloneofsimo/minRF",
            civitai="AuraFlow",
            tags=("auraflow", "auraflow-diffusers"),
        )

    @property
    def _text_tokens(self) -> int:
        return self.token_windows * _WINDOW

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text``, padded with zeros to the length of all windows."""
        device = self._text_encoders["text_encoder"].device
        with silence_libraries():
            text_BLD, _, _, _ = self._pipeline_for_text().encode_prompt(
                list(captions), do_classifier_free_guidance=False, device=device, max_sequence_length=self._text_tokens
            )
        return Conditioning({"text": text_BLD})

    def _text_length(self, tokenizer: Any) -> int:
        return self._text_tokens - 1

    def pipeline_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the pipeline's arguments, with the length of texts."""
        return {"prompt": list(prompts), "max_sequence_length": self._text_tokens}

    @property
    def longest_side(self) -> int:
        """What the transformer's grid of places has room for."""
        return math.isqrt(self._denoiser.config.pos_embed_max_size) * self.multiple

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: this transformer is told nothing of sizes and crops.

        Raises:
            UserError: a picture is larger than the grid of places that the transformer has, which it would not say.
        """
        check_in_grid(geometries, self.longest_side)
        return text

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W)."""
        dtype = self._denoiser.dtype
        output = self._denoiser(
            noisy.to(dtype), encoder_hidden_states=conditioning["text"].to(dtype), timestep=t_B.to(dtype)
        )
        return cast(Tensor, output.sample)

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_WINDOW, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import AuraFlowPipeline

        return AuraFlowPipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AuraFlowTransformer2DModel, AutoencoderKL
        from transformers import UMT5EncoderModel

        return {"transformer": AuraFlowTransformer2DModel, "vae": AutoencoderKL, "text_encoder": UMT5EncoderModel}

"""FLUX.2 (Black Forest Labs 2025): a transformer over the latents of an autoencoder and a language model's states.

[dev] reads Mistral Small 3.1 and takes a guidance scale as an input; [klein] reads Qwen3 and takes none. Both edit: the
tokens of references stand behind those of what is painted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from veneer.config.objective_config import Density
from veneer.data.transform import Geometry
from veneer.family.abstract import AbstractTokenizer
from veneer.family.batch_norm_latents import BatchNormLatents
from veneer.family.chat import AbstractChatTokenizer, tokens_before
from veneer.family.key_names.flux2 import flux2_names
from veneer.family.key_names.network import names_in
from veneer.family.offload import Loader
from veneer.family.packing import places
from veneer.family.protocol import Conditioning
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["Flux2Dev", "Flux2Klein"]

_LENGTH = 512  # tokens of a text with its template that the bases were trained with
_TIME_OF_REFERENCE = 10
"""Time in the places of the first reference's tokens; that of the second is twice it, and of what is painted 0."""
_JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_SINGLE = ("to_qkv_mlp_proj", "to_out")
"""In a single block one layer is what is four elsewhere, and its ``to_out`` is a layer and no list of them."""
_DISTILLED = (
    "this FLUX.2 [klein] is distilled to paint in four steps, which plain training undoes; train its base, such as "
    "black-forest-labs/FLUX.2-klein-base-4B, and use the adapter on either"
)
_LABELS: Mapping[str, Any] = {
    "implementation": "https://github.com/black-forest-labs/flux2",
    "module": "networks.lora_flux_2",
    "tags": ("flux2", "flux2-diffusers"),
}
_SIZES = {7680: "4b", 12288: "9b"}
"""Which [klein] it is, by the width of its texts."""


class _Flux2(BatchNormLatents):
    """A FLUX.2 base; its conditioning is ``text`` (B, 512, D), of three layers of the language model side by side.

    Padding's states are among them, for the base was trained without a mask.
    """

    name = "flux2"
    denoiser = "transformer"
    default_density: Density = "logit_normal"
    guided_batch = False
    text_tokens: int | None = _LENGTH
    tokenizers = MappingProxyType({"text_encoder": "tokenizer"})
    default_targets = MappingProxyType({"transformer": tuple(f"attn.{layer}" for layer in (*_JOINT, *_SINGLE))})

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        # what stands behind a caption in its template is cut first
        self.text_tokens = _LENGTH - tokens_before(self._tokenizers["text_encoder"], self._in_template)

    @property
    def key_names(self) -> KeyNames:
        """The names of the model's own code, which musubi's files have."""
        return {"kohya": names_in(self.denoiser, self._denoiser, flux2_names)}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``text``, by the pipeline's own function."""
        self._offloader.restore("text_encoder")
        text_encoder, tokenizer = self._text_encoders["text_encoder"], self._tokenizers["text_encoder"]
        return Conditioning({"text": self._embed()(text_encoder, tokenizer, list(captions))})

    @classmethod
    def _embed(cls) -> Any:
        """Return the pipeline's function of a language model, its tokenizer and captions."""
        raise NotImplementedError

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: this transformer is told nothing of sizes and crops."""
        return text

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W)."""
        text_BTD, dtype = conditioning["text"], self._denoiser.dtype
        pictures = (noisy, *conditioning.references)
        output = self._denoiser(
            hidden_states=torch.cat([picture.to(dtype).flatten(2).transpose(1, 2) for picture in pictures], dim=1),
            timestep=t_B.to(dtype),
            guidance=self._guidance(noisy),
            encoder_hidden_states=text_BTD.to(dtype),
            txt_ids=_text_places(text_BTD.shape[1], noisy.device),
            img_ids=torch.cat([_picture_places(picture, number) for number, picture in enumerate(pictures)]),
        )
        tokens_BLC = output.sample[:, : noisy.shape[2] * noisy.shape[3]]
        return cast(Tensor, tokens_BLC.transpose(1, 2).unflatten(2, noisy.shape[2:]))

    def pipeline_references(self, references: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the pipeline's arguments for references, each of which it takes in the size that it has."""
        return {"image": list(references)}

    def _guidance(self, noisy: Tensor) -> Tensor | None:
        """Return the guidance scale 1 of each row (B,); any other would train the distilled guidance anew."""
        return torch.ones(len(noisy), device=noisy.device) if self._denoiser.config.guidance_embeds else None

    def _in_template(self, caption: str) -> str:
        """Return the text that the language model reads for a caption."""
        raise NotImplementedError

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractChatTokenizer(_LENGTH)

    @classmethod
    def _text_encoder_class(cls) -> Any:
        """Return the class of the language model."""
        raise NotImplementedError

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import Flux2Transformer2DModel

        networks = {"transformer": Flux2Transformer2DModel, "vae": cls._autoencoder_class()}
        return {**networks, "text_encoder": cls._text_encoder_class()}


class Flux2Dev(_Flux2):
    """FLUX.2 [dev]: Mistral Small 3.1 reads captions after a system message; layers 10, 20 and 30 of its 40.

    It edits up to ten pictures, of which its makers advise six; the pipeline has no limit.
    """

    reference_counts = range(11)

    @property
    def labels(self) -> BaseLabels:
        """Those of [dev]."""
        return BaseLabels("Flux.2-dev", "flux_2_dev", civitai="Flux.2 D", **_LABELS)

    def _in_template(self, caption: str) -> str:
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        return str(self._tokenizers["text_encoder"].apply_chat_template(format_input([caption])[0], tokenize=False))

    @classmethod
    def _embed(cls) -> Any:
        return cls._pipeline_class()._get_mistral_3_small_prompt_embeds

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import Flux2Pipeline

        return Flux2Pipeline

    @classmethod
    def _text_encoder_class(cls) -> Any:
        from transformers import Mistral3ForConditionalGeneration

        return Mistral3ForConditionalGeneration


class Flux2Klein(_Flux2):
    """FLUX.2 [klein]: Qwen3 reads captions in its template, thinking off; layers 9, 18 and 27 of its 36.

    It edits up to four pictures, by its makers' documentation; the pipeline has no limit.
    """

    reference_counts = range(5)
    stored_options = ("is_distilled",)

    @property
    def labels(self) -> BaseLabels:
        """Those of the 4B or the 9B; a base of another size is neither."""
        size = _SIZES.get(self._denoiser.config.joint_attention_dim)
        if size is None:
            return BaseLabels("Flux.2-klein", None, **_LABELS)
        civitai = f"Flux.2 Klein {size.upper()}{'' if self.distilled else '-base'}"
        return BaseLabels(f"Flux.2-klein-{size}", f"flux_2_klein_{size}", civitai=civitai, **_LABELS)

    @property
    def distilled(self) -> str | None:
        """What plain training does to a base that its model_index.json calls distilled; None: it is not."""
        return _DISTILLED if self._options.get("is_distilled") else None

    def _in_template(self, caption: str) -> str:
        messages = [{"role": "user", "content": caption}]
        tokenizer = self._tokenizers["text_encoder"]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return str(tokenizer.apply_chat_template(messages, **options))

    @classmethod
    def _embed(cls) -> Any:
        return cls._pipeline_class()._get_qwen3_prompt_embeds

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import Flux2KleinPipeline

        return Flux2KleinPipeline

    @classmethod
    def _text_encoder_class(cls) -> Any:
        from transformers import Qwen3ForCausalLM

        return Qwen3ForCausalLM


def _text_places(length: int, device: torch.device) -> Tensor:
    """Return (0, 0, 0, place) of each token of a text (L, 4)."""
    return F.pad(torch.arange(length, device=device)[:, None], (3, 0))


def _picture_places(picture_BCHW: Tensor, number: int) -> Tensor:
    """Return (10 number, row, column, 0) of each token of what is painted, number 0, or of a reference (H W, 4)."""
    rows, columns = picture_BCHW.shape[2:]
    return F.pad(places(rows, columns, picture_BCHW.device, _TIME_OF_REFERENCE * number), (0, 1))

"""HiDream-I1 (HiDream.ai 2025, arXiv 2505.22705): a transformer with experts, told texts by four text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, cast

import torch
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from veneer.config.adapter_config import TargetPreset
from veneer.errors import UserError
from veneer.family.abstract import AbstractTokenizer
from veneer.family.libraries import silence_libraries
from veneer.family.offload import Loader
from veneer.family.packing import PATCH
from veneer.family.protocol import Conditioning
from veneer.family.shifted_latents import ShiftedLatents
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["HiDream"]

_LENGTH = 128  # tokens that each text encoder reads (``encode_prompt``'s default)
_T5, _LLAMA = "text_encoder_3", "text_encoder_4"
_TIMES = 1000
"""What sigma is multiplied by before the transformer is told of it."""
_ATTENTION = ("to_q", "to_k", "to_v", "to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t")
_SHARED = tuple(f"{part}.{layer}" for part in ("ff_t", "shared_experts") for layer in ("w1", "w2", "w3"))
"""The layers that answer for every token, beside the experts among which a gate chooses."""
_DISTILLED_SCHEDULER = "FlowMatchLCMScheduler"
"""Of HiDream-I1-Dev and -Fast; that of -Full is UniPC's, by HiDream.ai's own word (SimpleTuner, pull request 1407)."""
_DISTILLED = (
    "its scheduler is that of HiDream-I1-Dev and -Fast, which are distilled to paint in 28 and 16 steps without "
    "guidance: plain training undoes that; train HiDream-ai/HiDream-I1-Full"
)


class HiDream(ShiftedLatents):
    """A HiDream-I1 base; its conditioning has three tensors, padding's states too, for it was trained without a mask.

    ``t5`` (B, 128, D): T5's last hidden states. ``llama`` (B, layers, 128, D): Llama's hidden states after each layer.
    ``pooled`` (B, P): both CLIPs' projected states at the text's end, side by side.

    The transformer's experts compute under ``no_grad`` in evaluation mode, which leaves what they contribute out of the
    gradient, and in training mode it answers in another shape. So here both are as in training mode, whatever the mode
    is, and the answer is put into the latents' shape.
    """

    name = "hidream"
    tokenizers = MappingProxyType(
        {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", _T5: "tokenizer_3", _LLAMA: "tokenizer_4"}
    )
    text_tokens = _LENGTH - 1
    default_targets = MappingProxyType({"transformer": _ATTENTION})
    target_presets: Mapping[TargetPreset, tuple[str, ...]] = MappingProxyType(
        {"attention": _ATTENTION, "attention_mlp": (*_ATTENTION, *_SHARED)}
    )

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self._side = int(self._denoiser.config.max_resolution[0])
        self.resolution = self._pixels_a_latent * self._side
        for module in self._denoiser.modules():
            if type(module) is MOEFeedForwardSwiGLU:
                module.__class__ = _Experts

    @property
    def distilled(self) -> str | None:
        """What plain training does to Dev and Fast; None: the base is Full."""
        return _DISTILLED if type(self._parts["scheduler"]).__name__ == _DISTILLED_SCHEDULER else None

    @property
    def labels(self) -> BaseLabels:
        """Civitai's; kohya's scripts know no such base."""
        return BaseLabels("hidream-i1", None, civitai="HiDream", tags=("hidream-i1",))

    @property
    def key_names(self) -> KeyNames:
        """No names but diffusers': they are those of the model's own code, and ComfyUI's."""
        return {}

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into ``t5``, ``llama`` and ``pooled``, by the pipeline's own function."""
        device = self._text_encoders["text_encoder"].device
        with silence_libraries():  # it tells of every caption that is longer than one of the four reads
            t5_BTD, _, llama_NBTD, _, pooled_BP, _ = self._pipeline_for_text().encode_prompt(
                list(captions), device=device, do_classifier_free_guidance=False
            )
        return Conditioning({"t5": t5_BTD, "llama": llama_NBTD.transpose(0, 1), "pooled": pooled_BP})

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity eps - x (B, C, H, W): the transformer answers x - eps.

        Raises:
            UserError: the picture is not square, and of more tokens than the transformer has places for then.
        """
        self._check_size(*noisy.shape[-2:])
        transformer, dtype = self._denoiser, self._denoiser.dtype
        with _answering_in_squares(transformer):
            output = transformer(
                hidden_states=noisy.to(dtype),
                timesteps=(_TIMES * t_B).float(),
                encoder_hidden_states_t5=conditioning["t5"].to(dtype),
                encoder_hidden_states_llama3=conditioning["llama"].transpose(0, 1).to(dtype),
                pooled_embeds=conditioning["pooled"].to(dtype),
            )
        is_grid = transformer.config.get("force_inference_output")
        return -cast(Tensor, output.sample if is_grid else _grid(output.sample, *noisy.shape[-2:]))

    def _check_size(self, height: int, width: int) -> None:
        """Refuse pictures that are not square and larger than the transformer fills such ones up to."""
        most, pixels = int(self._denoiser.max_seq), self._pixels_a_latent
        if height != width and (height // PATCH) * (width // PATCH) > most:
            what = (
                f"{width * pixels} x {height * pixels} pixels are more than the {most * self.multiple**2} that it takes"
            )
            remedy = f"set data.resolution to {self.resolution} or less"
            raise UserError(what, code="family.too_many_pixels", where=self.name, remedy=remedy)

    def _caption_tokenizers(self) -> Sequence[Any]:
        """Return T5's and Llama's: of the CLIPs one vector is used."""
        return [self._tokenizers[_T5], self._tokenizers[_LLAMA]]

    def pipeline(self, *, texts: bool = True) -> Any:
        """Return diffusers' pipeline, which paints as many pixels as its default size has, whatever it is asked for."""
        pipeline = super().pipeline(texts=texts)
        pipeline.default_sample_size = self._side
        return pipeline

    @classmethod
    def _abstract_tokenizer(cls, text_encoder: Any) -> AbstractTokenizer:
        return AbstractTokenizer(_LENGTH, marks=1)

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import HiDreamImagePipeline

        return HiDreamImagePipeline

    @classmethod
    def _network_classes(cls) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, HiDreamImageTransformer2DModel
        from transformers import CLIPTextModelWithProjection, LlamaForCausalLM, T5EncoderModel

        clips = dict.fromkeys(("text_encoder", "text_encoder_2"), CLIPTextModelWithProjection)
        texts = {**clips, _T5: T5EncoderModel, _LLAMA: LlamaForCausalLM}
        return {"transformer": HiDreamImageTransformer2DModel, "vae": AutoencoderKL, **texts}


@contextmanager
def _answering_in_squares(transformer: Any) -> Iterator[None]:
    """Let a transformer answer as in training mode: in the other it looks at numbers, which a plan has none of."""
    mode = transformer.training
    transformer.training = True  # of itself, not of its blocks
    try:
        yield
    finally:
        transformer.training = mode


def _grid(squares_BCLP: Tensor, height: int, width: int) -> Tensor:
    """Turn squares of 2 x 2 latents, row by row and then what a picture is filled up with, into (B, C, H, W)."""
    rows, columns = height // PATCH, width // PATCH
    squares = squares_BCLP[:, :, : rows * columns].unflatten(3, (PATCH, PATCH)).unflatten(2, (rows, columns))
    grid: Tensor = squares.permute(0, 1, 2, 4, 3, 5)  # (B, C, rows, 2, columns, 2)
    return grid.flatten(4).flatten(2, 3)


class _Experts(MOEFeedForwardSwiGLU):  # type: ignore[misc]
    """Experts that pass gradients on, whatever the mode is."""

    training: bool
    _force_inference_output: bool

    def forward(self, x: Tensor) -> Tensor:
        """Return the experts' answers for each token (B, T, D), weighted by the gate's scores."""
        if isinstance(x, FakeTensor):
            return self._evenly(x)
        mode, forced = self.training, self._force_inference_output
        self.training, self._force_inference_output = True, False
        try:
            return cast(Tensor, super().forward(x))
        finally:
            self.training, self._force_inference_output = mode, forced

    def _evenly(self, x_BTD: Tensor) -> Tensor:
        """Return the same for a plan, in which no gate has a preference: each expert gets as many tokens."""
        _, weight_NK, _ = self.gate(x_BTD)
        repeated = x_BTD.view(-1, x_BTD.shape[-1]).repeat_interleave(self.num_activated_experts, dim=0)
        parts = repeated.tensor_split(len(self.experts))
        answers = torch.cat([expert(part.clone()) for expert, part in zip(self.experts, parts, strict=True)])
        weighted = (answers.view(*weight_NK.shape, -1) * weight_NK.unsqueeze(-1)).sum(dim=1)
        return cast(Tensor, weighted.view(x_BTD.shape) + self.shared_experts(x_BTD))

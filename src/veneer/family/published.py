"""Published architectures by name, from their public configurations: what can be planned without any file of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["PUBLISHED", "Published"]

Config = Mapping[str, Any]

_CROSS = {"down": "CrossAttnDownBlock2D", "up": "CrossAttnUpBlock2D"}
_PLAIN = {"down": "DownBlock2D", "up": "UpBlock2D"}


def _unet(widths: tuple[int, ...], attention: tuple[bool, ...], **rest: Any) -> Config:
    """A UNet of Rombach et al. 2022, appendix E; the blocks on the way up mirror those on the way down."""
    kinds = [_CROSS if attends else _PLAIN for attends in attention]
    return {
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": widths,
        "down_block_types": tuple(kind["down"] for kind in kinds),
        "up_block_types": tuple(kind["up"] for kind in reversed(kinds)),
        **rest,
    }


def _autoencoder(**rest: Any) -> Config:
    return {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        **rest,
    }


def _clip(width: int, layers: int, heads: int, **rest: Any) -> Config:
    """A text encoder of Radford et al. 2021; 77 tokens of a vocabulary of 49,408."""
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
        **rest,
    }


_CLIP_L = _clip(768, 12, 12, projection_dim=768, hidden_act="quick_gelu")
_T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


@dataclass(frozen=True)
class Published:
    """An architecture that has a name.

    Attributes:
        title: what people call it.
        kind: of pipeline, as diffusers names it.
        denoiser: configuration of the UNet or transformer.
        autoencoder: of the autoencoder.
        text_encoders: of each.
        resolution: side of the square it was made for, in pixels.
        prediction: what the denoiser predicts.
        hub: where its weights are published.
    """

    title: str
    kind: str
    denoiser: Config
    autoencoder: Config
    text_encoders: tuple[Config, ...]
    resolution: int
    hub: str
    prediction: str = "epsilon"

    @property
    def is_trainable(self) -> bool:
        """Whether Veneer can train a base of this kind, once it has its weights."""
        return self.kind == "StableDiffusionPipeline"


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "sd15": Published(
            title="Stable Diffusion 1.5",
            kind="StableDiffusionPipeline",
            denoiser=_unet(
                (320, 640, 1280, 1280),
                (True, True, True, False),
                sample_size=64,
                attention_head_dim=8,
                cross_attention_dim=768,
            ),
            autoencoder=_autoencoder(sample_size=512, scaling_factor=0.18215),
            text_encoders=(_CLIP_L,),
            resolution=512,
            hub="stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        "sd21": Published(
            title="Stable Diffusion 2.1",
            kind="StableDiffusionPipeline",
            denoiser=_unet(
                (320, 640, 1280, 1280),
                (True, True, True, False),
                sample_size=96,
                attention_head_dim=(5, 10, 20, 20),
                cross_attention_dim=1024,
                use_linear_projection=True,
            ),
            autoencoder=_autoencoder(sample_size=768, scaling_factor=0.18215),
            text_encoders=(_clip(1024, 23, 16, projection_dim=512, hidden_act="gelu"),),
            resolution=768,
            hub="stabilityai/stable-diffusion-2-1",
            prediction="v_prediction",
        ),
        "sdxl": Published(
            title="Stable Diffusion XL 1.0",
            kind="StableDiffusionXLPipeline",
            denoiser=_unet(
                (320, 640, 1280),
                (False, True, True),
                sample_size=128,
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                transformer_layers_per_block=(1, 2, 10),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            autoencoder=_autoencoder(sample_size=1024, scaling_factor=0.13025),
            text_encoders=(_CLIP_L, _clip(1280, 32, 20, projection_dim=1280, hidden_act="gelu")),
            resolution=1024,
            hub="stabilityai/stable-diffusion-xl-base-1.0",
        ),
        "flux-dev": Published(
            title="FLUX.1-dev",
            kind="FluxPipeline",
            denoiser={
                "patch_size": 1,
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
            },
            autoencoder=_autoencoder(
                latent_channels=16,
                sample_size=1024,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            text_encoders=(_CLIP_L, _T5_XXL),
            resolution=1024,
            hub="black-forest-labs/FLUX.1-dev",
        ),
    }
)
"""By the name that ``veneer plan --base`` and ``base`` take."""

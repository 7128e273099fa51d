"""What tests know of bases without loading one, and tiny bases beside the one that most tests use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import write_tiny_tokenizer

__all__ = ["Defaults", "write_tiny_sdxl"]


@dataclass
class Defaults:
    """What a config's defaults depend on, as Stable Diffusion has it.

    Attributes:
        resolution: side of the square that the base was trained on, in pixels.
        denoiser: the name of its denoiser.
        default_targets: of each network.
    """

    resolution: int
    denoiser: str = "unet"
    default_targets: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "unet": ("to_q", "to_k", "to_v", "to_out.0"),
            "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
        }
    )


def write_tiny_sdxl(folder: Path, prediction: str = "epsilon", *, zero_terminal_snr: bool = False) -> Path:
    """Write an SDXL pipeline of random weights (seed 0) at 16 pixels, 8 x 8 latents; the same bits each time."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    for name, padding in (("tokenizer", None), ("tokenizer_2", "!")):
        write_tiny_tokenizer(folder / name)
        if padding is not None:  # as the published ones have it
            config = folder / name / "tokenizer_config.json"
            config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "pad_token": padding}), "utf-8")
    tokenizers = {name: CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _tiny_sdxl_networks(len(tokenizers["tokenizer"]))
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
        steps_offset=1,
    )
    pipeline = StableDiffusionXLPipeline(**networks, **tokenizers, scheduler=scheduler, add_watermarker=False)
    pipeline.save_pretrained(folder)
    return folder


def _tiny_sdxl_networks(vocabulary: int) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text: dict[str, Any] = {"vocab_size": vocabulary, "max_position_embeddings": 16, "num_hidden_layers": 3, **ids}
    second = CLIPTextConfig(
        hidden_size=48, intermediate_size=96, num_attention_heads=4, projection_dim=24, hidden_act="gelu", **text
    )
    return {
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, **text)
        ),
        "text_encoder_2": CLIPTextModelWithProjection(second),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
            scaling_factor=0.13025,
        ),
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=32 + 48,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
    }

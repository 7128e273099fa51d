"""LTX-2, of which a picture is one frame, and whose sound is not trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.ltx_video import decode, encode
from tests.families.lumina2 import gemma_tokenizer

__all__ = ["CASE", "UNGUIDED", "isolated", "velocity", "write_tiny_ltx2"]

UNGUIDED: dict[str, Any] = {"audio_guidance_scale": None, "stg_scale": 0.0, "modality_scale": 1.0}
UNGUIDED |= {"audio_stg_scale": None, "audio_modality_scale": None}
UNGUIDED |= {"guidance_rescale": 0.0, "audio_guidance_rescale": None}
"""What turns the pipeline's guidance off but for that by the text, of clip and sound by one scale."""
_SOUND = 8  # channels of the sound's latents, times rows of its spectrogram
_NEWER = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
"""What 2.3's transformer has."""


def write_tiny_ltx2(folder: Path, *, version: str = "2", decodes_by_time: bool = False) -> Path:
    """Write an LTX-2 pipeline of random weights (seed 0); the same bits each time.

    Args:
        folder: where to.
        version: 2 or 2.3.
        decodes_by_time: whether the autoencoder is told a time.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline

    tokenizer = gemma_tokenizer()
    tokenizer.padding_side = "left"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _networks(len(tokenizer), decodes_by_time, is_newer=version == "2.3")
    schedule: dict[str, Any] = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, **schedule)
    LTX2Pipeline(tokenizer=tokenizer, scheduler=scheduler, **networks).save_pretrained(folder)
    return folder


def _networks(tokens: int, decodes_by_time: bool, is_newer: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKLLTX2Audio, LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    width, sound = 24, 16
    connectors: dict[str, Any] = {"video_connector_num_attention_heads": 4, "video_connector_attention_head_dim": 6}
    connectors |= {"audio_connector_num_attention_heads": 4, "audio_connector_attention_head_dim": 6}
    if is_newer:
        connectors |= {"audio_connector_attention_head_dim": 4, "per_modality_projections": True, "proj_bias": True}
        connectors |= {"video_hidden_dim": width, "audio_hidden_dim": sound}
        connectors |= {"video_gated_attn": True, "audio_gated_attn": True}
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=_SOUND, ch_mult=(1, 2, 4), num_res_blocks=1, latent_channels=2, mel_bins=16, resolution=16
    )
    audio_vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, _SOUND))
    audio_vae.latents_std.copy_(torch.linspace(0.5, 1.5, _SOUND))
    return {
        "text_encoder": _text_encoder(tokens, width),
        "connectors": LTX2TextConnectors(
            caption_channels=width,
            text_proj_in_factor=3,
            video_connector_num_layers=1,
            audio_connector_num_layers=1,
            video_connector_num_learnable_registers=8,
            audio_connector_num_learnable_registers=8,
            rope_type="split",
            **connectors,
        ),
        "vae": _autoencoder(decodes_by_time),
        "audio_vae": audio_vae,
        "vocoder": LTX2Vocoder(
            in_channels=32,
            hidden_channels=16,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
        "transformer": LTX2VideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=width,
            vae_scale_factors=(2, 8, 8),
            audio_in_channels=_SOUND,
            audio_out_channels=_SOUND,
            audio_num_attention_heads=2,
            audio_attention_head_dim=8,
            audio_cross_attention_dim=sound,
            num_layers=2,
            caption_channels=width,
            rope_type="split",
            **(_NEWER if is_newer else {}),
        ),
    }


def _text_encoder(tokens: int, width: int) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text: dict[str, Any] = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 8, "sliding_window": 64}
    text |= {"vocab_size": tokens, "layer_types": ["sliding_attention", "full_attention"]}
    pictures = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    pictures |= {"image_size": 8, "patch_size": 4}
    config = Gemma3Config(text_config=text, vision_config=pictures, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config)


def _autoencoder(decodes_by_time: bool) -> Any:
    from diffusers import AutoencoderKLLTX2Video

    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8,),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal",),
        upsample_residual=(True,),
        upsample_factor=(2,),
        patch_size=4,  # the pipeline asks for sides that 32 divides
        scaling_factor=0.9,
        decoder_causal=False,
        timestep_conditioning=decodes_by_time,
        spatial_compression_ratio=8,
        temporal_compression_ratio=2,
    )
    vae.latents_mean.copy_(torch.tensor([-0.5, 0.1, 0.3, -0.2]))
    vae.latents_std.copy_(torch.tensor([1.5, 2.0, 0.7, 1.1]))
    return vae


def velocity(
    pipeline: Any,
    latents: Tensor,
    sigma_B: Tensor,
    captions: Sequence[str],
    frame_rate: float = 24,
    sound: Callable[..., Tensor] = torch.zeros,
) -> Tensor:
    """What the transformer answers as the pipeline's loop asks it, with its modalities isolated.

    The sound is as long as the clip; its latents are what ``sound`` makes of their shape.
    """
    text, mask, _, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
    video_text, audio_text, mask = pipeline.connectors(text, mask, padding_side="left")
    frames, height, width = latents.shape[2:]
    pixel_frames = (frames - 1) * pipeline.vae_temporal_compression_ratio + 1
    length = round(pixel_frames / frame_rate * 25)
    tokens = pipeline.transformer(
        hidden_states=pipeline._pack_latents(latents),
        audio_hidden_states=sound(len(latents), length, _SOUND),
        encoder_hidden_states=video_text,
        audio_encoder_hidden_states=audio_text,
        timestep=sigma_B * 1000,
        sigma=sigma_B * 1000,
        encoder_attention_mask=mask,
        audio_encoder_attention_mask=mask,
        num_frames=frames,
        height=height,
        width=width,
        fps=frame_rate,
        audio_num_frames=length,
        isolate_modalities=True,
        use_cross_timestep=True,
        return_dict=False,
    )[0]
    unpacked: Tensor = pipeline._unpack_latents(tokens, frames, height, width)
    return unpacked


@contextmanager
def isolated(pipeline: Any) -> Iterator[None]:
    """Let the pipeline paint a clip that does not hear its sound, as clips are trained."""
    forward = pipeline.transformer.forward

    def without_sound(**told: Any) -> Any:
        return forward(**{**told, "isolate_modalities": True})

    pipeline.transformer.forward = without_sound
    try:
        yield
    finally:
        pipeline.transformer.forward = forward


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    frames, rows, columns = latents.shape[2:]
    side = pipeline.vae_spatial_compression_ratio
    with isolated(pipeline):
        own = pipeline(
            list(captions),
            height=rows * side,
            width=columns * side,
            num_frames=(frames - 1) * pipeline.vae_temporal_compression_ratio + 1,
            num_inference_steps=steps,
            guidance_scale=1.0,
            latents=pipeline._pack_latents(latents),
            output_type="latent",
            **UNGUIDED,
        ).frames
    vae = pipeline.vae  # its answer is the autoencoder's own latents
    normal: Tensor = pipeline._normalize_latents(own, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    return normal


CASE = FamilyCase(
    pipeline="LTX2Pipeline",
    write=write_tiny_ltx2,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"ltx2": "ltx2", "ltx2.3": "ltx2.3"},
    frames=(5, 3),
    unguided=UNGUIDED,
    tolerance=1e-4,
)

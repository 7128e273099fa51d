"""Stable Diffusion's conventions against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from veneer.family.protocol import Family
from veneer.family.unread import Unread


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)


@pytest.mark.parametrize("caption", ["a cat", "", "a cat " * 40])
def test_text_is_encoded_as_the_pipeline_does(family: Family, pipeline: Any, caption: str) -> None:
    wanted, empty = pipeline.encode_prompt([caption], "cpu", 1, do_classifier_free_guidance=True)
    assert torch.equal(family.encode_text([caption])["text"], wanted)
    assert torch.equal(family.encode_text([""])["text"], empty)


def test_latents_are_scaled_as_the_pipeline_expects(family: Family, pipeline: Any) -> None:
    pixels = torch.rand(2, 3, family.resolution, family.resolution) * 2 - 1
    posterior = pipeline.vae.encode(pixels).latent_dist
    got = family.encode_image(pixels)
    assert torch.equal(got.mean, posterior.mean * pipeline.vae.config.scaling_factor)
    assert torch.equal(got.std, posterior.std * pipeline.vae.config.scaling_factor)


def test_decodes_as_the_pipeline_does(family: Family, pipeline: Any) -> None:
    latents = family.encode_image(torch.rand(1, 3, family.resolution, family.resolution) * 2 - 1).mean
    wanted = pipeline.image_processor.postprocess(
        pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample.detach(), output_type="np"
    )
    got = (family.decode(latents) / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_predicts_as_the_unet_does(family: Family, pipeline: Any) -> None:
    side = family.resolution // pipeline.vae_scale_factor
    noisy, timestep = torch.randn(2, pipeline.unet.config.in_channels, side, side), torch.tensor([3, 900])
    context = family.encode_text(["a cat", "a dog"])
    wanted = pipeline.unet(noisy, timestep, context["text"]).sample
    t_B = timestep.double() / len(pipeline.scheduler.alphas_cumprod)
    assert torch.equal(family.predict(noisy, t_B, context), wanted)


def test_overlong_captions_are_found(family: Family) -> None:
    # of the tiny base's 16 tokens two mark beginning and end
    assert family.text_length == 14
    (found,) = family.unread(["a cat", long := "a cat " * 40]).items()
    assert found == (long, Unread(80, 14, "a cat " * 7, "a cat " * 33))
    assert family.unread([]) == {}

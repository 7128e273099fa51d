"""FLUX.1's peculiarities against diffusers' own pipeline; what all families share is in ``test_families``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from tests.bases import write_tiny_flux
from tests.families import CAPTIONS
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.config.objective_config import ObjectiveConfig
from veneer.family.flux import Flux
from veneer.family.packing import pack, places, unpack
from veneer.objective.loss import Objective


@pytest.fixture(scope="module", params=[True, False], ids=["guidance", "no guidance"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_flux(tmp_path_factory.mktemp("base") / "flux", takes_guidance=request.param)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(pipeline: Any) -> Flux:
    return Flux(pipeline.components)


def test_times_are_shifted_by_size_as_the_scheduler_is(family: Flux, pipeline: Any) -> None:
    objective = Objective.from_config(ObjectiveConfig(), family)
    assert (family.default_shift, objective.density.name) == ("resolution", "logit_normal")
    mu = calculate_shift(40 * 64, 256, 4096, 0.5, 1.15)
    shift = objective.density.shift_of(40 * family.multiple, 64 * family.multiple, 1)
    assert shift == pytest.approx(math.exp(mu), rel=1e-12)


def test_a_schedule_that_is_the_same_for_every_size_has_one_shift(pipeline: Any) -> None:
    config = {**pipeline.scheduler.config, "use_dynamic_shifting": False, "shift": 1.5}
    family = Flux({**pipeline.components, "scheduler": type(pipeline.scheduler).from_config(config)})
    assert (family.default_shift, Objective.from_config(ObjectiveConfig(), family).density.shift_of(8, 8, 1)) == (
        1.5,
        1.5,
    )


@torch.no_grad()
def test_text_is_encoded_as_the_pipeline_does(family: Flux, pipeline: Any) -> None:
    """CLIP cuts the second caption, T5 reads the whole of it, and its padding is not masked."""
    text, pooled, _ = pipeline.encode_prompt(list(CAPTIONS), None, device="cpu")
    own = family.encode_text(CAPTIONS)
    assert torch.equal(own["text"], text) and torch.equal(own["pooled"], pooled)
    assert text.shape[1] == 512


def test_a_long_caption_is_one_that_t5_cuts(family: Flux) -> None:
    long = ", ".join(["a"] * 300)
    assert family.text_length == 511
    found = family.unread([*CAPTIONS, long])
    assert found.keys() == {long} and found[long].limit == 511 and found[long].read + found[long].rest == long


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (2, 6)])
def test_latents_are_packed_and_placed_as_the_pipeline_does(height: int, width: int) -> None:
    latents = torch.arange(2 * 4 * height * width).view(2, 4, height, width).float()
    tokens = pack(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, *latents.shape))
    assert torch.equal(unpack(tokens, height // 2), latents)
    expected = FluxPipeline._prepare_latent_image_ids(2, height // 2, width // 2, "cpu", torch.float32)
    assert torch.equal(places(height // 2, width // 2, torch.device("cpu")), expected)


def test_schnell_is_distilled_and_dev_is_not(family: Flux, pipeline: Any) -> None:
    takes_guidance = pipeline.transformer.config.guidance_embeds
    assert (family.distilled is None) == takes_guidance
    assert takes_guidance or "schnell" in str(family.distilled)


def test_default_targets_are_in_the_networks(family: Flux) -> None:
    specs = {name: LoraSpec(2, 2.0, targets) for name, targets in family.default_targets.items()}
    injection = inject(family.networks, specs, seed=0)
    try:
        counts = {match.network: 0 for match in injection.matches}
        for match in injection.matches:
            counts[match.network] += len(match.modules)
        # 4 of a block of two streams, 3 of one of one; 4 of a layer of each text encoder
        assert counts == {"transformer": 4 + 2 * 3, "text_encoder": 2 * 4, "text_encoder_2": 2 * 4}
    finally:
        injection.eject()

"""FLUX.1's conventions against diffusers' own pipeline and scheduler, elementwise."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from tests.bases import write_tiny_flux
from tests.errors import raises_code
from tests.training import tiny_config
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.data.transform import Geometry
from veneer.family.flux import Flux, unpack
from veneer.family.registry import load_family
from veneer.objective.loss import Objective
from veneer.plan.abstract import abstract_base
from veneer.plan.tracer import MemoryTracer

CAPTIONS = ["a cat", "the dog that sees a cat, and no end of other things besides"]
"""CLIP cuts the second, T5 reads the whole of it."""
WIDE = Geometry((640, 960), (0, 16), (16, 24))


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


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pipeline_velocity(pipeline: Any, tokens: Tensor, sigma_B: Tensor, size: tuple[int, int]) -> Tensor:
    """The transformer's output as the pipeline asks for it at guidance 1, for latents of ``size`` tokens."""
    text, pooled, text_ids = pipeline.encode_prompt(CAPTIONS, None, device="cpu")
    output: Tensor = pipeline.transformer(
        hidden_states=tokens,
        timestep=sigma_B,
        guidance=torch.full([len(tokens)], 1.0) if pipeline.transformer.config.guidance_embeds else None,
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(len(tokens), *size, "cpu", tokens.dtype),
        return_dict=False,
    )[0]
    return output


@torch.no_grad()
def test_text_is_encoded_as_the_pipeline_does(family: Flux, pipeline: Any) -> None:
    text, pooled, _ = pipeline.encode_prompt(CAPTIONS, None, device="cpu")
    own = family.encode_text(CAPTIONS)
    assert torch.equal(own["text"], text) and torch.equal(own["pooled"], pooled)
    assert text.shape[1] == 512


def test_a_long_caption_is_one_that_t5_cuts(family: Flux) -> None:
    long = ", ".join(["a"] * 300)
    assert family.text_length == 511
    found = family.unread([*CAPTIONS, long])
    assert found.keys() == {long} and found[long].limit == 511 and found[long].read + found[long].rest == long


@torch.no_grad()
def test_pictures_are_packed_as_the_pipeline_packs_them(family: Flux, pipeline: Any) -> None:
    pixels = draw(2, 3, 16, 24)
    vae, latent = pipeline.vae, family.encode_image(pixels)
    posterior = vae.encode(pixels).latent_dist
    mean = (posterior.mean - vae.config.shift_factor) * vae.config.scaling_factor
    assert torch.equal(latent.mean, pipeline._pack_latents(mean, *mean.shape))
    std = posterior.std * vae.config.scaling_factor
    assert torch.equal(latent.std, pipeline._pack_latents(std, *mean.shape))


@torch.no_grad()
def test_latents_are_decoded_as_the_pipeline_does(family: Flux, pipeline: Any) -> None:
    tokens, vae = draw(2, 16, 16), pipeline.vae
    unpacked = pipeline._unpack_latents(tokens, 16, 16, pipeline.vae_scale_factor)
    pixels = vae.decode(unpacked / vae.config.scaling_factor + vae.config.shift_factor).sample
    assert torch.equal(family.decode(tokens), pixels.clamp(-1, 1))


def test_tokens_of_no_square_cannot_be_unpacked() -> None:
    with pytest.raises(ValueError, match="24 tokens are of no square picture"):
        unpack(torch.zeros(1, 24, 16))


@torch.no_grad()
def test_a_prediction_is_the_pipeline_s_on_pictures_that_are_not_square(family: Flux, pipeline: Any) -> None:
    tokens, t_B = draw(2, 24, 16), torch.tensor([0.1, 0.7], dtype=torch.float64)
    conditioning = family.condition(family.encode_text(CAPTIONS), [WIDE, WIDE])
    expected = pipeline_velocity(pipeline, tokens, t_B.float(), (4, 6))
    assert torch.equal(family.predict(tokens, t_B, conditioning), expected)


@torch.no_grad()
def test_a_step_s_loss_is_that_of_flow_matching(family: Flux, pipeline: Any) -> None:
    """Lipman et al. 2023, as diffusers' training script computes it."""
    clean, noise, t_B = draw(2, 24, 16), draw(2, 24, 16, seed=1), torch.tensor([0.25, 0.75], dtype=torch.float64)
    conditioning = family.condition(family.encode_text(CAPTIONS), [WIDE, WIDE])
    sigma = t_B.float()[:, None, None]
    answer = pipeline_velocity(pipeline, (1 - sigma) * clean + sigma * noise, t_B.float(), (4, 6))
    expected = (answer - (noise - clean)).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(
        Objective(family.noise).loss_B(family.predict, clean, noise, t_B, conditioning), expected, rtol=0, atol=0
    )


@torch.no_grad()
def test_euler_steps_over_the_predictions_end_in_the_pipeline_s_latents(family: Flux, pipeline: Any) -> None:
    tokens = draw(2, 16, 16)
    square = Geometry.whole(16, 16)
    result = pipeline(
        CAPTIONS, height=16, width=16, num_inference_steps=3, guidance_scale=1.0, latents=tokens, output_type="latent"
    )
    conditioning = family.condition(family.encode_text(CAPTIONS), [square, square])
    sigmas = pipeline.scheduler.sigmas
    for sigma, after in pairwise(sigmas):
        velocity = family.predict(tokens, sigma.double().expand(2), conditioning)
        tokens = tokens + (after - sigma) * velocity
    torch.testing.assert_close(tokens, result.images)


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


def test_a_base_is_planned_from_its_configurations(family: Flux, folder: Path, tmp_path: Path) -> None:
    abstract = abstract_base(tiny_config(tmp_path, base=str(folder)), MemoryTracer(torch.device("cpu")))
    assert isinstance(abstract, Flux)
    assert (abstract.multiple, abstract.resolution) == (family.multiple, family.resolution) == (4, 256)
    for name, network in family.networks.items():
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
        assert {key: tensor.shape for key, tensor in abstract.networks[name].state_dict().items()} == shapes


def test_a_base_is_not_loaded_to_be_trained(folder: Path) -> None:
    with raises_code("base.plan_only") as caught:
        load_family(str(folder))
    assert str(caught.value) == (
        f"{folder}: is a FluxPipeline, which can only be planned; veneer plan tells what it would take"
    )

"""SDXL's conventions against diffusers' own pipeline and schedulers, elementwise; and its adapters in that pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionXLPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor

from tests.bases import write_tiny_sdxl
from tests.training import Recorder, tiny_config, trainer_on, write_noise_pictures
from veneer.adapter.inject import Injection, inject
from veneer.adapter.lora import LoraSpec
from veneer.adapter.merge import merge
from veneer.data.transform import Geometry
from veneer.engine.adapter_bank import AdapterBank
from veneer.family.protocol import Conditioning
from veneer.family.sdxl import StableDiffusionXL
from veneer.objective.loss import Objective
from veneer.sample.generate import generate, generate_each
from veneer.train.step import train_step
from veneer.weights.file import FILE_NAME, AdapterFile, load, save

TOTAL = 1000
CAPTIONS = ["a cat", "the dog that sees a cat, and no end of other things besides"]
"""Of different lengths; the second is cut."""
GEOMETRIES = [Geometry((640, 480), (0, 16), (16, 24)), Geometry((333, 1000), (7, 0), (16, 24))]
INDICES = [0, 1, 37, 500, 998, 999]


def load_pipeline(folder: Path) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=[False, True], ids=["epsilon", "v-prediction, zero terminal SNR"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base") / "xl"
    prediction = "v_prediction" if request.param else "epsilon"
    return write_tiny_sdxl(place, prediction, zero_terminal_snr=request.param)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return load_pipeline(folder)


@pytest.fixture(scope="module")
def family(folder: Path) -> StableDiffusionXL:
    return StableDiffusionXL(load_pipeline(folder).components)


def time_of(indices: Sequence[int]) -> Tensor:
    return (torch.tensor(indices, dtype=torch.float64) + 0.5) / TOTAL


def draws(rows: int, side: tuple[int, int] = (8, 12)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 4, *side, generator=generator), torch.randn(rows, 4, *side, generator=generator)


def diffusers_loss(
    pipeline: Any,
    captions: Sequence[str],
    geometries: Sequence[Geometry],
    clean: Tensor,
    noise: Tensor,
    index_B: Tensor,
) -> Tensor:
    """One training step's loss of each row, as diffusers' parts compute it."""
    scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = scheduler.add_noise(clean, noise, index_B)
    text, _, pooled, _ = pipeline.encode_prompt(list(captions), device="cpu", do_classifier_free_guidance=False)
    project = int(pipeline.text_encoder_2.config.projection_dim)
    time_ids = [
        pipeline._get_add_time_ids(one.original, one.top_left, one.target, text.dtype, project) for one in geometries
    ]
    added = {"text_embeds": pooled, "time_ids": torch.cat(time_ids)}
    answer = pipeline.unet(noisy, index_B, encoder_hidden_states=text, added_cond_kwargs=added).sample
    is_v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(clean, noise, index_B) if is_v else noise
    return (answer - target).square().flatten(1).mean(dim=1)


@pytest.mark.parametrize("captions", [["a cat"], CAPTIONS])
def test_text_is_encoded_as_the_pipeline_does(family: StableDiffusionXL, pipeline: Any, captions: list[str]) -> None:
    text, empty, pooled, pooled_empty = pipeline.encode_prompt(captions, device="cpu")
    own = family.encode_text(captions)
    assert torch.equal(own["text"], text) and torch.equal(own["pooled"], pooled)
    nothing = family.encode_text(["", *captions])  # what the pipeline guides away from
    assert torch.equal(nothing["text"][:1], empty[:1]) and torch.equal(nothing["pooled"][:1], pooled_empty[:1])


def test_a_base_that_was_trained_otherwise_encodes_an_empty_caption_as_any(pipeline: Any) -> None:
    other = StableDiffusionXL(pipeline.components, options={"force_zeros_for_empty_prompt": False})
    text, _, pooled, _ = pipeline.encode_prompt([""], device="cpu")
    assert torch.equal(other.encode_text([""])["text"], text) and torch.equal(other.encode_text([""])["pooled"], pooled)
    assert other.pipeline().config.force_zeros_for_empty_prompt is False
    zeros = StableDiffusionXL(pipeline.components)
    assert zeros.settings != other.settings


@torch.no_grad()
@pytest.mark.parametrize("index", INDICES)
def test_a_steps_loss_is_diffusers(family: StableDiffusionXL, pipeline: Any, index: int) -> None:
    """To the bit at each row, on latents that are not square."""
    clean, noise = draws(2)
    conditioning = family.condition(family.encode_text(CAPTIONS), GEOMETRIES)
    t_B, index_B = time_of([index, TOTAL - 1 - index]), torch.tensor([index, TOTAL - 1 - index])
    ours_B = Objective(family.noise).loss_B(family.predict, clean, noise, t_B, conditioning)
    theirs_B = diffusers_loss(pipeline, CAPTIONS, GEOMETRIES, clean, noise, index_B)
    torch.testing.assert_close(ours_B, theirs_B, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("index", INDICES)
def test_a_batch_is_its_rows(family: StableDiffusionXL, index: int) -> None:
    clean, noise = draws(2)
    noisy, t_B = family.noise.add_noise(clean, noise, time_of([index] * 2)), time_of([index] * 2)
    both = family.condition(family.encode_text(CAPTIONS), GEOMETRIES)
    whole = family.predict(noisy, t_B, both)
    for row in range(2):
        text = family.encode_text(CAPTIONS[row : row + 1])
        alone = family.condition(text, GEOMETRIES[row : row + 1])
        one = slice(row, row + 1)
        torch.testing.assert_close(family.predict(noisy[one], t_B[one], alone), whole[one], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            family.predict(noisy[one], t_B[one], both.rows([row])), whole[one], rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_every_condition_matters(family: StableDiffusionXL) -> None:
    """Else a test could not tell whether a condition was taken."""
    clean, _ = draws(1)
    t_B, text = time_of([500]), family.encode_text(CAPTIONS[:1])
    whole = family.condition(text, GEOMETRIES[:1])
    answer = family.predict(clean, t_B, whole)
    for name in whole.tensors:
        changed = Conditioning({**whole.tensors, name: whole[name] + 1})
        assert (family.predict(clean, t_B, changed) - answer).abs().max() > 1e-3, name


def test_latents_are_scaled_as_the_pipeline_expects(family: StableDiffusionXL, pipeline: Any) -> None:
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = pipeline.vae.encode(pixels).latent_dist
    own = family.encode_image(pixels)
    assert torch.equal(own.mean, posterior.mean * 0.13025) and torch.equal(own.std, posterior.std * 0.13025)
    assert own.mean.shape == (2, 4, 8, 12)
    decoded = pipeline.vae.decode(own.mean / 0.13025).sample.detach()
    torch.testing.assert_close(family.decode(own.mean), decoded.clamp(-1, 1), rtol=0, atol=0)


def test_zero_terminal_snr_is_zero_with_any_scheduler(family: StableDiffusionXL, pipeline: Any) -> None:
    """Euler's schedule ends just above zero, for its own division; training ends at zero, as DDPM's does."""
    scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    assert torch.equal(family.noise.alphas_cumprod_T, scheduler.alphas_cumprod)
    is_zero = bool(pipeline.scheduler.config.rescale_betas_zero_snr)
    assert (float(family.noise.snr(time_of([TOTAL - 1]))) == 0) == is_zero


def test_a_float16_autoencoder_computes_in_float32(folder: Path) -> None:
    family = StableDiffusionXL(load_pipeline(folder).components)
    pixels, latents = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 8, 8)
    exact = family.encode_image(pixels).mean
    family.to(torch.device("cpu"), torch.float16)
    vae = family.pipeline().vae
    seen: list[torch.dtype] = []
    for layer in (vae.encoder.conv_in, vae.decoder.conv_in):
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    torch.testing.assert_close(family.encode_image(pixels).mean, exact, rtol=1e-2, atol=1e-3)
    assert family.decode(latents).isfinite().all()
    assert seen == [torch.float32, torch.float32] and vae.dtype == torch.float16


# what a training step sees


@pytest.mark.parametrize(
    "text_encoders", [{}, {"text_encoder_2": {}}], ids=["frozen texts", "a text encoder in training"]
)
@pytest.mark.parametrize(("aspect", "size", "step"), [("square", (16, 16), 3), ("buckets", (10, 22), 1)])
def test_a_training_step_is_told_the_real_crop(
    family: StableDiffusionXL,
    pipeline: Any,
    tmp_path: Path,
    text_encoders: dict[str, Any],
    aspect: str,
    size: tuple[int, int],
    step: int,
) -> None:
    """The loss of the loop's own micro-batch, whose adapter is still zero, is that of diffusers with that crop."""
    data = {"trigger": "a cat", "crop": "random", "flip": True, "aspect": aspect}
    config = tiny_config(write_noise_pictures(tmp_path), data=data, adapter={"text_encoders": text_encoders})
    with trainer_on(config, family, moved=False) as trainer:
        (micro,) = trainer.batches.micro_batches(step)
        recorder = Recorder(dict(trainer.injection.named_parameters()))
        loss = train_step(replace(trainer.context, optimizer=recorder), step, [micro]).loss
    with torch.no_grad():
        texts, index_B = ["a cat"] * len(micro.samples), family.noise.index(micro.t_B)
        theirs_B = diffusers_loss(pipeline, texts, micro.geometries, micro.latents, micro.noise, index_B)
    assert {(one.original, one.target) for one in micro.geometries} == {((20, 40), size)}
    assert len({one.top_left for one in micro.geometries}) == 2  # each row its own
    assert loss == pytest.approx(float(theirs_B.mean()), rel=1e-5)
    elsewhere = [replace(one, top_left=(0, 0)) for one in micro.geometries]
    with torch.no_grad():
        uncropped_B = diffusers_loss(pipeline, texts, elsewhere, micro.latents, micro.noise, index_B)
    assert loss != pytest.approx(float(uncropped_B.mean()), rel=1e-5)


# adapters


SPECS = {
    "unet": LoraSpec(4, 10.0, ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj")),
    "text_encoder": LoraSpec(2, 3.0, ("q_proj", "v_proj", "fc1")),
    "text_encoder_2": LoraSpec(3, 9.0, ("q_proj", "out_proj", "fc2")),
}
CLOSE = {"rtol": 0, "atol": 2e-5}
"""Of pixels in [0, 1], float32: one sum in another order."""


def moved(family: StableDiffusionXL) -> Injection:
    injection = inject(family.networks, SPECS, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return injection


def paint(pipeline: Any) -> np.ndarray:
    # Euler's latents begin up to 4096 times as large as they end, and rounding with them
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", "height": 16, "width": 24}
    pictures = pipeline("the cat", generator=torch.Generator().manual_seed(0), **options).images
    return np.asarray(pictures[0])


@pytest.fixture
def strict_readers(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """diffusers only warns of what it does not match; here that is a failure."""
    from diffusers.utils import logging

    logging.enable_propagation()
    yield
    logging.disable_propagation()
    ignored = [
        record.message for record in caplog.records if "unexpected" in record.message or "No LoRA" in record.message
    ]
    assert not ignored


@pytest.mark.usefixtures("strict_readers")
@pytest.mark.parametrize("reads_metadata", [True, False])
def test_diffusers_paints_our_file(folder: Path, tmp_path: Path, reads_metadata: bool) -> None:
    """Adapters of all three networks, each with an alpha that is not its rank."""
    ours = StableDiffusionXL(load_pipeline(folder).components)
    base = paint(ours.pipeline())
    injection = moved(ours)
    file = tmp_path / FILE_NAME
    save(AdapterFile(injection.weights()), file)
    theirs = load_pipeline(folder)
    theirs.load_lora_weights(tmp_path if reads_metadata else load_file(file))
    np.testing.assert_allclose(paint(theirs), paint(ours.pipeline()), **CLOSE)
    assert np.abs(paint(theirs) - base).max() > 1000 * CLOSE["atol"]
    assert adapted(theirs) == set(injection.weights())
    injection.eject()
    merged = merge(ours.networks, [(load(file, ours.networks).weights, 1.0)])
    np.testing.assert_allclose(paint(theirs), paint(ours.pipeline()), **CLOSE)
    merged.undo()
    np.testing.assert_array_equal(paint(ours.pipeline()), base)


def adapted(pipeline: Any) -> set[str]:
    networks = {name: getattr(pipeline, name) for name in SPECS}
    return {
        f"{name}.{path}"
        for name, network in networks.items()
        for path, module in network.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


@pytest.mark.parametrize("network", SPECS)
def test_each_networks_adapter_matters(folder: Path, network: str) -> None:
    """Else the picture could not tell whether a reader took it."""
    family = StableDiffusionXL(load_pipeline(folder).components)
    injection = moved(family)
    whole, weights = paint(family.pipeline()), injection.weights()
    injection.eject()
    merge(family.networks, [({path: one for path, one in weights.items() if not path.startswith(f"{network}.")}, 1.0)])
    assert np.abs(whole - paint(family.pipeline())).max() > 1000 * CLOSE["atol"]


def test_pictures_are_painted_as_the_pipeline_does(family: StableDiffusionXL, pipeline: Any) -> None:
    (ours,) = generate(family, ["the cat"], [5], steps=2, guidance=3.0)
    theirs = pipeline(
        "the cat", generator=torch.Generator().manual_seed(5), num_inference_steps=2, guidance_scale=3.0
    ).images[0]
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_each_picture_of_a_batch_may_have_adapters_of_its_own(folder: Path) -> None:
    family = StableDiffusionXL(load_pipeline(folder).components)
    injection = moved(family)
    weights = injection.weights()
    injection.eject()
    bank = AdapterBank(family.networks)
    bank.add("one", weights)
    options: dict[str, Any] = {"steps": 2, "guidance": 3.0}
    prompts, seeds = ["the cat", "a dog"], [5, 6]
    together = generate_each(family, bank, ["one", None], prompts, seeds, **options)
    base = generate(family, prompts, seeds, **options)
    merge(family.networks, [(weights, 1.0)])
    merged = generate(family, prompts, seeds, **options)
    pixels = [np.asarray(picture, int) for picture in (*together, merged[0], base[1], base[0])]
    assert np.abs(pixels[0] - pixels[2]).max() <= 1 and np.abs(pixels[1] - pixels[3]).max() <= 1
    assert np.abs(pixels[0] - pixels[4]).max() > 1

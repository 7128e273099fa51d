"""What PixArt-Sigma has of its own, against diffusers' pipeline; what families share is in ``test_families``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PixArtSigmaPipeline
from peft import PeftModel
from torch import Tensor

from tests.errors import raises_code
from tests.families import CAPTIONS
from tests.families.pixart import write_tiny_pixart
from tests.running import quick_config, without_rehearsals
from veneer.adapter.apply import apply_adapter
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.family.pixart import PixArtSigma
from veneer.family.registry import load_family
from veneer.run.session import run_training
from veneer.sample.generate import generate
from veneer.weights.file import load
from veneer.weights.formats.diffusers import DIFFUSERS

TEXT_LENGTH = 300
IN_COMFYUI = {
    *(f"attn{number}.to_{part}" for number in (1, 2) for part in ("q", "k", "v", "out.0")),
    "ff.net.0.proj",
    "ff.net.2",
}
"""Layers of a block that ComfyUI knows behind ``transformer.`` (comfy/utils.py, ``pixart_to_diffusers``)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pixart(tmp_path_factory.mktemp("base") / "pixart")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = PixArtSigmaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(pipeline: Any) -> PixArtSigma:
    return PixArtSigma(pipeline.components)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_text_is_the_pipeline_s_without_its_padding(family: PixArtSigma, pipeline: Any) -> None:
    text, mask, _, _ = pipeline.encode_prompt(list(CAPTIONS), do_classifier_free_guidance=False)
    own = family.encode_text(CAPTIONS)
    length = own["text"].shape[1]
    assert text.shape[1] == TEXT_LENGTH and length == int(mask.sum(dim=1).max()) < TEXT_LENGTH
    assert torch.equal(own["text"], text[:, :length]) and torch.equal(own["mask"], mask[:, :length].bool())


def test_a_long_caption_is_one_that_t5_cuts_at_300_tokens(family: PixArtSigma) -> None:
    long = ", ".join(["a"] * 300)
    assert family.text_length == family.unread([long])[long].limit == TEXT_LENGTH - 1


def test_a_trigger_with_numbers_in_it_is_not_cleaned_away(family: PixArtSigma) -> None:
    """As the pipeline's call would where ftfy and bs4 are installed, though its encode_prompt by itself would not."""
    assert family.pipeline_prompts(["photo of jc6640"])["clean_caption"] is False
    with_number, without = (family.encode_text([text])["text"] for text in ("photo of jc6640", "photo of"))
    assert with_number.shape[1] > without.shape[1]


@torch.no_grad()
def test_the_noise_is_the_first_half_of_the_answer(family: PixArtSigma, pipeline: Any) -> None:
    noisy, t_B = draw(1, 4, 8, 12), torch.tensor([0.4321], dtype=torch.float64)
    text = family.encode_text(CAPTIONS[:1])
    whole = pipeline.transformer(
        noisy,
        encoder_hidden_states=text["text"],
        timestep=torch.tensor([432]),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    assert whole.shape[1] == 8 and torch.equal(family.predict(noisy, t_B, text), whole[:, :4])


@torch.no_grad()
def test_steps_over_the_predictions_end_in_the_pipeline_s_latents(family: PixArtSigma, pipeline: Any) -> None:
    """DDIM's (Song et al. 2021), at a size that the position embedding was not made for."""
    latents, text = draw(2, 4, 8, 12), family.encode_text(CAPTIONS)
    ddim: Any = DDIMScheduler.from_config(pipeline.scheduler.config)
    theirs = PixArtSigmaPipeline(**{**pipeline.components, "scheduler": ddim})
    theirs.set_progress_bar_config(disable=True)
    painted = theirs(
        list(CAPTIONS),
        height=16,
        width=24,
        num_inference_steps=3,
        guidance_scale=1.0,
        latents=latents,
        use_resolution_binning=False,
        clean_caption=False,
        output_type="latent",
    ).images
    for step in ddim.timesteps:
        t_B = ((step.double() + 0.5) / 1000).expand(2)
        latents = ddim.step(family.predict(latents, t_B, text), step, latents).prev_sample
    torch.testing.assert_close(latents, painted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("told", [True, None], ids=["told", "told by its size of 128"])
def test_a_transformer_that_is_told_sizes_is_refused(tmp_path: Path, told: bool | None) -> None:
    """What PixArt-alpha's is told, at 1024 pixels by default; Sigma's pipeline would tell it nothing and fail."""
    folder = write_tiny_pixart(tmp_path / "pixart", is_told_sizes=True)
    if told is None:
        file = folder / "transformer" / "config.json"
        config = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps({**config, "use_additional_conditions": None, "sample_size": 128}), "utf-8")
    with raises_code("family.other_conditions") as caught:
        load_family(str(folder))
    assert str(caught.value) == (
        f"{folder}: the transformer is told a picture's size, as PixArt-alpha's is, and this pipeline tells it "
        "nothing; use a PixArt-Sigma base"
    )


def test_comfyui_knows_the_layers_of_a_file_in_diffusers_format(family: PixArtSigma) -> None:
    injection = inject(
        family.networks, {"transformer": LoraSpec(2, 2.0, family.default_targets["transformer"])}, seed=0
    )
    weights = injection.weights()
    injection.eject()
    (file,) = DIFFUSERS.write(weights)
    layers = {name.rpartition(".lora_")[0] for name in file.tensors}
    assert len(layers) == 2 * 8  # two blocks of two attentions
    assert {layer.removeprefix("transformer.transformer_blocks.").partition(".")[2] for layer in layers} <= IN_COMFYUI


@pytest.mark.slow
def test_peft_reads_an_adapter_into_the_pipeline_s_transformer(
    folder: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers has no reader of its own: neither the pipeline's ``load_lora_weights`` nor ``add_adapter``."""
    without_rehearsals(monkeypatch)
    assert not hasattr(PixArtSigmaPipeline, "load_lora_weights")
    config = quick_config(folder, tiny_pictures, tmp_path / "run", train={"learning_rate": 0.05})
    run_training(config.model_copy(update={"output": config.output.model_copy(update={"formats": ("peft",)})}))
    family = load_family(str(folder))
    with apply_adapter(family.networks, load(tmp_path / "run", family.networks).weights):
        own = generate(family, ["a red cross"], [3], steps=2, guidance=1.0)[0]
    theirs = load_family(str(folder))
    places = [file.parent for file in (tmp_path / "run").rglob("adapter_config.json") if "checkpoint" not in str(file)]
    assert isinstance(theirs, PixArtSigma) and len(places) == 1
    pipeline: Any = theirs.pipeline()
    pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, places[0])
    painted = generate(theirs, ["a red cross"], [3], steps=2, guidance=1.0)[0]
    plain = generate(load_family(str(folder)), ["a red cross"], [3], steps=2, guidance=1.0)[0]
    one, other, before = (np.asarray(picture, dtype=np.int32) for picture in (own, painted, plain))
    assert np.abs(one - other).max() <= 2 < np.abs(one - before).max()

"""What is peculiar to Krea 2, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Krea2Pipeline
from torch import Tensor

from tests.families.krea2 import LAYERS, write_tiny_krea2
from tests.families.qwen_parts import PREFIX, SUFFIX
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.family.abstract import make_network, read_configs
from veneer.family.krea2 import Krea2
from veneer.family.protocol import Conditioning
from veneer.family.published import read_published
from veneer.family.registry import load_family
from veneer.sample.generate import generate

LONG = ", ".join(["many words"] * 300)
CAPTIONS = ["", "a {} cat {0}", "the dog that sees a cat", LONG]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_krea2(tmp_path_factory.mktemp("base") / "krea2")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = Krea2Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(folder: Path) -> Krea2:
    family = load_family(str(folder))
    assert isinstance(family, Krea2)
    return family


@torch.no_grad()
def test_captions_alone_are_the_tokens_that_the_pipeline_s_padded_batch_shows(family: Krea2, pipeline: Any) -> None:
    """The five tokens behind a caption stand behind its padding there, at the places that they have without it."""
    text, mask = pipeline.encode_prompt(CAPTIONS, "cpu")
    assert text.shape[1:3] == (512, len(LAYERS)) and mask[:, -5:].all() and not mask[:3, -6].any()
    for row, caption in enumerate(CAPTIONS):
        own = family.encode_text([caption])["text"][0]
        torch.testing.assert_close(own, text[row][mask[row]], rtol=1e-4, atol=1e-5)
    assert mask[3].all() and family.text_length == 507


@torch.no_grad()
def test_the_layers_are_stacked_in_the_pipeline_s_order(family: Krea2, pipeline: Any) -> None:
    ids = pipeline.tokenizer(PREFIX + "a cat" + SUFFIX, return_tensors="pt").input_ids
    states = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states
    expected = torch.stack([states[layer] for layer in LAYERS], dim=2)[:, 34:]
    torch.testing.assert_close(family.encode_text(["a cat"])["text"], expected)
    assert not torch.allclose(expected[:, :, 0], expected[:, :, 1])


def test_the_published_bases_stack_twelve_layers() -> None:
    """Where no model_index.json names them, diffusers' pipeline has them so, and the transformer takes as many."""
    default = [2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35]
    published = read_published("krea2-raw").parts
    family = Krea2.abstract(published, torch.bfloat16)
    assert list(family._layers()) == default
    assert published["transformer"]["num_text_layers"] == len(default)


@torch.no_grad()
def test_padding_between_a_caption_and_what_follows_it_changes_nothing(family: Krea2, pipeline: Any) -> None:
    """The transformer gives all tokens of a text one place, so it may be left out."""
    noisy, t_B = torch.randn(2, 4, 4, 6), torch.tensor([0.2, 0.7], dtype=torch.float64)
    text, mask = pipeline.encode_prompt(CAPTIONS[1:3], "cpu")
    own = Conditioning.cat([family.encode_text([caption]) for caption in CAPTIONS[1:3]])
    padded = Conditioning({"text": text, "mask": mask})
    assert own["text"].shape[1] < 64 < text.shape[1]
    answer = family.predict(noisy, t_B, own)
    torch.testing.assert_close(family.predict(noisy, t_B, padded), answer, rtol=1e-4, atol=1e-5)
    unmasked = Conditioning({"text": text, "mask": torch.ones_like(mask)})
    assert not torch.allclose(family.predict(noisy, t_B, unmasked), answer, rtol=1e-3, atol=1e-4)


def test_queries_are_wider_than_keys_and_values() -> None:
    """A fused layer of all three must not be cut into three equal parts."""
    transformer = make_network(_transformer(), dict(read_published("krea2-raw").parts["transformer"]), torch.bfloat16)
    injection = inject({"transformer": transformer}, {"transformer": LoraSpec(16, 16.0, ("to_q", "to_k", "to_v"))}, 0)
    try:
        shapes = {name.split("attn.")[1]: tuple(p.shape) for name, p in injection.named_parameters() if ".27." in name}
    finally:
        injection.eject()
    ups = {name.partition(".")[0]: shape for name, shape in shapes.items() if "lora_B" in name}
    assert ups == {"to_q": (6144, 16), "to_k": (1536, 16), "to_v": (1536, 16)}


def _transformer() -> Any:
    from diffusers import Krea2Transformer2DModel

    return Krea2Transformer2DModel


@pytest.mark.slow
def test_a_scale_of_guidance_is_one_more_than_the_pipeline_s(family: Krea2, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline adds its scale times the difference; with 0 it does not guide, so a scale of 1 is none here."""
    monkeypatch.setattr(family, "resolution", 16)
    own = painted(generate(family, ["a cat", "the dog"], [1, 2], steps=2, guidance=3.0))
    call = family.pipeline()
    call.set_progress_bar_config(disable=True)

    def theirs(scale: float) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        sizes = {"height": 16, "width": 16, "num_inference_steps": 2}
        return painted(call(["a cat", "the dog"], guidance_scale=scale, generator=generators, **sizes).images)

    assert torch.equal(own, theirs(2.0))
    plain = painted(generate(family, ["a cat", "the dog"], [1, 2], steps=2, guidance=1.0))
    assert torch.equal(plain, theirs(0.0)) and not torch.equal(plain, own)


def painted(images: Any) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def test_turbo_is_told_from_raw_by_its_model_index(family: Krea2, tmp_path: Path) -> None:
    turbo = load_family(str(write_tiny_krea2(tmp_path / "turbo", is_distilled=True)))
    assert isinstance(turbo, Krea2)
    assert family.distilled is None and turbo.distilled is not None and "Raw" in turbo.distilled
    assert turbo.pipeline().config.is_distilled and not family.pipeline().config.is_distilled


def test_a_plan_of_a_folder_knows_what_its_model_index_says(folder: Path, tmp_path: Path) -> None:
    turbo = write_tiny_krea2(tmp_path / "turbo", is_distilled=True)
    raw, other = (
        Krea2.abstract(read_configs(str(place), Krea2.config_names()), torch.float32) for place in (folder, turbo)
    )
    assert list(raw._layers()) == list(other._layers()) == list(LAYERS)
    assert raw.distilled is None and other.distilled is not None


def test_the_shift_is_the_scheduler_s_by_the_picture_s_size(family: Krea2) -> None:
    """musubi-tuner documents about 1.6 at 256 x 256, 2.5 at 1024 x 1024 and 3.2 at 1280 x 1280 pixels."""
    assert family.default_density == "logit_normal" and family.default_shift == "resolution"
    shifts = [family.resolution_shift(side * family.multiple, side * family.multiple) for side in (16, 64, 80)]
    assert shifts == pytest.approx([1.6, 2.5, 3.2], abs=0.06)

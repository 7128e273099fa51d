"""Lumina 2's peculiarities against diffusers' own pipeline; what all families share is in ``test_families``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from diffusers.loaders import lora_conversion_utils as convert
from torch import Tensor, nn

from tests.families import CAPTIONS
from tests.families.lumina2 import write_tiny_lumina2
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.family.abstract import make_network
from veneer.family.key_names.lumina2 import lumina2_names
from veneer.family.key_names.network import dotted_in_comfy, names_in
from veneer.family.lumina2 import Lumina2
from veneer.family.published import read_published
from veneer.weights.formats.comfy import COMFY
from veneer.weights.formats.protocol import BaseNames


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipeline = Lumina2Pipeline.from_pretrained(write_tiny_lumina2(tmp_path_factory.mktemp("base") / "lumina"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def family(pipeline: Any) -> Lumina2:
    return Lumina2(pipeline.components)


@torch.no_grad()
def test_text_is_that_of_the_pipeline_with_its_system_prompt(family: Lumina2, pipeline: Any) -> None:
    text, mask, _, _ = pipeline.encode_prompt(list(CAPTIONS), do_classifier_free_guidance=False)
    own = family.encode_text(CAPTIONS)
    longest = int(mask.sum(dim=1).max())
    assert longest < 256 and own["text"].shape[1] == longest
    assert torch.equal(own["text"], text[:, :longest]) and torch.equal(own["mask"], mask[:, :longest].bool())


@torch.no_grad()
def test_an_empty_caption_is_what_the_pipeline_guides_away_from(family: Lumina2, pipeline: Any) -> None:
    """It has no system prompt: of it only the mark is left with which Gemma begins a text."""
    text, mask, bare, bare_mask = pipeline.encode_prompt(list(CAPTIONS[:1]), negative_prompt="")
    own = family.encode_text(["", CAPTIONS[0]])
    assert own["mask"].sum(dim=1).tolist() == [int(bare_mask.sum()), int(mask.sum())] and int(bare_mask.sum()) == 1
    length = own["text"].shape[1]
    assert torch.equal(own["text"][0], bare[0, :length]) and torch.equal(own["text"][1], text[0, :length])
    alone = family.encode_text([""])
    assert alone["text"].shape[1] == 1 and torch.equal(alone["text"][0], bare[0, :1])


@torch.no_grad()
def test_a_caption_is_read_up_to_the_256th_token_with_its_system_prompt(family: Lumina2) -> None:
    whole = "a" * family.text_length
    assert 0 < family.text_length < 128 and not family.unread([whole])
    assert family.unread([f"{whole}b"])[f"{whole}b"].limit == len(whole)
    own = family.encode_text([whole])["text"]
    assert torch.equal(family.encode_text([f"{whole}b"])["text"], own)
    assert not torch.equal(family.encode_text([f"{whole[:-1]}b"])["text"], own)


class Spy(nn.Module):
    """A transformer that remembers what it was given and answers with the pictures."""

    dtype = torch.float32

    def forward(self, hidden_states: Tensor, timestep: Tensor, **texts: Tensor) -> Any:
        self.timestep, self.texts = timestep, texts
        return SimpleNamespace(sample=hidden_states)


@torch.no_grad()
def test_time_runs_from_noise_to_picture_unscaled_and_the_answer_is_turned(family: Lumina2) -> None:
    spy = Spy()
    family._denoiser = spy
    noisy, sigma_B = torch.randn(2, 4, 4, 6), torch.tensor([0.25, 1.0], dtype=torch.float64)
    text = family.encode_text(CAPTIONS)
    assert torch.equal(family.predict(noisy, sigma_B, text), -noisy)
    assert torch.equal(spy.timestep, torch.tensor([0.75, 0.0]))
    assert torch.equal(spy.texts["encoder_attention_mask"], text["mask"])


@torch.no_grad()
def test_texts_that_are_longer_than_need_be_change_nothing(family: Lumina2) -> None:
    """A batch of cached texts may be cut from a longer one."""
    noisy, sigma_B = torch.randn(2, 4, 4, 6), torch.tensor([0.25, 0.5], dtype=torch.float64)
    long, short = family.encode_text(["a", "a b", CAPTIONS[1]]).rows([0, 1]), family.encode_text(["a", "a b"])
    assert long["text"].shape[1] > short["text"].shape[1]
    expected = family.predict(noisy, sigma_B, short)
    torch.testing.assert_close(family.predict(noisy, sigma_B, long), expected, rtol=1e-5, atol=1e-6)


def test_comfyui_s_file_of_all_layers_is_what_diffusers_makes_of_it() -> None:
    """diffusers' converter asks for all layers of a block, and has the real base's widths written into it."""
    config = {**read_published("lumina2").parts["transformer"], "num_layers": 1, "num_refiner_layers": 1}
    network = make_network(Lumina2Transformer2DModel, config, torch.float32)
    layers = {path: layer for path, layer in layers_of({"transformer": network}).items() if _is_in_blocks(path)}
    weights = {path: _random_factors(*layer.weight.shape) for path, layer in layers.items()}
    names = {
        "kohya": names_in("transformer", network, lumina2_names),
        "comfy": dotted_in_comfy("transformer", network, lumina2_names),
    }
    (file,) = COMFY.write(weights, BaseNames.of({"transformer": network}, names))
    assert "diffusion_model.layers.0.attention.qkv.lora_down.weight" in file.tensors
    theirs = convert._convert_non_diffusers_lumina2_lora_to_diffusers(
        {_as_peft(name): tensor for name, tensor in file.tensors.items() if not name.endswith(".alpha")}
    )
    assert len(theirs) == 2 * len(weights)
    for path, own in weights.items():
        down, up = (theirs[f"{path}.lora_{letter}.weight"] for letter in "AB")
        x = torch.randn(down.shape[1], 2)
        torch.testing.assert_close(up @ (down @ x), own.up @ (own.down @ x), rtol=1e-4, atol=1e-3)


def _is_in_blocks(path: str) -> bool:
    return path.split(".")[1] in ("layers", "noise_refiner", "context_refiner")


def _random_factors(outputs: int, inputs: int) -> LoraFactors:
    return LoraFactors(torch.randn(2, inputs), torch.randn(outputs, 2), 2.0)


def _as_peft(name: str) -> str:
    return name.replace("lora_down", "lora_A").replace("lora_up", "lora_B")

"""Chroma 1 against diffusers: what is peculiar to it; ``test_families.py`` has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.families import CAPTIONS
from tests.families.chroma import CASE
from veneer.data.transform import Geometry
from veneer.engine.memory_levels import prepare
from veneer.family.protocol import Conditioning, Family
from veneer.family.registry import load_family


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CASE.write(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return diffusers.ChromaPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return load_family(str(folder))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioning_of(family: Family) -> Conditioning:
    return family.condition(family.encode_text(CAPTIONS), [Geometry.whole(16, 16)] * 2)


@torch.no_grad()
def test_texts_and_their_mask_are_the_pipeline_s(family: Family, pipeline: Any) -> None:
    """The mask keeps a caption's tokens, and one of padding behind them."""
    text, _, mask, *_ = pipeline.encode_prompt(list(CAPTIONS), device="cpu", do_classifier_free_guidance=False)
    own = family.encode_text(CAPTIONS)
    assert torch.equal(own["text"], text) and torch.equal(own["mask"], mask)
    tokens = [len(pipeline.tokenizer(caption).input_ids) for caption in CAPTIONS]
    assert own["mask"].sum(dim=1).tolist() == [count + 1 for count in tokens]


@torch.no_grad()
def test_the_mask_is_of_numbers_as_in_the_pipeline(family: Family, pipeline: Any) -> None:
    """A boolean mask, which keeps padding out, gives something else: diffusers 0.42.1 adds the mask to the scores."""
    noisy, t_B = draw(2, 4, 8, 8), torch.tensor([0.3, 0.8], dtype=torch.float64)
    text, text_ids, mask, *_ = pipeline.encode_prompt(list(CAPTIONS), device="cpu", do_classifier_free_guidance=False)
    tokens = pipeline._pack_latents(noisy, *noisy.shape)
    whole = torch.cat([mask, mask.new_ones(2, tokens.shape[1])], dim=1)

    def answer(mask_BL: Tensor) -> Tensor:
        places = pipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
        told = {"encoder_hidden_states": text, "txt_ids": text_ids, "img_ids": places, "attention_mask": mask_BL}
        output: Tensor = pipeline.transformer(hidden_states=tokens, timestep=t_B.float(), **told).sample
        return output

    own = pipeline._pack_latents(family.predict(noisy, t_B, conditioning_of(family)), *noisy.shape)
    assert torch.equal(own, answer(whole))
    assert (own - answer(whole.bool())).abs().max() > 1e-4


def test_recomputed_blocks_see_the_mask(family: Family) -> None:
    """diffusers' own checkpointing leaves the mask out of single blocks' calls, and so gives another prediction."""
    noisy, t_B = draw(2, 4, 8, 8), torch.tensor([0.3, 0.8], dtype=torch.float64)
    conditioning = conditioning_of(family)
    expected = family.predict(noisy, t_B, conditioning).detach()
    transformer: Any = family.networks["transformer"]
    prepared = prepare(transformer, "checkpoint")
    try:
        noisy.requires_grad_()
        torch.testing.assert_close(family.predict(noisy, t_B, conditioning), expected, rtol=1e-5, atol=1e-6)
    finally:
        prepared.undo()
    transformer.enable_gradient_checkpointing()
    try:
        torch.testing.assert_close(family.predict(noisy, t_B, conditioning), expected, rtol=1e-5, atol=1e-6)
    finally:
        transformer.disable_gradient_checkpointing()
        vars(transformer).pop("_gradient_checkpointing_func", None)


def test_the_network_of_modulations_is_no_default_target(family: Family) -> None:
    targets = family.default_targets["transformer"]
    paths = [name for name, _ in family.networks["transformer"].named_modules() if name.endswith(targets)]
    assert paths and not any(name.startswith("distilled_guidance_layer") for name in paths)
    blocks = {tuple(name.split(".")[:2]) for name in paths}
    assert len(blocks) == 4, "every block of both kinds"


def test_times_are_drawn_as_its_trainers_do(family: Family) -> None:
    """The author's density 2 - 7.7 (t - 1/2)^2 is a bell in the middle, as the logit-normal one is; no shift."""
    assert (family.default_density, family.default_shift) == ("logit_normal", 1.0)


def test_there_is_no_adapter_on_its_text_encoder(family: Family) -> None:
    assert family.networks.keys() == {"transformer"} and family.text_encoders == ("text_encoder",)

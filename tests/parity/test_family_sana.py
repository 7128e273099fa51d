"""What Sana has of its own, against diffusers' pipeline; what families share is in ``test_families``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SanaPipeline
from torch import Tensor

from tests.errors import raises_code
from tests.families import CAPTIONS
from tests.families.sana import instruction, write_tiny_sana
from veneer.family.registry import load_family
from veneer.family.sana import Sana
from veneer.sample.generate import generate

TEXT_LENGTH = 300
TIMES = torch.tensor([0.25, 0.8], dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sana(tmp_path_factory.mktemp("base") / "sana")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = SanaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(pipeline: Any) -> Sana:
    return Sana(pipeline.components)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_text_is_the_pipeline_s_without_its_padding(family: Sana, pipeline: Any) -> None:
    text, mask, _, _ = pipeline.encode_prompt(
        list(CAPTIONS), do_classifier_free_guidance=False, complex_human_instruction=instruction()
    )
    own = family.encode_text(CAPTIONS)
    length = own["text"].shape[1]
    assert text.shape[1] == TEXT_LENGTH and length == int(mask.sum(dim=1).max()) < TEXT_LENGTH
    assert torch.equal(own["text"], text[:, :length]) and torch.equal(own["mask"], mask[:, :length].bool())


@torch.no_grad()
def test_text_is_the_begin_mark_and_what_follows_the_instruction(family: Sana, pipeline: Any) -> None:
    """From the text encoder itself, of a caption in small letters, with nothing padded."""
    before = "\n".join(instruction())
    ids = pipeline.tokenizer([before + "a cat"], return_tensors="pt").input_ids
    states = pipeline.text_encoder(ids).last_hidden_state
    first = len(pipeline.tokenizer.encode(before)) - 1  # the instruction's last token
    own = family.encode_text(["  A Cat "])
    assert own["mask"].all() and own["text"].shape[1] == 1 + 1 + len("a cat")
    torch.testing.assert_close(own["text"], torch.cat([states[:, :1], states[:, first:]], dim=1), rtol=1e-4, atol=1e-5)


def test_the_first_text_changes_no_setting(folder: Path) -> None:
    """The pipeline moves the padding to the right, which transformers has on the left: a run would not be resumed."""
    family = load_family(str(folder))
    before = dict(family.settings)
    family.encode_text(["a cat"])
    assert family.settings == before


def test_a_long_caption_is_one_of_which_the_pipeline_reads_298_tokens(family: Sana) -> None:
    long = "a" * 299
    assert family.unread(["a" * 298]) == {}
    assert family.text_length == family.unread([long])[long].limit == TEXT_LENGTH - 2
    assert torch.equal(family.encode_text([long])["text"], family.encode_text([long[:298]])["text"])


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_time_is_a_thousand_sigma_and_the_transformer_s_own_scale(family: Sana, scale: float) -> None:
    """Sana Sprint's transformers have another one, so that it must be read from the configuration."""
    times = []
    before = family._denoiser.config.timestep_scale
    hook = family._denoiser.time_embed.register_forward_pre_hook(lambda _, arguments: times.append(arguments[0]))
    family._denoiser.register_to_config(timestep_scale=scale)
    family.predict(draw(2, 4, 4, 6), TIMES, family.encode_text(CAPTIONS))
    family._denoiser.register_to_config(timestep_scale=before)
    hook.remove()
    torch.testing.assert_close(times[0], torch.tensor([250.0, 800.0]) * scale, rtol=0, atol=0)


def test_a_picture_is_one_latent_without_a_deviation(family: Sana) -> None:
    posterior = family.encode_image(draw(1, 3, 128, 192).clamp(-1, 1))
    assert posterior.mean.shape == (1, 4, 4, 6) and not posterior.std.any()
    assert (family.multiple, family.resolution) == (32, 128)


def test_flow_is_what_the_scheduler_predicts_not_what_it_is(pipeline: Any, tmp_path: Path) -> None:
    euler = Sana({**pipeline.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0)})
    assert isinstance(Sana(pipeline.components)._parts["scheduler"], DPMSolverMultistepScheduler)
    assert (Sana(pipeline.components).default_shift, euler.default_shift) == (3.0, 5.0)
    folder = write_tiny_sana(tmp_path / "sana", prediction_type="epsilon", use_flow_sigmas=False)
    with raises_code("family.wrong_scheduler") as caught:
        load_family(str(folder))
    assert str(caught.value) == (
        f"{folder}: the scheduler predicts 'epsilon', and this base's transformer a flow; "
        "take its own scheduler, whose prediction_type is flow_prediction"
    )


@torch.no_grad()
def test_pictures_have_the_size_that_is_asked_for(folder: Path) -> None:
    """The pipeline's bins are of a megapixel, and it knows none for a base of another size."""
    picture = generate(load_family(str(folder)), ["a cat"], [0], steps=1, guidance=4.0)[0]
    assert picture.size == (128, 128)

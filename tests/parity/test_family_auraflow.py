"""What AuraFlow has of its own, against diffusers' pipeline; what families share is in ``test_families``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AuraFlowPipeline
from torch import Tensor

from tests.errors import raises_code
from tests.families import CAPTIONS
from tests.families.auraflow import velocity, write_tiny_auraflow
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.data.transform import Geometry
from veneer.family.auraflow import AuraFlow
from veneer.sample.generate import generate

TIMES = torch.tensor([0.25, 0.8], dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_auraflow(tmp_path_factory.mktemp("base") / "auraflow")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = AuraFlowPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def family(pipeline: Any) -> AuraFlow:
    return AuraFlow(pipeline.components)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("windows", [1, 3])
def test_text_is_encoded_as_the_pipeline_does_in_as_many_tokens(family: AuraFlow, pipeline: Any, windows: int) -> None:
    """Pony V7 was trained with 768 tokens, AuraFlow with 256."""
    family.use_token_windows(windows)
    length = windows * 256
    text, mask, _, _ = pipeline.encode_prompt(
        list(CAPTIONS), do_classifier_free_guidance=False, max_sequence_length=length
    )
    own = family.encode_text(CAPTIONS)
    assert own.tensors.keys() == {"text"} and text.shape[1] == length
    assert torch.equal(own["text"], text)
    real = mask.reshape(2, length, -1)[..., 0].bool()
    assert not own["text"][~real].any() and own["text"][real].any(dim=-1).all()
    long = "a" * 1000
    assert family.text_length == family.unread([long])[long].limit == length - 1
    assert family.pipeline_prompts(["a"]) == {"prompt": ["a"], "max_sequence_length": length}


@torch.no_grad()
def test_the_transformer_sees_the_zeros_so_that_their_number_matters(family: AuraFlow, pipeline: Any) -> None:
    noisy = draw(2, 4, 8, 12)
    short = family.predict(noisy, TIMES, family.encode_text(CAPTIONS))
    family.use_token_windows(3)
    long = family.predict(noisy, TIMES, family.encode_text(CAPTIONS))
    expected = velocity(pipeline, noisy, TIMES.float(), CAPTIONS, max_sequence_length=768)
    torch.testing.assert_close(long, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(short, long, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_pictures_are_painted_with_texts_of_all_windows(family: AuraFlow, pipeline: Any) -> None:
    family.use_token_windows(2)
    family.resolution, seen = 32, []
    hook = pipeline.transformer.context_embedder.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )
    generate(family, ["a cat"], [0], steps=1, guidance=4.0)
    hook.remove()
    assert [text.shape for text in seen] == [(2, 512, 16)]  # one batch, without the text and with it


def test_the_transformer_is_told_sigma(family: AuraFlow) -> None:
    times = []
    hook = family._denoiser.time_step_embed.register_forward_pre_hook(lambda _, arguments: times.append(arguments[0]))
    with torch.no_grad():
        family.predict(draw(2, 4, 8, 8), TIMES, family.encode_text(CAPTIONS))
    hook.remove()
    assert torch.equal(times[0], TIMES.float()) and family.default_shift == 1.73


@torch.no_grad()
def test_a_picture_beyond_the_grid_of_places_is_refused_for_the_transformer_takes_wrong_ones(family: AuraFlow) -> None:
    """Of a picture that is too wide each row begins with places of the row above it: there is no error."""
    text, embedding = family.encode_text(CAPTIONS[:1]), family._denoiser.pos_embed
    family.condition(text, [Geometry.whole(64, 64)])
    wide = embedding.pe_selection_index_based_on_dim(32, 40).view(16, 20)
    assert wide[1, 0] < 16 and wide[0, 0] < 0
    with raises_code("family.too_large"):
        family.condition(text, [Geometry.whole(64, 80)])


def test_default_targets_are_attention_of_both_kinds_of_blocks(family: AuraFlow) -> None:
    injection = inject(
        family.networks, {"transformer": LoraSpec(2, 2.0, family.default_targets["transformer"])}, seed=0
    )
    layers = [path.partition(".")[2] for path in injection.parameter_counts()]
    injection.eject()
    assert len(layers) == 2 * 8 + 2 * 4
    assert sum(path.startswith("joint_transformer_blocks") for path in layers) == 16

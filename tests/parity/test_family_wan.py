"""Wan's peculiarities against diffusers' own pipeline; what all families share is in ``test_families``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline

from tests.errors import raises_code
from tests.families import CAPTIONS
from tests.families.wan import decode, encode, velocity, write_tiny_wan
from tests.training import tiny_config
from veneer.data.transform import Geometry
from veneer.family.protocol import Conditioning
from veneer.family.registry import load_family
from veneer.family.wan import Wan
from veneer.plan.abstract import abstract_base
from veneer.plan.tracer import MemoryTracer


@pytest.fixture(scope="module", params=[False, True], ids=["one time", "time of each token"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_wan(tmp_path_factory.mktemp("base") / "wan", expand_timesteps=request.param)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return WanPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def family(folder: Path) -> Wan:
    family = load_family(str(folder))
    assert isinstance(family, Wan)
    return family


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_clips_are_latents_with_an_axis_of_time(family: Wan, pipeline: Any) -> None:
    clip = draw(1, 3, 5, 16, 24).clamp(-1, 1)
    own, (mean, std) = family.encode_image(clip), encode(pipeline, clip)
    assert own.mean.shape == (1, 4, 3, 8, 12)  # the first frame alone, then two by two
    torch.testing.assert_close(own.mean, mean)
    torch.testing.assert_close(own.std, std)
    assert family.decode(own.mean).shape == clip.shape
    torch.testing.assert_close(family.decode(own.mean), decode(pipeline, own.mean).clamp(-1, 1))


@torch.no_grad()
def test_a_clip_s_prediction_is_the_pipeline_s(family: Wan, pipeline: Any) -> None:
    noisy, t_B = draw(2, 4, 3, 8, 12), torch.tensor([0.1, 0.7], dtype=torch.float64)
    text = Conditioning.cat([family.encode_text([caption]) for caption in CAPTIONS])
    conditioning = family.condition(text, [Geometry.whole(16, 24)] * 2)
    expected = velocity(pipeline, noisy, t_B.float(), CAPTIONS)
    torch.testing.assert_close(family.predict(noisy, t_B, conditioning), expected)


@torch.no_grad()
def test_a_text_has_no_padding_until_the_transformer_gets_it(family: Wan, pipeline: Any) -> None:
    """The pipeline puts zeros behind it up to 512 tokens, which the transformer attends to."""
    text, _ = pipeline.encode_prompt(CAPTIONS[0], max_sequence_length=512)
    own = family.encode_text(CAPTIONS[:1])
    length = own["text"].shape[1]
    assert length < 20 and own["mask"].sum() == length
    torch.testing.assert_close(own["text"], text[:, :length])
    assert text.shape[1] == 512 and not text[:, length:].any()


def test_its_clips_have_so_many_frames(family: Wan) -> None:
    assert (family.frame_stride, family.frame_rate) == (2, 16.0)


@pytest.mark.parametrize(("name", "rate"), [("wan21-14b", 16.0), ("wan22-5b", 24.0)])
def test_published_sizes_take_4k_and_1_frames(name: str, rate: float, tmp_path: Path) -> None:
    base = abstract_base(tiny_config(tmp_path, base=name), MemoryTracer(torch.device("cpu")))
    assert (base.frame_stride, base.frame_rate) == (4, rate)


@pytest.mark.parametrize("name", ["WanImageToVideoPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"])
def test_a_base_of_image_to_video_is_recognised(name: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}), "utf-8")
    with raises_code("base.image_to_video", str(tmp_path / "model_index.json")):
        load_family(str(tmp_path))


def test_a_transformer_that_takes_a_first_frame_is_refused(tmp_path: Path) -> None:
    """Of 36 channels 16 are noisy, 4 say which frames are given, and 16 are those; here 4, 2 and 4."""
    folder = write_tiny_wan(tmp_path / "wan", taken=10)
    with raises_code("base.image_to_video"):
        load_family(str(folder))

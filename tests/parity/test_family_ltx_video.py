"""LTX-Video's peculiarities against diffusers' own pipeline; what all families share is in ``test_families``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXPipeline
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

from tests.families import CAPTIONS
from tests.families.ltx_video import encode, velocity, write_tiny_ltx
from veneer.config.objective_config import ObjectiveConfig
from veneer.data.transform import Geometry
from veneer.family.ltx_video import LtxVideo
from veneer.family.protocol import Conditioning
from veneer.family.registry import load_family
from veneer.objective.loss import Objective


@pytest.fixture(scope="module", params=[False, True], ids=["0.9.0", "decodes by a time"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ltx(tmp_path_factory.mktemp("base") / "ltx", decodes_by_time=request.param)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = LTXPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(folder: Path) -> LtxVideo:
    family = load_family(str(folder))
    assert isinstance(family, LtxVideo)
    return family


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_latents_are_decoded_as_the_pipeline_decodes_what_it_painted(family: LtxVideo, pipeline: Any) -> None:
    size: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 2, "guidance_scale": 1.0}
    tokens, pixels = (
        pipeline("a cat", **size, latents=draw(1, 16, 4), output_type=kind).frames for kind in ("latent", "pt")
    )
    own = family.decode(pipeline._unpack_latents(tokens, 1, 4, 4))
    torch.testing.assert_close(own * 0.5 + 0.5, pixels[:, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_clip_s_latents_and_prediction_are_the_pipeline_s(family: LtxVideo, pipeline: Any) -> None:
    clip = draw(2, 3, 5, 32, 48).clamp(-1, 1)
    own, (mean, std) = family.encode_image(clip), encode(pipeline, clip)
    assert own.mean.shape == (2, 4, 3, 4, 6)  # the first frame alone, then two by two
    torch.testing.assert_close(own.mean, mean)
    torch.testing.assert_close(own.std, std)
    noisy, t_B = draw(*own.mean.shape), torch.tensor([0.1, 0.7], dtype=torch.float64)
    text = Conditioning.cat([family.encode_text([caption]) for caption in CAPTIONS])
    conditioning = family.condition(text, [Geometry.whole(32, 48)] * 2)
    expected = velocity(pipeline, noisy, t_B.float(), CAPTIONS)
    torch.testing.assert_close(family.predict(noisy, t_B, conditioning), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_t5_reads_the_padding_that_the_transformer_masks(family: LtxVideo, pipeline: Any) -> None:
    text, mask, _, _ = pipeline.encode_prompt(CAPTIONS[0], do_classifier_free_guidance=False)
    own = family.encode_text(CAPTIONS[:1])
    length = own["text"].shape[1]
    assert text.shape[1] == 128 and int(mask.sum()) == length < 20
    torch.testing.assert_close(own["text"], text[:, :length])


@torch.no_grad()
def test_frames_are_placed_by_each_clip_s_own_rate(family: LtxVideo, pipeline: Any) -> None:
    """The pipeline is told one rate of a whole batch."""
    noisy, t_B = draw(2, 4, 3, 4, 6), torch.tensor([0.1, 0.7], dtype=torch.float64)
    text = Conditioning.cat([family.encode_text([caption]) for caption in CAPTIONS])
    rates = (24.0, 30.0)
    geometries = [replace(Geometry.whole(32, 48, 5), frame_rate=rate) for rate in rates]
    both = family.predict(noisy, t_B, family.condition(text, geometries))
    for row, rate in enumerate(rates):
        expected = velocity(pipeline, noisy, t_B.float(), CAPTIONS, frame_rate=rate)
        torch.testing.assert_close(both[row], expected[row], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, velocity(pipeline, noisy, t_B.float(), CAPTIONS), atol=1e-4)


@pytest.mark.parametrize("frames", [1, 3, 5, 161])
def test_the_shift_of_times_is_that_of_the_tokens_of_all_frames(family: LtxVideo, pipeline: Any, frames: int) -> None:
    """diffusers' ``calculate_shift`` over the length of the sequence, then the scheduler's own ``time_shift``."""
    config, tokens = pipeline.scheduler.config, ((frames - 1) // 2 + 1) * 8 * 12
    mu = calculate_shift(tokens, config.base_image_seq_len, config.max_image_seq_len, 0.95, 2.05)
    expected = pipeline.scheduler.time_shift(mu, 1.0, torch.tensor(0.3, dtype=torch.float64))
    objective = Objective.from_config(ObjectiveConfig(timestep_density="uniform"), family)
    (time,) = objective.times([0.3], [Geometry.whole(64, 96, frames).extent])
    assert time == pytest.approx(float(expected), rel=1e-9)

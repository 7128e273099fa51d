"""Wan 2.2's two transformers: the one that is named learns, at its own times, and both paint, as diffusers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline

from tests.errors import raises_code
from tests.families import CAPTIONS
from tests.families.wan import paint, write_tiny_wan
from tests.running import without_rehearsals
from tests.training import tiny_config
from veneer.adapter.apply import apply_adapter
from veneer.config.base_name import BaseName
from veneer.config.objective_config import ObjectiveConfig
from veneer.data.transform import Geometry
from veneer.family.registry import load_family
from veneer.objective.loss import Objective
from veneer.plan.abstract import abstract_base
from veneer.plan.tracer import MemoryTracer
from veneer.run.session import run_training
from veneer.weights.file import FILE_NAME, load

BOUNDARY = 0.8
PARTS = {"high_noise": "transformer", "low_noise": "transformer_2"}
EXPERTS = tuple(PARTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_wan(tmp_path_factory.mktemp("base") / "wan", boundary=BOUNDARY)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return WanPipeline.from_pretrained(folder)


@pytest.fixture(scope="module", params=EXPERTS)
def expert(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def family(folder: Path, expert: str) -> Any:
    return load_family(BaseName(str(folder), expert=expert))


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_named_one_is_trained(family: Any, pipeline: Any, expert: str) -> None:
    noisy, t_B = draw(1, 4, 1, 8, 8), torch.tensor([0.8], dtype=torch.float64)
    conditioning = family.condition(family.encode_text(CAPTIONS[:1]), [Geometry.whole(16, 16)])
    text, _ = pipeline.encode_prompt(CAPTIONS[0], do_classifier_free_guidance=False, max_sequence_length=512)
    network = getattr(pipeline, PARTS[expert])
    expected = network(hidden_states=noisy, timestep=(t_B * 1000).float(), encoder_hidden_states=text).sample
    torch.testing.assert_close(family.predict(noisy, t_B, conditioning), expected)
    assert list(family.networks) == ["transformer"]


def test_it_learns_at_its_own_times(family: Any, expert: str) -> None:
    times = Objective.from_config(ObjectiveConfig(), family).times([0.0, 0.3, 0.9999], [(16, 16, 1)] * 3)
    low, high = (BOUNDARY, 1.0) if expert == "high_noise" else (0.0, BOUNDARY)
    assert bool(((times >= low) & (times <= high)).all())
    assert times[0] == pytest.approx(low) and times[2] > times[1] > times[0]


@torch.no_grad()
def test_both_paint_each_in_its_own_place(family: Any, pipeline: Any) -> None:
    latents = draw(1, 4, 1, 8, 8)
    torch.testing.assert_close(
        paint(family.pipeline(), latents, CAPTIONS[:1], 4), paint(pipeline, latents, CAPTIONS[:1], 4)
    )


def test_which_one_must_be_said(folder: Path, tmp_path: Path) -> None:
    with raises_code("family.two_denoisers"):
        load_family(str(folder))
    with raises_code("family.one_denoiser"):
        load_family(BaseName(str(write_tiny_wan(tmp_path / "one")), expert="low_noise"))


def test_their_settings_tell_them_apart(folder: Path) -> None:
    high, low = (load_family(BaseName(str(folder), expert=expert)).settings for expert in EXPERTS)
    assert (high["expert"], low["expert"]) == EXPERTS
    assert {key for key in high if high[key] != low[key]} == {"expert"}


def test_a_base_without_weights_is_planned(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, base={"path": str(folder), "expert": "low_noise"})
    abstract = abstract_base(config, MemoryTracer(torch.device("cpu")))
    assert abstract.trained_times == (0.0, BOUNDARY)


@pytest.mark.slow
def test_diffusers_reads_what_was_trained(
    folder: Path, expert: str, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of either one is read into its transformer, and paints there what Veneer paints with it."""
    without_rehearsals(monkeypatch)
    base = {"path": str(folder), "expert": expert}
    data = {"resolution": 16, "trigger": "TOK"}
    config = tiny_config(tiny_pictures, base=base, data=data, output={"dir": str(tmp_path)}, adapter={"rank": 2})
    run_training(config)
    file = tmp_path / FILE_NAME
    own, other = WanPipeline.from_pretrained(folder), load_family(BaseName(str(folder), expert=expert))
    own.load_lora_weights(file, load_into_transformer_2=expert == "low_noise")
    latents = draw(1, 4, 1, 8, 8)
    with torch.no_grad(), apply_adapter(other.networks, load(file).weights):
        wanted = paint(other.pipeline(), latents, CAPTIONS[:1], 4)
        painted = paint(own, latents, CAPTIONS[:1], 4)
    torch.testing.assert_close(painted, wanted, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(
            painted, paint(WanPipeline.from_pretrained(folder), latents, CAPTIONS[:1], 4), atol=1e-4
        )

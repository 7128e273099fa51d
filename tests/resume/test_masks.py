"""Masked runs: to the same bits wherever they stop, and what is masked is not learned, on the bundled base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.errors import raises_code
from tests.running import hashes, killed, quick_config, record_events, use_base
from tests.training import tiny_run, trainer_on
from veneer.adapter.apply import apply_adapter
from veneer.base import path as bundled
from veneer.config.load import build_config, resolve
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.evaluate.heldout import HeldOutEvaluator
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.run.resume import Resume
from veneer.train.events import Finished, StepDone

pytestmark = pytest.mark.slow


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Six pictures of two shapes, five of which have a mask of their left half."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        width = 40 if number % 2 else 20
        pixels = np.random.default_rng(number).integers(0, 256, (20, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        mask = Image.new("L", (width, 20))
        mask.paste(255, (0, 0, width // 2, 20))
        if number:
            mask.save(folder / f"{number}-masklabel.png")
    return folder


def config_of(base: Path, folder: Path, output: Path, **sections: Any) -> RunConfig:
    data = {"sources": [{"path": str(folder), "masks": "beside"}], "trigger": "sks", **sections.pop("data", {})}
    return quick_config(base, folder, output, data=data, **sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"flip": True}},
        {"data": {"flip": True, "crop": "random", "crop_jitter": 0.2}, "objective": {"unmasked_weight": 0.1}},
        {"data": {"resolution": [8, 16]}, "train": {"gradient_accumulation_steps": 2}},
        {"data": {"prior": {"prompt": "a thing", "count": 2}}, "objective": {"normalize_masked_area": False}},
        {
            "data": {"cache": "cache", "held_out": 0.34},
            "validation": {"every": 2},
            "adapter": {"text_encoders": {"text_encoder": {}}},
        },
    ],
    ids=["flip", "random", "sizes", "prior", "cache and texts"],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    family: Family,
    tiny_base: Path,
    halves: Path,
    tmp_path: Path,
    sections: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_base(monkeypatch, family)
    monkeypatch.chdir(tmp_path)
    one, two = (config_of(tiny_base, halves, tmp_path / name, **dict(sections)) for name in ("one", "two"))
    record_events(one)
    killed(two, StepDone, 3)
    record_events(two, Resume())
    assert hashes(one.output.dir) == hashes(two.output.dir)


def test_another_mask_is_another_training(
    family: Family, tiny_base: Path, halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that was edited while a run stood still is told, as an edited picture is."""
    use_base(monkeypatch, family)
    config = config_of(tiny_base, halves, tmp_path / "run")
    killed(config, StepDone, 3)
    Image.new("L", (40, 20), 255).save(halves / "1-masklabel.png")
    with raises_code("resume.run_changed"):
        record_events(config, Resume())


@pytest.fixture(scope="module")
def base() -> Family:
    return load_family(str(bundled()))


MARKS = {"trained": "red", "other": "blue"}
"""Watermarks in the last quarter of both sides, by whether an adapter saw them."""


def write_marked(folder: Path, pictures: list[Path], colour: str | None, mask: Image.Image | None) -> Path:
    folder.mkdir()
    for path in pictures:
        with Image.open(path) as image:
            marked = image.convert("RGB")
        if colour is not None:
            marked.paste(colour, (48, 48, 64, 64))
        marked.save(folder / path.name)
        (folder / f"{path.stem}.txt").write_text(f"a {path.stem.replace('-', ' ')} emoji")
        if mask is not None:
            mask.save(folder / f"{path.stem}-masklabel.png")
    return folder


def corner(side: int, inside: int) -> Image.Image:
    """A mask of the last pixels of both sides, and of what is outside."""
    mask = Image.new("L", (64, 64), 255 - inside)
    mask.paste(inside, (64 - side, 64 - side, 64, 64))
    return mask


def marked_config(base: Family, folder: Path, masks: str | None, **train: Any) -> RunConfig:
    data = {"sources": [{"path": str(folder), "masks": masks}], "held_out": 0.0}
    values = {"base": str(bundled()), "data": data, "train": train, "validation": {"draws": 4}}
    return resolve(build_config(values, "test"), base)


def test_the_right_half_of_a_masked_loss_has_no_gradient(base: Family, tmp_path: Path) -> None:
    """To the bit, on the bundled base and its own demonstration pictures."""
    pictures = sorted((Path(bundled()).parent / "demo" / "train").glob("*.png"))[:4]
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    config = marked_config(base, write_marked(tmp_path / "pictures", pictures, None, half), "beside", batch_size=4)
    kept: list[Tensor] = []

    def predict(*inputs: Any) -> Tensor:
        prediction = base.predict(*inputs)
        prediction.retain_grad()
        kept.append(prediction)
        return prediction

    with trainer_on(config, base) as trainer:
        (micro,) = trainer.batches.micro_batches(0)
        conditioning = base.condition(micro.text, micro.geometries)  # type: ignore[arg-type]
        parts = micro.latents, micro.noise, micro.t_B, conditioning, micro.mask
        trainer.context.objective.loss_B(predict, *parts).sum().backward()
    (prediction,) = kept
    assert prediction.grad is not None and micro.mask is not None
    middle = prediction.shape[-1] // 2
    assert not prediction.grad[..., middle:].any() and prediction.grad[..., :middle].all()
    assert torch.equal(micro.mask[..., :middle], torch.ones(4, 1, 8, middle))


def test_a_masked_watermark_is_not_learned(base: Family, tmp_path: Path) -> None:
    """Its gain on a watermark that it was trained with is the gain on another; without masks it is much more.

    Gains are adapter's loss by base's, on the watermarks alone of pictures that were not trained on: both fall, since
    an adapter learns what these pictures have in common.
    """
    pictures = sorted((Path(bundled()).parent / "demo" / "train").glob("*.png"))
    evaluators = {}
    for name, colour in MARKS.items():
        folder = write_marked(tmp_path / name, pictures[60:64], colour, corner(16, 255))
        config = marked_config(base, folder, "beside")
        evaluators[name] = HeldOutEvaluator(config, base, survey(config.data).train)
    before = {name: evaluator.losses().mean() for name, evaluator in evaluators.items()}
    ratios = {}
    for name, mask in {"masked": corner(24, 0), "plain": None}.items():
        folder = write_marked(tmp_path / name, pictures[:16], MARKS["trained"], mask)
        config = marked_config(base, folder, "beside" if mask else None, max_steps=40, batch_size=4, learning_rate=2e-3)
        last = tiny_run(config, base)[-1]
        assert isinstance(last, Finished)
        with apply_adapter(base.networks, last.weights):
            gains = {mark: evaluator.losses().mean() / before[mark] for mark, evaluator in evaluators.items()}
        ratios[name] = gains["trained"] / gains["other"]
    assert ratios["plain"] < 0.85 < 0.95 < ratios["masked"] < 1.05

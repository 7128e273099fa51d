"""Masks on their way from files to the loss: cut as their pictures, cached, batched, measured and planned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from tests.training import bits_of, tiny_config, tiny_run, trainer_on
from veneer.config.data_config import DataConfig
from veneer.config.schema import RunConfig
from veneer.config.source_config import SourceConfig
from veneer.data.loader import SampleDraw
from veneer.data.manifest import Sample
from veneer.data.preflight import survey
from veneer.data.transform import load_centered_mask, load_mask, load_pixels
from veneer.evaluate.heldout import HeldOutEvaluator
from veneer.family.cache import Encoder
from veneer.family.protocol import Family
from veneer.plan.pictures import PictureCounts
from veneer.plan.plan import Schedule
from veneer.train.events import Finished
from veneer.train.step import MicroBatch, _tensors_of

GRIDS = {(16, 16): (8, 8), (16, 32): (4, 8), (24, 16): (6, 4)}
"""Sizes that pictures are cut to, each with rows and columns of latents."""


def write_pictures(folder: Path, masks: dict[int, Image.Image] | None = None, count: int = 6) -> Path:
    """Noise of 40 x 20 pixels, some with masks beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for number, mask in (masks or {}).items():
        mask.save(folder / f"{number}-masklabel.png")
    return folder


def half(white: int = 20) -> Image.Image:
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, white, 20))
    return image


WHITE = Image.new("L", (40, 20), 255)


def config_of(folder: Path, masks: str | None = "beside", **sections: Any) -> RunConfig:
    data = {"sources": [{"path": str(folder), "masks": masks}], "trigger": "sks", **sections.pop("data", {})}
    return tiny_config(folder, data=data, **sections)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All but one have a mask of their left half, or less."""
    return write_pictures(tmp_path_factory.mktemp("halves"), {number: half(4 * number + 4) for number in range(5)})


def only_sample(tmp_path: Path, image: Image.Image, mask: Image.Image) -> Sample:
    image.convert("RGB").save(tmp_path / "a.png")
    mask.save(tmp_path / "a_mask.png")
    source = SourceConfig(path=tmp_path, masks="beside")
    (sample,) = survey(DataConfig(sources=(source,), trigger="sks", held_out=0.0)).train.samples
    return sample


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [1, 0.5])
def test_a_mask_is_cut_as_its_picture(tmp_path: Path, size: tuple[int, int], axis: int, scale: float) -> None:
    """A picture that is its own mask, of levels that rise evenly: means over cells are the same of both."""
    ramp = np.linspace(0, 255, (64, 96)[axis])[:, None] if axis == 0 else np.linspace(0, 255, 96)[None]
    image = Image.fromarray(np.broadcast_to(ramp, (64, 96)).round().astype(np.uint8))
    sample = only_sample(tmp_path, image, image.resize((round(96 * scale), round(64 * scale)), Image.Resampling.BOX))
    data, grid = (
        DataConfig(sources=(SourceConfig(path=tmp_path),), crop="random", flip=True, crop_jitter=0.3),
        GRIDS[size],
    )
    for draw in range(6):
        pixels = (load_pixels(sample, data, size, 0, draw)[0] + 1) / 2
        expected = torch.nn.functional.adaptive_avg_pool2d(pixels[None], grid)[0]
        torch.testing.assert_close(load_mask(sample, data, size, grid, 0, draw), expected, rtol=0, atol=0.02)


def test_a_mask_s_edge_is_where_the_picture_s_is(tmp_path: Path) -> None:
    """To the bit: 96 pixels wide, cut to 64 in the middle, white up to the cut's middle."""
    mask = Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 48, 64))
    sample = only_sample(tmp_path, mask, mask)
    cells = load_centered_mask(sample, (64, 64), (8, 8))
    assert torch.equal(cells[:, :4], torch.ones(8, 4)) and torch.equal(cells[:, 4:], torch.zeros(8, 4))


def test_alpha_is_cut_as_a_mask_s_file(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8))
    image.putalpha(half(13))
    image.save(tmp_path / "a.png")
    source = SourceConfig(path=tmp_path, masks="alpha")
    (sample,) = survey(DataConfig(sources=(source,), trigger="sks", held_out=0.0)).train.samples
    file = only_sample(write_pictures(tmp_path / "file", count=0), image, half(13))
    assert torch.equal(load_centered_mask(sample, (16, 16), (4, 4)), load_centered_mask(file, (16, 16), (4, 4)))


def micros_of(family: Family, config: RunConfig, step: int = 0) -> list[MicroBatch]:
    with trainer_on(config, family) as trainer:
        return trainer.batches.micro_batches(step)


@pytest.mark.parametrize(
    "data", [{}, {"flip": True}, {"flip": True, "crop": "random"}], ids=["plain", "flip", "random"]
)
def test_a_mask_is_the_same_alone_as_in_a_batch_and_of_its_own_picture(
    family: Family, halves: Path, data: dict[str, Any]
) -> None:
    (whole,) = micros_of(family, config_of(halves, data=data, train={"batch_size": 4}))
    accumulated = {"batch_size": 1, "gradient_accumulation_steps": 4}
    single = micros_of(family, config_of(halves, data=data, train=accumulated))
    assert whole.mask is not None and whole.mask.shape == (4, 1, *whole.latents.shape[-2:])
    assert torch.equal(torch.cat([micro.mask for micro in single if micro.mask is not None]), whole.mask)
    for mask, sample in zip(whole.mask, whole.samples, strict=True):
        assert bool((mask == 1).all()) == (sample.mask is None)
    assert torch.equal(_tensors_of(whole, whole.text)["mask"], whole.mask)  # type: ignore[arg-type]


def test_where_no_picture_has_a_mask_there_is_none(family: Family, tiny_pictures: Path) -> None:
    (micro,) = micros_of(family, tiny_config(tiny_pictures))
    assert micro.mask is None and "mask" not in _tensors_of(micro, micro.text)  # type: ignore[arg-type]


def test_pictures_of_the_class_are_learned_whole(family: Family, halves: Path, tmp_path: Path) -> None:
    prior = {"prompt": "a thing", "count": 3, "path": str(write_pictures(tmp_path, count=3))}
    for micro in micros_of(family, config_of(halves, data={"prior": prior})):
        masks = [] if micro.mask is None else micro.mask[micro.is_prior_B]
        assert all(bool((mask == 1).all()) for mask in masks)


def finished(config: RunConfig, family: Family) -> bytes:
    """The bits that a run ends in."""
    last = tiny_run(config, family)[-1]
    assert isinstance(last, Finished)
    return b"".join(tensor.numpy().tobytes() for _, tensor in sorted(bits_of(last.weights).items()))


def test_white_masks_train_the_same_bits_as_none_and_others_do_not(family: Family, tmp_path: Path) -> None:
    train = {"max_steps": 1}
    folder = write_pictures(tmp_path / "white", dict.fromkeys(range(2), WHITE), count=2)
    plain = finished(config_of(folder, None, train=train), family)
    assert finished(config_of(folder, train=train), family) == plain
    other = write_pictures(tmp_path / "half", dict.fromkeys(range(2), half()), count=2)
    results = [
        plain,
        finished(config_of(other, train=train), family),
        finished(config_of(other, train=train, objective={"unmasked_weight": 0.5}), family),
        finished(config_of(other, train=train, objective={"normalize_masked_area": False}), family),
    ]
    assert len(set(results)) == 4


def test_a_stored_mask_is_the_mask_and_another_is_another(family: Family, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, {0: half(20)})
    config = config_of(folder).data
    encoder = Encoder(family, config, 0)

    def stored() -> torch.Tensor:
        (sample,) = (one for one in survey(config).train.samples if one.mask)
        (mask,) = encoder.masks([SampleDraw(sample, 0, (16, 16))], (8, 8))
        assert torch.equal(mask[0], load_centered_mask(sample, (16, 16), (8, 8)))
        assert torch.equal(encoder.masks([SampleDraw(sample, 0, (16, 16))], (8, 8))[0], mask)
        return mask

    first = stored()
    half(10).save(folder / "0-masklabel.png")
    assert not torch.equal(stored(), first)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(lambda path: half(3).save(path), "data.picture_changed"), (lambda path: path.unlink(), "data.picture_gone")],
)
def test_a_mask_that_changes_while_training_ends_it(tmp_path: Path, spoil: Any, code: str) -> None:
    folder = write_pictures(tmp_path, {0: half(20)})
    (sample,) = (one for one in survey(config_of(folder).data).train.samples if one.mask)
    spoil(folder / "0-masklabel.png")
    with raises_code(code):
        load_centered_mask(sample, (16, 16), (8, 8))


def test_the_score_is_of_what_is_learned(family: Family, tmp_path: Path) -> None:
    """Masks of ones change nothing; a half's score is the mean of its parts' by their areas."""
    folder, masks = tmp_path / "pictures", {"none": None, "white": WHITE, "half": half(20)}
    left, right = half(15), half(20)
    right.paste(0, (0, 0, 15, 20))
    losses, areas = {}, {}
    for name, mask in {**masks, "left": left, "right": right}.items():
        shutil.rmtree(folder, ignore_errors=True)
        write_pictures(folder, {} if mask is None else dict.fromkeys(range(2), mask), count=2)
        config = config_of(folder, None if mask is None else "beside", objective={"unmasked_weight": 0.9})
        evaluator = HeldOutEvaluator(config, family, survey(config.data).train)
        losses[name] = evaluator.losses()
        areas[name] = sum(float(one.mask_1.sum()) for one in evaluator._noised if one.mask_1 is not None)
    assert np.array_equal(losses["white"], losses["none"]) and not np.array_equal(losses["half"], losses["none"])
    parts = sum(areas[name] / areas["half"] * losses[name] for name in ("left", "right"))
    np.testing.assert_allclose(parts, losses["half"], rtol=1e-5)


def test_a_plan_counts_masks(halves: Path) -> None:
    config = config_of(halves)
    dataset = survey(config.data)
    checked, (listed, _) = PictureCounts.from_dataset(dataset, config), PictureCounts.from_folders(config)
    assert checked.masks == dataset.train.masks and listed.masks == 5


def test_a_plan_says_how_many_masks_there_are() -> None:
    assert str(Schedule(1, 2, 1, 4, masks=3)).splitlines()[-1] == "masks: of 3 pictures"
    assert "masks" not in str(Schedule(1, 2, 1, 4))

"""Copies of training pictures are found whichever way round, and real pictures are no copies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from tests.training import tiny_config
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset, survey
from veneer.evaluate.copying import SampledPicture, find_copies
from veneer.evaluate.copying_sheet import centered_picture, copying_sheet
from veneer.family.protocol import Family


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Thirty pictures of large coloured blots, of which none is symmetric."""
    folder = tmp_path_factory.mktemp("blots")
    for number in range(30):
        blots = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blots).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return tiny_config(folder, data={"trigger": "sks", "held_out": 0.7})


@pytest.fixture(scope="module")
def pictures(config: RunConfig) -> Dataset:
    return survey(config.data)


def painted(name: str, image: Image.Image) -> SampledPicture:
    return SampledPicture("sks", f"evaluation/{name}.png", image)


def blot(seed: int) -> Image.Image:
    blots = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((16, 16), Image.Resampling.BICUBIC)


def test_copies_are_found_either_way_round(config: RunConfig, family: Family, pictures: Dataset) -> None:
    one, two = (centered_picture(pictures.train.samples[place], config, 16) for place in (3, 5))
    mirrored = two.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    given = [painted("new", blot(1000)), painted("same", one), painted("mirrored", mirrored)]
    found, _ = find_copies(config, family, pictures, given)
    near = {each.picture: each for each in found.samples}
    same, turned, new = (near[f"evaluation/{name}.png"] for name in ("same", "mirrored", "new"))
    assert same.nearest == str(pictures.train.samples[3].path) and not same.mirrored
    assert turned.nearest == str(pictures.train.samples[5].path) and turned.mirrored
    assert max(same.angle, turned.angle) < 0.01 and max(same.pixels, turned.pixels) < 1e-6
    assert same.flagged and turned.flagged and found.flagged >= 2
    assert new.angle > found.threshold / 2 and [each.angle for each in found.samples] == sorted(
        each.angle for each in found.samples
    )


def test_the_angle_and_the_distance_are_those_of_the_definition(
    config: RunConfig, family: Family, pictures: Dataset
) -> None:
    image = blot(7)
    copying, _ = find_copies(config, family, pictures, [painted("x", image)])
    (found,) = copying.samples

    def latent(picture: Image.Image) -> np.ndarray:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
        return family.encode_image(pixels[None]).mean.flatten().double().numpy()

    (nearest,) = (s for s in pictures.train.samples if str(s.path) == found.nearest)
    real = centered_picture(nearest, config, 16)
    mine = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if found.mirrored else image
    a, b = latent(mine), latent(real)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found.angle == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-3)
    difference = np.asarray(mine, dtype=float) - np.asarray(real, dtype=float)
    assert found.pixels == pytest.approx(math.sqrt(np.square(difference).mean()) / 255, abs=2e-3)


def test_held_out_pictures_are_the_yardstick_where_there_are_enough(
    config: RunConfig, family: Family, pictures: Dataset
) -> None:
    found, _ = find_copies(config, family, pictures, [painted(str(seed), blot(seed + 50)) for seed in range(4)])
    assert found.reference == "held-out pictures" and len(found.real) == 21
    assert {each.picture for each in found.real} == {str(sample.path) for sample in pictures.held_out.samples}
    assert found.threshold == min(each.angle for each in found.real)
    assert found.expected == pytest.approx(4 / 22)
    assert "of 4 samples are nearer" in str(found)


def test_else_training_pictures_help_each_held_against_the_others(
    config: RunConfig, family: Family, pictures: Dataset
) -> None:
    few = Dataset(pictures.train, Manifest(pictures.held_out.samples[:2]))
    found, _ = find_copies(config, family, few, [painted("x", blot(99))])
    assert found.reference == "held-out and training pictures" and len(found.real) == 2 + 9
    assert all(each.picture != each.nearest for each in found.real)
    assert found.threshold > 1


@pytest.fixture
def with_lookalikes(config: RunConfig, pictures: Dataset, tmp_path: Path) -> Dataset:
    """A training picture that is there again as JPEG, another one mirrored, a third one among the held-out ones."""
    turned = Image.Transpose.FLIP_LEFT_RIGHT
    again, mirrored, leaked = (Image.open(pictures.train.samples[place].path) for place in (0, 1, 2))
    again.save(tmp_path / "again.jpg", quality=90)
    mirrored.transpose(turned).save(tmp_path / "mirrored.png")
    leaked.resize((30, 30)).save(tmp_path / "leaked.png")
    source = config.data.sources[0].model_copy(update={"path": tmp_path})
    more = survey(config.data.model_copy(update={"sources": (source,), "held_out": 0.0})).train.samples
    train = [*pictures.train.samples, *(each for each in more if each.path.stem != "leaked")]
    leak = next(each for each in more if each.path.stem == "leaked")
    return Dataset(Manifest(tuple(train)), Manifest((leak, *pictures.held_out.samples[:2])))


def test_lookalikes_among_the_real_pictures_hide_no_copy(
    config: RunConfig, family: Family, pictures: Dataset, with_lookalikes: Dataset
) -> None:
    copied = centered_picture(pictures.train.samples[5], config, 16)
    nearly = Image.fromarray((np.asarray(copied) * 0.9).astype(np.uint8))
    found, notes = find_copies(config, family, with_lookalikes, [painted("nearly", nearly)])
    # of 14 the leak, and two pairs
    assert len(found.real) == 14 - 5 and found.samples[0].flagged
    assert notes == ["5 real pictures look like a training picture, so left out of the search for copies"]
    apart, none = find_copies(config, family, Dataset(pictures.train, with_lookalikes.held_out), [])
    assert len(apart.real) == 9 + 2 and none == [notes[0].replace("5 real pictures look", "1 real picture looks")]


def test_lookalikes_alone_tell_no_copy(config: RunConfig, family: Family, with_lookalikes: Dataset) -> None:
    pair = [each for each in with_lookalikes.train.samples if each.path.stem == "again"]
    twins = Dataset(Manifest((with_lookalikes.train.samples[0], *pair)), Manifest())
    with raises_code("evaluate.too_few_pictures") as caught:
        find_copies(config, family, twins, [painted("x", blot(1))])
    caught.match("too few real pictures")


def test_what_a_real_picture_would_do_is_seldom_flagged(config: RunConfig, family: Family, pictures: Dataset) -> None:
    """Pictures of the same kind as the held-out ones: about as many as luck has it."""
    found, _ = find_copies(config, family, pictures, [painted(str(seed), blot(seed + 500)) for seed in range(60)])
    assert found.flagged <= found.expected + 6


def test_one_picture_is_nothing_to_compare_with(config: RunConfig, family: Family, pictures: Dataset) -> None:
    for train, held_out in ((pictures.train.samples[:1], ()), ((), pictures.held_out.samples)):
        with raises_code("evaluate.too_few_pictures"):
            find_copies(config, family, Dataset(Manifest(train), Manifest(held_out)), [painted("x", blot(1))])


def test_they_are_shown_beside_each_other(config: RunConfig, family: Family, pictures: Dataset) -> None:
    copied = centered_picture(pictures.train.samples[0], config, 16)
    given = [painted("new", blot(1000)), painted("same", copied)]
    found, _ = find_copies(config, family, pictures, given)
    paper = copying_sheet(found, given, pictures, config, 16)
    again = copying_sheet(found, given, pictures, config, 16)
    assert np.array_equal(np.asarray(paper), np.asarray(again))
    assert paper.width > 8 * 128 and paper.height > 4 * 128
    # the copy comes first, above the very picture that it is a copy of
    column = np.asarray(paper.crop((128 + 8, 0, 128 + 8 + 128, paper.height // 2)).convert("RGB"), dtype=float)
    tops = [
        top
        for top in range(len(column) - 128 - 8 - 128 + 1)
        if np.array_equal(column[top : top + 128], column[top + 136 : top + 264])
    ]
    assert tops and (column[tops[0] : tops[0] + 128] != 255).any()

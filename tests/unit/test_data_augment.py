from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from tests.training import tiny_config
from veneer.config.data_config import ColorJitterConfig, DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.augment import Augmentation, ColorChange, augmentation_of, draws_differ, names_side
from veneer.data.color import change_colors
from veneer.data.manifest import Sample, content_id
from veneer.data.preflight import survey
from veneer.data.transform import cut, geometry_of, is_flipped, load_centered, load_pixels, load_references


def config(**options: Any) -> DataConfig:
    jitter = options.pop("color_jitter", {})
    return DataConfig(sources=(SourceConfig(path=Path("p")),), color_jitter=ColorJitterConfig(**jitter), **options)


def sample(*captions: str) -> Sample:
    return Sample(content_id(b"a"), Path("a.png"), captions or ("a cat",), 40, 30, 1)


def noise(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def surveyed(folder: Path, image: Image.Image, caption: str = "a cat") -> Sample:
    image.save(folder / "a.png")
    (folder / "a.txt").write_text(caption)
    return survey(tiny_config(folder, data={"held_out": 0.0}).data).train.samples[0]


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def levels(pixels: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.asarray((pixels + 1) * 127.5)


ENHANCERS: dict[str, Callable[[Image.Image], Any]] = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@pytest.mark.parametrize("name", ENHANCERS)
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.3])
def test_colours_change_as_pillow_changes_them(name: str, factor: float) -> None:
    ours = levels(change_colors(pixels_of(noise()), ColorChange(**{name: factor})))
    theirs = np.asarray(ENHANCERS[name](noise()).enhance(factor)).transpose(2, 0, 1)
    # Pillow's numbers are whole, and so is its grey: each at most half a level off, times the factor
    assert np.abs(ours - theirs).max() <= 1 + abs(factor - 1)


@pytest.mark.parametrize("turns", [-0.3, -0.02, 0.1, 0.5])
def test_hues_turn_as_in_hsv(turns: float) -> None:
    ours = (np.asarray(change_colors(pixels_of(noise()), ColorChange(hue=turns))) + 1) / 2
    for row, column in np.ndindex(16, 24):
        hue, saturation, value = colorsys.rgb_to_hsv(*(np.array(noise())[row, column] / 255))
        expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
        np.testing.assert_allclose(ours[:, row, column], expected, atol=2e-6)


@given(*[st.floats(0.5, 1.5)] * 3, st.floats(-0.5, 0.5))
def test_changed_colours_are_colours(brightness: float, contrast: float, saturation: float, hue: float) -> None:
    changed = change_colors(pixels_of(noise(4, 4)), ColorChange(brightness, contrast, saturation, hue))
    assert changed.isfinite().all() and changed.min() >= -1 - 1e-6 and changed.max() <= 1 + 1e-6


JITTER: dict[str, Any] = {"crop_jitter": 0.2, "flip": True, "color_jitter": {"brightness": 0.1, "hue": 0.05}}


def test_a_draw_is_augmented_alike_whatever_was_drawn_before_it() -> None:
    changes = [augmentation_of(sample(), config(**JITTER), 0, draw_index) for draw_index in range(20)]
    assert changes == [augmentation_of(sample(), config(**JITTER), 0, draw_index) for draw_index in range(20)]
    assert len(set(changes)) == 20
    assert changes[3] != augmentation_of(sample(), config(**JITTER), 1, 3)
    assert augmentation_of(sample(), config(), 0, 3) == Augmentation()


def test_numbers_are_within_what_is_asked_for_and_reach_it() -> None:
    changes = [augmentation_of(sample(), config(**JITTER), 0, draw_index) for draw_index in range(500)]
    zooms = [change.zoom for change in changes]
    assert 0.8 <= min(zooms) < 0.81 and 0.99 < max(zooms) <= 1
    colors = [change.color for change in changes if change.color is not None]
    assert 0.9 <= min(one.brightness for one in colors) < 0.91 and 1.09 < max(one.brightness for one in colors) <= 1.1
    assert -0.05 <= min(one.hue for one in colors) < -0.045 and 0.045 < max(one.hue for one in colors) <= 0.05
    assert {(one.contrast, one.saturation) for one in colors} == {(1.0, 1.0)}


@given(st.floats(0.5, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_part_that_is_shown_is_in_the_cut_and_of_its_shape(zoom: float, across: float, down: float) -> None:
    left, top, right, bottom = Augmentation(zoom=zoom, across=across, down=down).part_of((3.0, 4.0, 33.0, 24.0))
    assert 3 <= left < right <= 33 and 4 <= top < bottom <= 24
    assert (right - left) / (bottom - top) == pytest.approx(1.5)
    assert right - left == pytest.approx(30 * zoom)


def test_a_jittered_crop_is_the_part_that_its_geometry_says(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:64, 0:64]
    image = Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))
    one, jitter = surveyed(tmp_path, image), config(crop_jitter=0.4)
    for draw_index in range(5):
        shown = levels(load_pixels(one, jitter, (32, 32), 0, draw_index))
        change = augmentation_of(one, jitter, 0, draw_index)
        left, top, right, bottom = change.part_of((0, 0, 64, 64))
        # a pixel's level is that of its middle, half a pixel in
        assert shown[0, 16, 16] == pytest.approx(left + (right - left) * 16.5 / 32 - 0.5, abs=1)
        assert shown[1, 16, 16] == pytest.approx(top + (bottom - top) * 16.5 / 32 - 0.5, abs=1)
        corner = geometry_of(one, jitter, (32, 32), 0, draw_index).top_left
        assert corner == (round(top * 32 / (bottom - top)), round(left * 32 / (right - left)))


def test_what_is_measured_is_not_augmented(tmp_path: Path) -> None:
    one = surveyed(tmp_path, noise())
    assert torch.equal(load_centered(one, config(**JITTER), (16, 16)), load_centered(one, config(), (16, 16)))


def test_all_pictures_of_a_pair_are_augmented_alike(tmp_path: Path) -> None:
    """A mirrored, moved or tinted picture beside one that is not would teach to mirror, to move and to tint."""
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    noise().save(tmp_path / "before" / "a.png")
    one = surveyed(tmp_path / "after", noise())
    data = {"sources": [{"path": str(tmp_path / "after"), "references": str(tmp_path / "before")}], "held_out": 0.0}
    one = survey(tiny_config(tmp_path, data=data).data).train.samples[0]
    for draw_index in range(6):
        (reference,) = load_references(one, config(**JITTER), (16, 24), 0, draw_index)
        assert torch.equal(reference, load_pixels(one, config(**JITTER), (16, 24), 0, draw_index))


@pytest.mark.parametrize(
    "caption",
    [
        "a cat on the left",
        "Right-handed",
        "facing left,",
        "von links",
        "à gauche",
        "mano derecha",
        "左を向く",
        "кот слева",
    ],
)
def test_pictures_whose_captions_say_left_or_right_are_not_mirrored(caption: str) -> None:
    assert names_side((caption,))
    assert not any(is_flipped(sample("a cat", caption), config(flip=True), 0, draw_index) for draw_index in range(40))


@pytest.mark.parametrize("caption", ["a bright copyright", "leftovers", "a cat", "lightness", "cleft"])
def test_other_words_are_no_sides(caption: str) -> None:
    assert not names_side((caption,))
    assert any(is_flipped(sample(caption), config(flip=True), 0, draw_index) for draw_index in range(40))


def test_a_note_says_which_pictures_are_not_mirrored(tmp_path: Path) -> None:
    surveyed(tmp_path, noise(), "a cat on the left")
    data = tiny_config(tmp_path, data={"held_out": 0.0, "flip": True}).data
    assert any("1 of 1 pictures are not mirrored" in note for note in survey(data).notes)
    assert not any("mirrored" in note for note in survey(data.model_copy(update={"flip": False})).notes)


@pytest.mark.parametrize(
    ("options", "differ"),
    [
        ({}, False),
        ({"flip": True}, False),
        ({"crop": "random"}, True),
        ({"crop_jitter": 0.1}, True),
        ({"color_jitter": {"hue": 0.1}}, True),
    ],
)
def test_latents_are_kept_where_pixels_come_again(options: dict[str, Any], differ: bool) -> None:
    assert draws_differ(config(**options)) == differ


def test_the_cut_of_nothing_random_is_the_whole_of_a_picture_of_its_size() -> None:
    assert np.array_equal(np.array(cut(noise(), (16, 24))), np.array(noise()))
    zoomed = replace(Augmentation(), zoom=0.5, across=0.0, down=0.0)
    assert np.array_equal(
        np.array(cut(noise(), (16, 24), zoomed)),
        np.array(noise().resize((24, 16), Image.Resampling.LANCZOS, (0, 0, 12, 8))),
    )

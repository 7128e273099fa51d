"""Folders of frames are clips where a source says so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.clip import still
from veneer.data.clip_frames import FrameSpan
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset, survey
from veneer.data.transform import load_centered

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)


def looked_over(path: Path, **options: Any) -> Dataset:
    source = SourceConfig(path=path, **{"image_sequences": 24.0, **options.pop("source", {})})
    return survey(DataConfig(sources=(source,), **{"trigger": "tok", "held_out": 0.0, "frames": (5,), **options}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clip of twelve frames, ``0.png`` to ``11.png``, with a caption beside it, and a picture."""
    place = tmp_path / "clips"
    (place / "walk").mkdir(parents=True)
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(place / "walk" / f"{number}.png")
    (place / "walk.txt").write_text("a cat walks")
    Image.fromarray(FRAMES[0]).save(place / "p.png")
    return place


def by_name(dataset: Dataset) -> dict[str, Sample]:
    return {sample.path.name: sample for sample in dataset.train.samples}


def test_a_subfolder_is_a_clip_in_the_order_of_its_numbers(folder: Path) -> None:
    dataset = looked_over(folder)
    found = by_name(dataset)
    assert {name: (one.frames, one.captions) for name, one in found.items()} == {
        "walk": (12, ("a cat walks, tok",)),
        "p.png": (1, ("tok",)),
    }
    assert found["walk"].frame_rate == pytest.approx(24)
    pixels = load_centered(
        found["walk"], DataConfig(sources=(SourceConfig(path=folder),)), (32, 48), FrameSpan(8, 4, 24)
    )
    assert torch.equal(pixels.add(1).mul(127.5).round().to(torch.uint8).movedim(0, -1), torch.from_numpy(FRAMES[4:]))
    assert not any("not read" in note for note in dataset.notes)
    place = found["walk"].location
    assert np.array_equal(np.asarray(still(place.read(), (255, 255, 255))), FRAMES[0])


def test_a_folder_with_a_bad_frame_is_put_aside_as_a_whole(folder: Path) -> None:
    for name in ("cut", "sizes"):
        shutil.copytree(folder / "walk", folder / name)
    (folder / "cut" / "3.png").write_bytes((folder / "walk" / "3.png").read_bytes()[:900])
    Image.fromarray(FRAMES[0][:16]).save(folder / "sizes" / "7.png")
    dataset = looked_over(folder)
    reasons = {one.path.name: one.reason for one in dataset.train.rejected}
    assert reasons.keys() == {"cut", "sizes"} and by_name(dataset).keys() == {"walk", "p.png"}
    assert reasons["cut"].startswith("its frame 3: broken") and "its frame 7 is 48 x 16" in reasons["sizes"]


def test_a_changed_frame_or_rate_is_another_clip(folder: Path) -> None:
    before = by_name(looked_over(folder))["walk"]
    assert by_name(looked_over(folder, source={"image_sequences": 12.0}))["walk"].id != before.id
    shutil.move(folder / "walk", folder / "run")
    assert by_name(looked_over(folder))["run"].id == before.id
    Image.fromarray(FRAMES[1]).save(folder / "run" / "0.png")
    assert by_name(looked_over(folder))["run"].id != before.id


def test_without_the_key_frames_are_pictures_and_without_frames_clips_are_put_aside(folder: Path) -> None:
    assert len(looked_over(folder, source={"image_sequences": None}).train.samples) == 12  # p.png is one of them
    (left_out,) = looked_over(folder, frames=None).train.rejected
    assert left_out.path.name == "walk" and "data.frames" in left_out.reason


def test_a_source_without_such_folders_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "walk")
    with raises_code("data.no_image_sequence"):
        looked_over(folder)

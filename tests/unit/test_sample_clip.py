"""Clips as files: whole or not at all, at their own rate, with the texts of what made them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.errors import raises_code
from veneer.sample.clip import contact_headings, contact_sheet, encode_clip, middle, moving_sheet, write_clip
from veneer.sample.gallery import PictureNote, gallery_files, read_picture_note, write_gallery
from veneer.sample.generate import check_frames
from veneer.sample.sheet import table_of

NOTE = PictureNote("a cat, zxc", 3, 25, 4.0, "UniPC")


def clip_of(frames: int, side: int = 32) -> list[Image.Image]:
    """Frames that grow brighter, each of one colour."""
    return [Image.new("RGB", (side, side), (10 + 20 * place, 40, 90)) for place in range(frames)]


@pytest.mark.parametrize(("frames", "rate"), [(5, 16.0), (9, 25.0), (3, 24.0)])
def test_a_clip_is_read_back_frame_by_frame_at_its_rate(frames: int, rate: float, tmp_path: Path) -> None:
    path = write_clip(clip_of(frames), tmp_path / "a.webp", rate, NOTE.texts)
    shown = 0
    with Image.open(path) as read:
        assert getattr(read, "n_frames") == frames and read.info["loop"] == 0  # noqa: B009
        for place, frame in enumerate(clip_of(frames)):
            read.seek(place)
            read.load()
            off = np.asarray(read.convert("RGB"), dtype=np.int16) - np.asarray(frame, dtype=np.int16)
            assert np.abs(off).max() <= 6
            shown += read.info["duration"]
    assert shown == round(frames * 1000 / rate)
    assert read_picture_note(path) == NOTE


def test_the_same_clip_is_the_same_bytes() -> None:
    assert encode_clip(clip_of(4), 16.0, NOTE.texts) == encode_clip(clip_of(4), 16.0, NOTE.texts)


def test_a_writing_that_is_cut_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(clip_of(3), tmp_path / "a.webp", 16.0)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("veneer.files.os.replace", full)
    with raises_code("files.unwritable"):
        write_clip(clip_of(5), path, 16.0)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_contact_sheet_has_the_first_and_the_last_frame_and_is_cut_apart_again() -> None:
    clips, labels = [clip_of(9), clip_of(9)], ["a cat", "a dog"]
    page, headings = contact_sheet(clips, labels, cell=32), contact_headings(9)
    assert (headings[0], headings[-1], len(headings)) == ("frame 1", "frame 9", 6)
    cut = table_of(page, headings, labels, cell=32)
    assert [row[-1].getpixel((5, 5)) for row in cut] == [(170, 40, 90)] * 2
    assert cut[1][0].getpixel((5, 5)) == (10, 40, 90)


def test_a_picture_s_sheet_has_no_headings() -> None:
    assert contact_headings(1) == []
    assert (
        contact_sheet([clip_of(1)], ["a cat"], cell=32).size == moving_sheet([clip_of(1)], ["a cat"], cell=32)[0].size
    )


def test_all_clips_of_a_moving_sheet_play_together() -> None:
    frames = moving_sheet([clip_of(3), clip_of(3)[::-1]], ["a", "b"], cell=32)
    cut = [table_of(frame, (), ["a", "b"], cell=32) for frame in frames]
    reds = [[row[0].getpixel((5, 5))[0] for row in rows] for rows in cut]  # type: ignore[index]
    assert reds == [[10, 50], [30, 30], [50, 10]]
    assert middle(clip_of(5)).getpixel((0, 0)) == (50, 40, 90)


def test_a_gallery_of_clips_takes_the_place_of_one_of_pictures(tmp_path: Path) -> None:
    write_gallery(tmp_path, [clip_of(1)], [NOTE])
    assert write_gallery(tmp_path, [clip_of(3)], [NOTE], 16.0) == {"01-a-cat-zxc.webp": "a cat, zxc"}
    assert [path.name for path in gallery_files(tmp_path)] == ["01-a-cat-zxc.webp"]
    (tmp_path / "mine.webp").write_bytes(encode_clip(clip_of(2), 16.0))
    write_gallery(tmp_path, [clip_of(1)], [NOTE])
    assert {path.name for path in tmp_path.iterdir()} == {"01-a-cat-zxc.png", "mine.webp"}


def test_clips_that_a_base_does_not_paint_are_refused() -> None:
    pictures: Any = SimpleNamespace(name="sd", frame_stride=None)
    clips: Any = SimpleNamespace(name="wan", frame_stride=4)
    for frames in (1, 5, 81):
        check_frames(clips, frames)
    check_frames(pictures, 1)
    with raises_code("sample.no_clips", "sample.frames"):
        check_frames(pictures, 5)
    with raises_code("sample.unfit_frames", "sample.frames") as caught:
        check_frames(clips, 80)
    assert caught.value.remedy == "use 81"

"""Folders of clips, from their files to what a draw of training has of them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.bases import Defaults
from tests.clips import noise, video
from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.bucket_table import BucketTable
from veneer.data.buckets import Buckets
from veneer.data.clip_frames import ClipFrames, FrameSpan
from veneer.data.decode import DECODING
from veneer.data.loader import SampleDraw
from veneer.data.manifest import Sample
from veneer.data.notes import note_clips
from veneer.data.prefetch import PixelLoader, PixelRequest
from veneer.data.preflight import Dataset, survey
from veneer.data.transform import centered_geometry, load_centered, load_pixels
from veneer.family.cache import Encoder
from veneer.family.protocol import LatentDistribution

WAN = Defaults(32, multiple=16, frame_stride=4, frame_rate=16.0)
SIZE = (32, 48)
EXACT = {"container": "mov", "codec": "png", "pixels": "rgb24"}


def config(path: Path, **options: Any) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=path),), **{"trigger": "tok", "held_out": 0.0, **options})


def looked_over(path: Path, **options: Any) -> Dataset:
    return survey(config(path, **{"frames": (5, 9), **options}))


def png(frame: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips, of 20 frames at 16 a second, 20 at 32 and 3 at 16, and a picture."""
    place = tmp_path / "clips"
    place.mkdir()
    for name, count, rate in (("a.mov", 20, 16), ("b.mov", 20, 32), ("c.mov", 3, 16)):
        (place / name).write_bytes(video(noise(count, seed=ord(name[0])), rate=rate, **EXACT))
    (place / "p.png").write_bytes(png(noise(1)[0]))
    for name in "abcp":
        (place / f"{name}.txt").write_text(f"a thing {name}")
    return place


def by_name(dataset: Dataset) -> dict[str, Sample]:
    return {sample.path.name: sample for sample in dataset.train.samples}


def levels(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3), or a picture (H, W, 3), of pixels in [-1, 1]."""
    return pixels.add(1).mul(127.5).round().to(torch.uint8).movedim(0, -1).numpy()  # type: ignore[no-any-return]


def test_clips_and_pictures_of_a_folder_are_samples_with_their_captions(folder: Path) -> None:
    found = by_name(looked_over(folder))
    told = {name: (one.frames, one.frame_rate, one.captions, one.width, one.height) for name, one in found.items()}
    assert told == {
        "a.mov": (20, pytest.approx(16), ("a thing a, tok",), 48, 32),
        "b.mov": (20, pytest.approx(32), ("a thing b, tok",), 48, 32),
        "c.mov": (3, pytest.approx(16), ("a thing c, tok",), 48, 32),
        "p.png": (1, None, ("a thing p, tok",), 48, 32),
    }


def test_what_a_draw_has_are_the_frames_that_were_written(folder: Path) -> None:
    found, options = by_name(looked_over(folder)), config(folder, frames=(5, 9))
    pixels = load_pixels(found["a.mov"], options, SIZE, 0, 0, FrameSpan(9, 4, 16.0))
    assert pixels.shape == (3, 9, 32, 48) and pixels.is_contiguous()
    assert np.array_equal(levels(pixels), np.stack(noise(20, seed=ord("a"))[4:13]))
    every_other = load_centered(found["b.mov"], options, SIZE, FrameSpan(5, 2, 16.0))
    assert np.array_equal(levels(every_other), np.stack(noise(20, seed=ord("b"))[4:14:2]))
    one = load_pixels(found["a.mov"], options, SIZE, 0, 0, FrameSpan(1, 3, 16.0))
    assert np.array_equal(levels(one), noise(20, seed=ord("a"))[3])
    assert np.array_equal(levels(load_pixels(found["p.png"], options, SIZE, 0, 0)), noise(1)[0])
    geometry = centered_geometry(found["a.mov"], SIZE, FrameSpan(9, 4, 16.0))
    assert geometry.extent == (*SIZE, 9) and geometry.frame_rate == 16.0


def test_all_frames_are_cut_mirrored_and_coloured_alike(folder: Path) -> None:
    sample, span = by_name(looked_over(folder))["a.mov"], FrameSpan(5, 0, 16.0)
    options = config(folder, frames=(5,), crop="random", crop_jitter=0.2, flip=True, color_jitter={"hue": 0.1})
    for draw in range(6):
        clip = load_pixels(sample, options, (32, 32), 0, draw, span)
        for place in range(5):
            alone = load_pixels(sample, options, (32, 32), 0, draw, FrameSpan(1, place, 16.0))
            assert torch.allclose(clip[:, place], alone, atol=1e-6)


def test_without_frames_clips_are_put_aside_and_pictures_are_as_ever(folder: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(
        folder / "g.gif", save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")], duration=60
    )
    dataset = survey(config(folder))
    assert by_name(dataset).keys() == {"p.png", "g.gif"} and by_name(dataset)["g.gif"].frame_rate is None
    assert {one.path.name for one in dataset.train.rejected} == {"a.mov", "b.mov", "c.mov"}
    assert all("data.frames" in one.reason for one in dataset.train.rejected)
    assert by_name(looked_over(folder))["g.gif"].frames == 2
    for name in ("p.png", "g.gif"):
        (folder / name).unlink()
    with raises_code("data.no_usable_picture"):
        survey(config(folder))


def test_a_folder_without_captions_is_no_fault_where_clips_are_left_out(folder: Path) -> None:
    for name in "abc":
        (folder / f"{name}.txt").unlink()
    assert by_name(survey(config(folder, trigger=None))).keys() == {"p.png"}


def test_broken_clips_are_put_aside_by_name_and_reason(folder: Path) -> None:
    whole = (folder / "a.mov").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.webm").write_bytes(b"")
    (folder / "old.wmv").write_bytes(b"\x30\x26\xb2\x75")
    (folder / "list.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    (folder / "named.mkv").write_bytes(png(noise(1, seed=9)[0]))  # a picture, whatever it is called
    dataset = looked_over(folder)
    reasons = {one.path.name: one.reason for one in dataset.train.rejected}
    assert reasons.keys() == {"cut.mp4", "empty.webm", "old.wmv", "list.mp4"}
    assert "empty file" in reasons["empty.webm"] and "convert it" in reasons["old.wmv"]
    assert by_name(dataset)["named.mkv"].frame_rate is None


def test_a_zip_and_a_table_name_clips(folder: Path, tmp_path: Path) -> None:
    rows = [{"file_name": f"{name}.mov", "text": f"row {name}"} for name in "ab"]
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for path in folder.glob("*.mov"):
            archive.write(path, path.name)
        archive.writestr("metadata.jsonl", "\n".join(map(json.dumps, rows)))
    packed, plain = by_name(looked_over(tmp_path / "clips.zip")), by_name(looked_over(folder))
    assert {name: one.captions for name, one in packed.items()} == {
        "a.mov": ("row a, tok",),
        "b.mov": ("row b, tok",),
    }
    span, options = FrameSpan(5, 1, 16.0), config(folder, frames=(5,))
    for name, sample in packed.items():
        assert sample.id == plain[name].id
        assert torch.equal(load_centered(sample, options, SIZE, span), load_centered(plain[name], options, SIZE, span))


def test_the_table_of_buckets_counts_frames(folder: Path) -> None:
    dataset = looked_over(folder)
    options = config(folder, frames=(5, 9), resolution="48x32")
    table = BucketTable.of(dataset.train.samples, Buckets.of(options, WAN))
    assert table is not None
    assert {row.name: (row.pictures, row.share) for row in table.rows} == {
        "48 x 32, 9 frames": (2, 0.5),
        "48 x 32": (2, 0.5),  # the picture, and the clip of three frames
    }
    assert {Path(one.picture).name: one.sizes for one in table.pictures}["a.mov"] == ("48x32x9",)


def test_short_and_slow_clips_are_told(folder: Path) -> None:
    (folder / "slow.mov").write_bytes(video(noise(12, seed=5), rate=8, **EXACT))
    samples = looked_over(folder).train.samples
    short, slow = note_clips(samples, ClipFrames.of(config(folder, frames=(5, 9)), WAN))
    assert "shorter than 5 frames" in short and "c.mov (1 of 3)" in short and "a.mov" not in short
    assert "slower than 16" in slow and "slow.mov (8 a second)" in slow


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_load_the_same_clips(folder: Path, workers: int) -> None:
    options = config(folder, frames=(5,), flip=True, crop="random", workers=workers)
    samples = [one for one in looked_over(folder).train.samples if one.frames > 5]
    requests = [
        PixelRequest("picture", one, (32, 32), draw, FrameSpan(5, draw, 16.0)) for one in samples for draw in (0, 3)
    ]
    loader = PixelLoader(options, seed=3)
    loader.expect(requests)
    for request in reversed(requests):
        expected = load_pixels(request.sample, options, (32, 32), 3, request.draw_index or 0, request.span)
        assert torch.equal(loader.load(request)[0], expected)
    loader.close()


def test_a_clip_that_has_changed_ends_the_run(folder: Path) -> None:
    sample = by_name(looked_over(folder))["a.mov"]
    sample.path.write_bytes(video(noise(20, seed=99), **EXACT))
    with raises_code("data.picture_changed"):
        load_centered(sample, config(folder), SIZE, FrameSpan(5, 0, 16.0))


class Encoding:
    """Stands for a base: latents are the pixels, and it counts what it encodes."""

    token_windows = 1

    def __init__(self) -> None:
        self.encoded = 0

    def encode_image(self, pixels: torch.Tensor) -> LatentDistribution:
        self.encoded += 1
        return LatentDistribution(pixels.clone(), torch.zeros_like(pixels))


@pytest.mark.parametrize(("extraction", "kept"), [("chunk", 2 * 2), ("head", 2), ("random", None)])
def test_parts_of_clips_are_kept_encoded_where_draws_meet_again(
    folder: Path, extraction: Any, kept: int | None
) -> None:
    """A clip of 20 frames has two chunks of 9, each of which has two sides."""
    options = config(folder, frames=(9,), frame_extraction=extraction, flip=True, workers=0)
    sample, clips, base = by_name(looked_over(folder))["a.mov"], ClipFrames.of(options, WAN), Encoding()
    encoder = Encoder(base, options, 3)  # type: ignore[arg-type]
    for number in range(30):
        draw = SampleDraw(sample, number, SIZE, clips.span(sample, 3, number))
        latent = encoder.latents([draw])[0]
        assert torch.equal(latent, load_pixels(sample, options, SIZE, 3, number, draw.span))
        assert encoder.keeps(draw) == (kept is not None)
    assert base.encoded == (kept or 30)


def test_keys_of_clips_say_which_frames_and_those_of_pictures_are_as_ever(folder: Path) -> None:
    found, options = by_name(looked_over(folder)), config(folder, frames=(5,))
    encoder = Encoder(Encoding(), options, 3)  # type: ignore[arg-type]
    spans = [FrameSpan(5, 0, 16.0), FrameSpan(5, 1, 16.0), FrameSpan(9, 0, 16.0), FrameSpan(5, 0, 8.0)]
    keys = {encoder.posterior_key(SampleDraw(found["a.mov"], 0, SIZE, span)) for span in spans}
    assert len(keys) == 4
    picture = encoder.posterior_key(SampleDraw(found["p.png"], 0, SIZE))
    assert picture == ("posterior", DECODING, found["p.png"].content, SIZE, (255, 255, 255), False)

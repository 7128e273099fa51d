from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.clips import KR_KB, flat_clip, noise, video
from veneer.data import decode
from veneer.data.clip import frames_at, frames_of
from veneer.data.clip_decode import MAX_FRAMES, is_video
from veneer.data.decode import MAX_PIXELS, TRANSPARENT
from veneer.data.seen_clip import see_clip
from veneer.data.unreadable import Unreadable

WHITE = (255, 255, 255)


def decoded(content: bytes) -> list[NDArray[np.uint8]]:
    return [np.asarray(frame.image()) for frame in list(frames_of(content, WHITE))]


@pytest.mark.parametrize(
    ("container", "codec", "pixels"),
    [
        ("matroska", "ffv1", "bgr0"),
        ("avi", "rawvideo", "bgr24"),
        ("mov", "png", "rgb24"),
        ("mov", "qtrle", "rgb24"),
    ],
)
def test_frames_of_a_lossless_video_are_those_that_were_written(container: str, codec: str, pixels: str) -> None:
    frames = noise()
    content = video(frames, container=container, codec=codec, pixels=pixels)
    assert is_video(content[:64])
    for read, written in zip(decoded(content), frames, strict=True):
        assert np.array_equal(read, written)
    assert np.allclose([frame.time for frame in frames_of(content, WHITE)], np.arange(20) / 16, atol=6e-4)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "mpeg4"), ("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_videos_as_people_have_them_are_read(container: str, codec: str) -> None:
    ramp = np.linspace(0, 255, 48).astype(np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    frames = [np.roll(ramp, number, 1) for number in range(8)]
    read = decoded(video(frames, container=container, codec=codec, pixels="yuv420p"))
    assert len(read) == 8
    assert max(np.abs(one.astype(int) - own).mean() for one, own in zip(read, frames, strict=True)) < 12


COLOURS = ((200, 30, 60), (10, 240, 90), (255, 255, 255), (0, 0, 0), (30, 60, 220))


@pytest.mark.parametrize(
    ("matrix", "full", "pixels"), list(product(KR_KB, (False, True), ("yuv420p", "yuv444p", "yuv420p10le")))
)
def test_colours_are_those_of_the_matrix_and_range_that_the_file_states(matrix: int, full: bool, pixels: str) -> None:
    """R = Y + 2 (1 - Kr) Cr, B = Y + 2 (1 - Kb) Cb, G by Y = Kr R + (1 - Kr - Kb) G + Kb B (BT.709, 3.2 and 3.3)."""
    red, blue = KR_KB[matrix]
    span, chroma, black = (255, 255, 0) if full else (219, 224, 16)
    for colour in COLOURS:
        r, g, b = (level / 255 for level in colour)
        y = red * r + (1 - red - blue) * g + blue * b
        levels = [round(black + span * y)]
        levels += [
            min(255, round(128 + chroma * (own - y) / (2 - 2 * weight))) for own, weight in ((b, blue), (r, red))
        ]
        y, cb, cr = (levels[0] - black) / span, (levels[1] - 128) / chroma, (levels[2] - 128) / chroma
        r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
        expected = np.clip(np.array([r, (y - red * r - blue * b) / (1 - red - blue), b]) * 255, 0, 255)
        read = decoded(flat_clip(levels, matrix, full=full, pixels=pixels))[1]
        assert np.abs(read - expected).max() <= 0.51


def test_a_file_that_states_no_matrix_has_that_of_its_height() -> None:
    levels = (120, 90, 200)
    for height, matrix in ((64, 5), (720, 1)):
        unsaid = flat_clip(levels, 2, full=False, pixels="yuv420p", height=height)
        said = flat_clip(levels, matrix, full=False, pixels="yuv420p", height=height)
        assert np.array_equal(decoded(unsaid)[0], decoded(said)[0])


def test_what_is_transparent_is_laid_on_the_background() -> None:
    frames = noise(3, channels=4)
    (shown, *_) = frames_of(video(frames, codec="ffv1", pixels="bgra"), (0, 0, 255))
    expected = Image.alpha_composite(Image.new("RGBA", (48, 32), (0, 0, 255, 255)), Image.fromarray(frames[0]))
    assert np.array_equal(np.asarray(shown.image()), np.asarray(expected.convert("RGB")))
    conversions = see_clip(video(frames, pixels="bgra"), WHITE).look.conversions
    assert "laid on the background, for it is transparent" in conversions


def test_what_is_said_of_frames_is_said_once_whatever_the_clip_is() -> None:
    frames = noise(3, channels=4)
    for frame in frames:
        frame[..., 3] = 0
    moving = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(moving, "PNG", save_all=True, append_images=pictures[1:], duration=100)
    for content in (video(frames, codec="qtrle", pixels="argb", container="mov"), moving.getvalue()):
        remarks: list[str] = []
        conversions: list[str] = []
        for frame in frames_of(content, (255, 255, 255), remarks, conversions):
            frame.image()
        assert remarks == [TRANSPARENT]
        assert conversions == ["laid on the background, for it is transparent"]


def turned_video(degrees: int) -> bytes:
    """A video whose display matrix, in its tkhd box (ISO/IEC 14496-12, 8.3.2), turns it clockwise."""
    content = video(noise(2), container="mov", codec="png", pixels="rgb24")
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    assert content.count(plain) == 2, "in mvhd and tkhd"
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    at = content.rindex(plain)
    return content[:at] + matrix + content[at + len(plain) :]


@pytest.mark.parametrize(("degrees", "turns"), [(90, 3), (180, 2), (270, 1)])
def test_a_display_matrix_is_applied(degrees: int, turns: int) -> None:
    read = decoded(turned_video(degrees))[0]
    assert np.array_equal(read, np.rot90(noise(2)[0], turns))
    assert "turned upright by its display matrix" in see_clip(turned_video(degrees), WHITE).look.conversions


def test_pixels_that_are_not_square_become_so() -> None:
    content = video(noise(2), container="mov", codec="png", pixels="rgb24", aspect=Fraction(3, 2))
    assert see_clip(content, WHITE).width == 72 and see_clip(content, WHITE).height == 32


@pytest.mark.parametrize(
    "write",
    [
        lambda: video(noise()),
        lambda: video(noise(), container="avi", codec="rawvideo", pixels="bgr24"),
        lambda: video(noise(), container="mov", codec="png", pixels="rgb24"),
        lambda: video(noise(), container="webm", codec="libvpx-vp9", pixels="yuv420p"),
    ],
)
def test_a_file_that_is_cut_short_is_refused_at_each_tenth(write: Callable[[], bytes]) -> None:
    content = write()
    for tenth in range(10):
        cut = content[: len(content) * tenth // 10]
        with pytest.raises(Unreadable):
            see_clip(cut, WHITE)


def test_damage_is_refused_and_not_shown() -> None:
    content = bytearray(video(noise(), container="mp4", codec="mpeg4", pixels="yuv420p"))
    content[len(content) // 2 : len(content) // 2 + 400] = np.random.default_rng(1).bytes(400)
    with pytest.raises(Unreadable, match="broken"):
        see_clip(bytes(content), WHITE)


def test_a_file_with_sound_alone_and_one_without_frames_are_refused() -> None:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        file.mux(stream.encode(sound))
        file.mux(stream.encode(None))
    with pytest.raises(Unreadable, match="only sound"):
        see_clip(buffer.getvalue(), WHITE)
    with pytest.raises(Unreadable):
        see_clip(b"\x1a\x45\xdf\xa3" + bytes(600), WHITE)


def test_what_is_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(video(noise(2), container="avi", codec="rawvideo", pixels="bgr24"))
    at = content.index(b"strf") + 12
    content[at : at + 8] = struct.pack("<2i", 12_000, 12_000)
    assert MAX_PIXELS < 12_000**2
    with pytest.raises(Unreadable, match="too large"):
        see_clip(bytes(content), WHITE)
    monkeypatch.setattr("veneer.data.clip_decode.MAX_FRAMES", 10)
    with pytest.raises(Unreadable, match="too long"):
        see_clip(video(noise(11)), WHITE)
    assert MAX_FRAMES > 10


def test_frames_count_among_the_pixels_of_all_threads_and_are_let_go() -> None:
    taken = decode._PIXELS
    frames = frames_of(video(noise(3)), WHITE)
    next(frames)
    assert taken._taken == 32 * 48
    del frames
    assert taken._taken == 0


def test_no_other_file_is_opened() -> None:
    """A playlist, by any name, is no video here: its demuxer would open what it names."""
    assert not is_video(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    assert not is_video(b"ffconcat version 1.0\nfile /etc/passwd\n")


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = video(noise(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Unreadable, match=r"veneer\[video\]"):
        see_clip(content, WHITE)


def test_the_nearest_frame_in_time_is_taken_and_of_two_the_earlier() -> None:
    frames = noise(8)
    content = video(frames, container="mov", codec="png", pixels="rgb24", rate=24)

    def taken(times: list[float]) -> list[int]:
        read = [np.asarray(image) for image in frames_at(content, WHITE, times)]
        return [next(n for n, own in enumerate(frames) if np.array_equal(own, image)) for image in read]

    assert taken([number / 16 for number in range(5)]) == [0, 1, 3, 4, 6]  # 1.5 and 4.5 are 1 and 4
    assert taken([0, 1 / 48, 2 / 48, 3 / 48]) == [0, 0, 1, 1]
    assert taken([7 / 24]) == [7]


def test_times_that_are_uneven_are_kept() -> None:
    content = video(noise(6), container="mov", codec="png", pixels="rgb24", times=(0, 50, 100, 300, 350, 400))
    seen = see_clip(content, WHITE)
    assert [round(frame.time, 3) for frame in frames_of(content, WHITE)] == [0, 0.05, 0.1, 0.3, 0.35, 0.4]
    assert (seen.frames, seen.frame_rate) == (6, pytest.approx(12.5))
    assert any("uneven" in text for text in seen.look.conversions)


@pytest.mark.parametrize("ending", ["GIF", "PNG", "WEBP"])
def test_animated_pictures_are_clips_of_their_frames(ending: str) -> None:
    colours = [(250, 10, 20), (20, 240, 30), (10, 20, 230)]
    images = [Image.new("RGB", (32, 16), colour) for colour in colours]
    buffer = io.BytesIO()
    lossless = {"lossless": True} if ending == "WEBP" else {}
    images[0].save(buffer, ending, save_all=True, append_images=images[1:], duration=[60, 120, 60], **lossless)
    frames = list(frames_of(buffer.getvalue(), WHITE))
    assert [round(frame.time, 3) for frame in frames] == [0, 0.06, 0.18]
    assert [frame.image().getpixel((3, 3)) for frame in frames] == colours
    assert see_clip(buffer.getvalue(), WHITE).frames == 3


def test_clips_that_begin_alike_have_other_thumbnails() -> None:
    first, second = noise(8), noise(8, seed=1)
    alike = [*first[:4], *second[4:]]
    thumbs = [see_clip(video(frames), WHITE).thumb for frames in (first, alike, first)]
    assert thumbs[0] == thumbs[2] != thumbs[1]

"""Decode the frames of a video file to upright 8-bit sRGB, through PyAV: the one place that knows that library.

What a file is told by its content, never by its name, and no demuxer is asked that opens other files. What is too large
is refused before it is decoded.

Values of the curves of BT.601 and BT.709 are taken as those of sRGB, as players show them and trainers read them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from PIL import Image

from veneer.data.decode import MAX_PIXELS, MIN_SIDE, TRANSPARENT, Notes, is_transparent, on_background, pixels_taken
from veneer.data.unreadable import Unreadable

__all__ = ["MAX_FRAMES", "ClipFrame", "decoder_release", "is_video", "video_frames"]

MAX_FRAMES = 36_000
"""Frames of a clip, at most: 20 minutes at 30 a second."""
_DEMUXERS = (
    (rb"....(ftyp|moov|mdat|free|skip|wide|pnot)", "mov"),
    (rb"\x1a\x45\xdf\xa3", "matroska"),
    (rb"RIFF....AVI ", "avi"),
)
"""What a file begins with, and who reads it. None of these opens another file than that which it is given."""
_NO_VIDEO_BRANDS = re.compile(rb"....ftyp(avi[fs]|hei[cxms]|hev[cx]|mif1|msf1|crx |M4[AB] )", re.DOTALL)
_UNSPECIFIED = 2
_BT601, _BT709 = 5, 1  # by swscale's numbers, which are those of H.273 for the others
_SMPTE170M = 6
_FULL_RANGE, _LIMITED_RANGE = 2, 1
_HDR = {16: "PQ", 18: "HLG"}
_SD_WIDTH, _SD_HEIGHT = 1280, 577
"""Width or height from which on a file that does not say its matrix is of BT.709, as players have it."""
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""By degrees counter-clockwise, of the display matrix."""


class ClipFrame(NamedTuple):
    """A frame of a clip.

    Attributes:
        time: when it is shown, in seconds from the clip's first frame.
        image: returns it, RGB and upright.
    """

    time: float
    image: Callable[[], Image.Image]


def is_video(content: bytes) -> bool:
    """Check whether bytes, of which the first 64 are enough, begin as a video file that is read here."""
    return _demuxer(content) is not None


def decoder_release() -> str:
    """Return the release of what decodes videos, of which another may give other bits; nothing if there is none."""
    return "" if find_spec("av") is None else str(_av().__version__)


def video_frames(
    content: bytes, background: tuple[int, int, int], remarks: list[str] | None = None, done: list[str] | None = None
) -> Iterator[ClipFrame]:
    """Yield the frames of a video file in the order of their times.

    Args:
        content: the file's bytes.
        background: red, green and blue, 0 to 255, that transparent frames are laid on.
        remarks: gets what a user may want to know of how it is decoded, each in some words.
        done: gets what was done to it as its file asks, likewise.

    Raises:
        Unreadable: the file is broken, cut short, has no frames, too many or too large ones, or PyAV is not installed.
    """
    av, notes = _av(), Notes.of(remarks, done)
    _refuse_cut(content)
    try:
        with av.open(io.BytesIO(content), format=_demuxer(content), metadata_errors="ignore") as container:
            stream = _stream(container, notes.remarks)
            with pixels_taken(stream.codec_context.width * stream.codec_context.height):
                yield from _frames(container, stream, background, notes)
    except Unreadable:
        raise
    except (av.error.FFmpegError, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreadable(f"broken: {' '.join(reason.split())}") from None


def _av() -> Any:
    if find_spec("av") is None:
        raise Unreadable("a video, for which PyAV is missing: pip install 'veneer[video]' (Python 3.11 or later)")
    import av
    import av.logging

    av.logging.set_level(None)
    return av


def _demuxer(content: bytes) -> str | None:
    if _NO_VIDEO_BRANDS.match(content):
        return None
    return next((name for magic, name in _DEMUXERS if re.match(magic, content, re.DOTALL)), None)


def _refuse_cut(content: bytes) -> None:
    """Refuse a file that says itself that it has more bytes: its demuxer would end in silence where they do."""
    stated = {"avi": _riff_size, "matroska": _segment_end}.get(_demuxer(content) or "", len)(content)
    if stated > len(content):
        raise Unreadable(f"cut short: {stated - len(content):,} of its {stated:,} bytes are missing")


def _riff_size(content: bytes) -> int:
    return 8 + int.from_bytes(content[4:8], "little")


def _segment_end(content: bytes) -> int:
    """Return where the segment of a Matroska file ends, which is all of it; 0 where it does not say (RFC 8794)."""
    at = 0
    for identifier in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if not content.startswith(identifier, at):
            return 0
        at += len(identifier)
        width = 9 - content[at].bit_length() if at < len(content) else 1
        bits = 7 * width
        size = int.from_bytes(content[at : at + width], "big") & ((1 << bits) - 1)
        is_known = size != (1 << bits) - 1
        at += width + size
    return at if is_known else 0


def _stream(container: Any, remarks: list[str]) -> Any:
    """Return the stream of frames, which is no cover of a sound recording, ready to be decoded."""
    cover = type(container.streams[0].disposition).attached_pic if len(container.streams) else 0
    found = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not found:
        sound = ", only sound" if container.streams.audio else ""
        raise Unreadable(f"a video file without frames{sound}")
    if len(found) > 1:
        remarks.append("more than one track of frames, of which the first is taken")
    stream = found[0]
    if stream.codec_context is None:
        raise Unreadable("a video of an unknown codec: convert it to H.264")
    _check_size(stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.thread_count = 1  # clips are decoded side by side
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _check_size(width: int, height: int) -> None:
    if not width or not height:
        raise Unreadable("broken: it does not say how large its frames are")
    if width * height > MAX_PIXELS:
        raise Unreadable(f"too large: {width} x {height} pixels, at most {MAX_PIXELS:,} in all")
    if min(width, height) < MIN_SIDE:
        raise Unreadable(f"too small: {width} x {height} pixels, at least {MIN_SIDE} each way")


def _frames(container: Any, stream: Any, background: tuple[int, int, int], notes: Notes) -> Iterator[ClipFrame]:
    size = first = last = None
    count = 0
    rate = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
    ratio = float(stream.sample_aspect_ratio or 1)  # now: frames outlive the stream, which is gone with its file
    with closing(container.decode(stream)) as decoded:
        for frame in decoded:
            _check_frame(frame, size, count)
            size, at = (frame.width, frame.height), frame.time
            at = (0.0 if last is None else last + 1 / rate) if at is None else float(at)
            first = at if first is None else first
            if last is not None and at <= last:  # shown no longer than it takes to say so
                count += 1
                continue
            last, count = at, count + 1
            yield ClipFrame(at - first, partial(_image, frame, ratio, background, notes))
    if not count:
        raise Unreadable("a video file without a frame that can be decoded")
    if stream.frames > count:
        raise Unreadable(f"cut short: {count} of its {stream.frames} frames are there")


def _check_frame(frame: Any, size: tuple[int, int] | None, count: int) -> None:
    if count >= MAX_FRAMES:
        raise Unreadable(f"too long: more than {MAX_FRAMES:,} frames; cut it into clips")
    if frame.is_corrupt:
        raise Unreadable(f"broken: frame {count} cannot be decoded")
    if size is not None and size != (frame.width, frame.height):
        raise Unreadable("its frames change in size: encode it anew")
    if frame.color_trc in _HDR:
        raise Unreadable(f"HDR ({_HDR[frame.color_trc]}), which is not read: convert it to BT.709")


def _image(frame: Any, ratio: float, background: tuple[int, int, int], notes: Notes) -> Image.Image:
    """Return a frame as RGB: converted by its own matrix and range, with square pixels, upright, on a background."""
    own = Notes.of(None, None)
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    if max(component.bits for component in frame.format.components) > 8:
        own.conversions.append("scaled to 8 bits from more")
    shown = Image.fromarray(_rgb(frame, "rgba" if has_alpha else "rgb24"))
    if has_alpha and shown.getchannel("A").getextrema() != (255, 255):
        if is_transparent(shown):
            own.remarks.append(TRANSPARENT)
        own.conversions.append("laid on the background, for it is transparent")
    shown = on_background(shown, background) if has_alpha else shown
    upright = _upright(_square(shown, ratio, own), frame, own)
    notes.add_new(own)
    return upright


def _rgb(frame: Any, form: str) -> Any:
    from av.video.reformatter import Interpolation

    flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
    full = frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
    converted = frame.reformat(
        format=form,
        src_colorspace=_matrix(frame),
        src_color_range=_FULL_RANGE if full or frame.format.is_rgb else _LIMITED_RANGE,
        dst_color_range=_FULL_RANGE,
        interpolation=flags,
        threads=1,
    )
    return converted.to_ndarray()


def _matrix(frame: Any) -> int:
    """Return the matrix of a frame's colours, by swscale's number."""
    own = int(frame.colorspace)
    if own == _UNSPECIFIED:
        return _BT709 if frame.width >= _SD_WIDTH or frame.height >= _SD_HEIGHT else _BT601
    return _BT601 if own in (0, _SMPTE170M) else own


def _square(shown: Image.Image, ratio: float, notes: Notes) -> Image.Image:
    """Return a frame with square pixels, which those of DV and DVD are not: so many times as wide as tall."""
    if not 1 / 4 <= ratio <= 4 or ratio == 1:
        return shown
    notes.conversions.append("scaled to square pixels")
    wide, tall = shown.size
    size = (round(wide * ratio), tall) if ratio > 1 else (wide, round(tall / ratio))
    return shown.resize(size, Image.Resampling.LANCZOS)


def _upright(shown: Image.Image, frame: Any, notes: Notes) -> Image.Image:
    turn = _TURNS.get(round(frame.rotation) % 360)
    if turn is None:
        return shown
    notes.conversions.append("turned upright by its display matrix")
    return shown.transpose(turn)

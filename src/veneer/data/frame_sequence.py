"""Folders of frames as clips: all frames' bytes as one, which are hashed, read and decoded as a video's are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from veneer.data.clip_decode import ClipFrame
from veneer.data.decode import Notes, decode
from veneer.data.location import MAX_BYTES, Location
from veneer.data.unreadable import Unreadable, check_size

__all__ = ["FrameSequence", "is_sequence", "sequence_frames"]

_MAGIC = b"veneer: frames of a clip\n"
_HEADER = struct.Struct("<dI")  # frames a second, and how many
_LENGTH = struct.Struct("<Q")  # bytes of a frame


@dataclass(frozen=True, slots=True)
class FrameSequence(Location):
    """Where the frames of a clip lie, each a picture of its own; ``container`` is their folder.

    Attributes:
        frames: where each lies, in order.
        rate: frames a second.
    """

    frames: tuple[Location, ...] = ()
    rate: float = 1.0

    @classmethod
    def of(cls, folder: Path, frames: tuple[Location, ...], rate: float) -> FrameSequence:
        """Return the place of a clip whose frames lie in a folder."""
        return cls(folder, frames=frames, rate=rate)

    def read(self, limit: int = MAX_BYTES) -> bytes:
        """Read the rate and all frames as one piece.

        Raises:
            OSError: a frame is not there, or may not be read.
            Unreadable: there are more bytes than ``limit``.
        """
        parts = [_MAGIC, _HEADER.pack(self.rate, len(self.frames))]
        taken = 0
        for frame in self.frames:
            content = frame.read(limit)
            taken += len(content)
            check_size(taken, limit)
            parts += [_LENGTH.pack(len(content)), content]
        return b"".join(parts)

    def head(self, count: int) -> bytes:
        """Return the first bytes, which tell that these are frames."""
        return _MAGIC[:count]


def is_sequence(content: bytes) -> bool:
    """Check whether bytes are those of a folder of frames."""
    return content.startswith(_MAGIC)


def sequence_frames(
    content: bytes, background: tuple[int, int, int], remarks: list[str] | None = None, done: list[str] | None = None
) -> Iterator[ClipFrame]:
    """Yield the frames of a folder at even times.

    Args:
        content: what :meth:`FrameSequence.read` returns.
        background: that transparent frames are laid on.
        remarks: gets what a user may want to know of how they are decoded, each once.
        done: gets what was done to them as their files ask, likewise.

    Raises:
        Unreadable: a frame is broken, or has another size than the first.
    """
    rate, count = _HEADER.unpack_from(content, len(_MAGIC))
    at, size, notes = len(_MAGIC) + _HEADER.size, None, Notes.of(remarks, done)
    for number in range(count):
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size + length
        own = Notes.of(None, None)
        try:
            image = decode(content[at - length : at], background, *own)
        except Unreadable as fault:
            raise Unreadable(f"its frame {number}: {fault}") from None
        size = size or image.size
        if image.size != size:
            raise Unreadable(
                f"its frame {number} is {image.width} x {image.height}, and the first {size[0]} x {size[1]}"
            )
        notes.add_new(own)
        yield ClipFrame(number / rate, lambda image=image: image)  # type: ignore[misc]

"""Pictures that show an adapter, each in a file of its own that tells how it was made."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from veneer.sample.clip import CLIP_SUFFIX, Clip, clip_texts, write_clip
from veneer.sample.files import write_picture

__all__ = [
    "PictureNote",
    "gallery_files",
    "gallery_names",
    "read_picture_note",
    "sampler_name",
    "thumbnail",
    "write_gallery",
]

_NOTE = "veneer.picture"
"""Key of the text in a picture's file."""
_PICTURE_SUFFIX = ".png"
_THUMBNAIL_SIDE, _THUMBNAIL_BYTES = 256, 32_000
_SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}
"""What A1111 calls the samplers that diffusers' schedulers are."""


@dataclass(frozen=True)
class PictureNote:
    """How a picture was painted.

    Attributes:
        prompt: the text.
        seed: of its noise.
        steps: denoising steps.
        guidance: scale of classifier-free guidance; 1 is none.
        sampler: as A1111 calls it.
        strength: of the adapter.
    """

    prompt: str
    seed: int
    steps: int
    guidance: float
    sampler: str
    strength: float = 1.0

    @property
    def texts(self) -> dict[str, str]:
        """Return it as text of a picture's file."""
        return {_NOTE: json.dumps(asdict(self))}


def sampler_name(pipeline: object) -> str:
    """Return what A1111 calls the sampler of a diffusers pipeline; one without a name there keeps diffusers'."""
    name = type(getattr(pipeline, "scheduler", None)).__name__
    return _SAMPLERS.get(name, name.removesuffix("Scheduler"))


def read_picture_note(path: Path) -> PictureNote | None:
    """Return how a file's picture was painted; None where the file does not say, or is no picture."""
    try:
        with Image.open(path) as picture:
            texts = clip_texts(picture) if path.suffix == CLIP_SUFFIX else picture.info
            values: dict[str, Any] = json.loads(texts[_NOTE])
        note = PictureNote(**values)
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, RecursionError, Image.DecompressionBombError):
        return None
    kinds = {"prompt": str, "seed": int, "steps": int, "sampler": str, "guidance": int | float, "strength": int | float}
    return note if all(isinstance(getattr(note, name), kind) for name, kind in kinds.items()) else None


def gallery_files(folder: Path) -> list[Path]:
    """Return the pictures and clips of a gallery, by name."""
    return sorted(path for path in folder.glob("*") if path.suffix in (_PICTURE_SUFFIX, CLIP_SUFFIX))


def gallery_names(prompts: Sequence[str], suffix: str = _PICTURE_SUFFIX) -> list[str]:
    """Return a file name for the picture of each prompt: its place and its first words."""
    words = [re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") for prompt in prompts]
    return [f"{number:02d}-{each or 'picture'}{suffix}" for number, each in enumerate(words, start=1)]


def write_gallery(
    folder: Path, clips: Sequence[Clip], notes: Sequence[PictureNote], frame_rate: float | None = None
) -> Mapping[str, str]:
    """Write pictures into a folder, in place of those of an earlier gallery; return each one's prompt by its name.

    Args:
        folder: where to.
        clips: a picture is one frame.
        notes: how each was painted.
        frame_rate: frames a second of clips of several frames.

    Raises:
        UserError: there is no room, or the folder cannot be written to.
    """
    moving = len(clips[0]) > 1
    names = gallery_names([note.prompt for note in notes], CLIP_SUFFIX if moving else _PICTURE_SUFFIX)
    for path in gallery_files(folder):
        if path.name not in names and read_picture_note(path) is not None:
            path.unlink()
    for name, clip, note in zip(names, clips, notes, strict=True):
        if moving:
            assert frame_rate is not None, "a base that paints clips has a rate of frames"
            write_clip(clip, folder / name, frame_rate, note.texts)
        else:
            write_picture(clip[0], folder / name, note.texts)
    return {name: note.prompt for name, note in zip(names, notes, strict=True)}


def thumbnail(picture: Image.Image) -> str:
    """Return a picture as a data URL of at most 32 kB: JPEG, its longer side at most 256 pixels."""
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    for quality in (85, 70, 50, 30, 10):
        content = io.BytesIO()
        small.save(content, format="JPEG", quality=quality)
        if content.tell() <= _THUMBNAIL_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"

"""Sample pictures with an adapter file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from veneer.data.location import Location
from veneer.family.protocol import Family
from veneer.family.references import check_references
from veneer.files import atomic_write, opens_paths
from veneer.run.folder import writable
from veneer.run.identity import REFERENCES, TRIGGER
from veneer.sample.clip import CLIP_SUFFIX, Clip, encode_clip
from veneer.sample.comparison import open_references
from veneer.sample.files import write_picture
from veneer.sample.gallery import PictureNote, sampler_name
from veneer.sample.generate import check_frames, clips_quietly, painted_at_once, prompt_notes
from veneer.train.events import Warned
from veneer.verbs.merge import load_merged
from veneer.weights.file import info
from veneer.weights.formats.left_out import LeftOut

__all__ = ["PictureWritten", "SampleOptions", "sample_adapter"]

_Job: TypeAlias = "tuple[int, str, int]"
"""A prompt's number, the prompt and a seed."""
_BACKGROUND = "white"  # of references that are transparent, as in a run that names none
"""Pictures that are painted together."""


@opens_paths
@dataclass(frozen=True)
class SampleOptions:
    """The options of sampling.

    Attributes:
        seed: of each prompt's first picture; its others count on from it.
        count: pictures of each prompt.
        scale: strength of the adapter; 1 is what it was trained at.
        steps: denoising steps.
        guidance: classifier-free guidance; 1 is none.
        references: for a base that edits, the pictures that every prompt is applied to.
        frames: of clips, for a base that was trained on such; 1: pictures.
    """

    seed: int = 0
    count: int = 1
    scale: float = 1.0
    steps: int = 25
    guidance: float = 4.0
    references: tuple[Path, ...] = ()
    frames: int = 1


@dataclass(frozen=True)
class PictureWritten:
    """A picture is painted and written.

    Attributes:
        path: its file.
    """

    path: Path


def _warn(event: Warned | PictureWritten) -> None:
    """Warn as Python does: the callback of whoever names none."""
    if isinstance(event, Warned):
        warnings.warn(str(event), stacklevel=5)  # of whoever called, before arguments were opened


@opens_paths
def sample_adapter(
    file: Path,
    prompts: Sequence[str],
    out: Path,
    *,
    base: str | None = None,
    options: SampleOptions | None = None,
    callback: Callable[[Warned | PictureWritten], None] = _warn,
) -> list[Path]:
    """Sample prompts with an adapter; return the files of pictures, or clips, in ``out``, prompt by prompt.

    Pictures are written as soon as they are painted, so an interrupt loses none of those. A picture that is there
    already, of another adapter or strength, is not written over: the new name ends in -2.

    Args:
        file: the adapter, or the folder of its run.
        prompts: of the pictures.
        out: folder for the pictures.
        base: the adapter's base; default: that of the run's config beside the adapter, else the bundled one.
        options: seeds, strength, steps.
        callback: is called with what of the file is no part of the adapter, with what of the prompts the base does not
            see, and with each picture that is written;
            default: ``warnings.warn`` for the former.

    Raises:
        UserError: the adapter or the base cannot be read, the folder cannot be written to, or the base takes another
            number of references or frames.
    """
    options = options or SampleOptions()
    with writable(out, "choose another --out"):
        return _sample(file, prompts, out, base, options, callback)


def _sample(
    file: Path,
    prompts: Sequence[str],
    out: Path,
    base: str | None,
    options: SampleOptions,
    callback: Callable[[Warned | PictureWritten], None],
) -> list[Path]:
    """Sample prompts into a folder that is there."""
    references = open_references([tuple(map(Location, options.references))], _BACKGROUND)[0]
    left_out: list[LeftOut] = []
    family = load_merged(file, base, options.scale, left_out)
    check_references(family, len(references), "--reference")
    check_frames(family, options.frames)
    for each in left_out:
        callback(Warned("weights.left_out", str(each), each.names))
    metadata = info(file).metadata
    if REFERENCES in metadata and not references:
        text = "the adapter learned to edit, and there is no picture to edit: --reference FILE names one"
        callback(Warned("sample.no_references", text))
    for note in prompt_notes(family, prompts, metadata.get(TRIGGER)):
        callback(Warned(**vars(note)))
    offsets = range(options.count)
    jobs = [(row, prompt, options.seed + offset) for row, prompt in enumerate(prompts) for offset in offsets]
    written, sampler = [], sampler_name(family.pipeline(texts=False))
    for job, clip in _paint(family, jobs, options, references):
        _, prompt, seed = job
        made = PictureNote(prompt, seed, options.steps, options.guidance, sampler, options.scale)
        write = _write_picture if options.frames == 1 else partial(_write_clip, frame_rate=family.frame_rate or 0.0)
        written.append(write(clip, out / _name(*job), made))
        callback(PictureWritten(written[-1]))
    return written


def _paint(
    family: Family, jobs: Sequence[_Job], options: SampleOptions, references: Sequence[Image.Image]
) -> Iterator[tuple[_Job, Clip]]:
    """Yield each job with its clip, some at once."""
    at_once = painted_at_once(family)
    for start in range(0, len(jobs), at_once):
        part = jobs[start : start + at_once]
        texts, seeds = [prompt for _, prompt, _ in part], [seed for _, _, seed in part]
        clips = clips_quietly(
            family,
            texts,
            seeds,
            frames=options.frames,
            steps=options.steps,
            guidance=options.guidance,
            batch=at_once,
            references=[references] * len(part) if references else (),
        )
        yield from zip(part, clips, strict=True)


def _write_picture(clip: Clip, stem: Path, note: PictureNote) -> Path:
    """Write a picture under its name, or where another has it, of another adapter say, under the next free one."""
    picture = clip[0]
    place = next(place for place in _names(stem, ".png") if not _holds_another(place, picture))
    return write_picture(picture, place, note.texts)


def _write_clip(clip: Clip, stem: Path, note: PictureNote, *, frame_rate: float) -> Path:
    """Write a clip likewise; the same clip is the same bytes."""
    content = encode_clip(clip, frame_rate, note.texts)
    place = next(place for place in _names(stem, CLIP_SUFFIX) if not place.exists() or place.read_bytes() == content)
    atomic_write(place, content)
    return place


def _names(stem: Path, suffix: str) -> Iterator[Path]:
    yield stem.with_name(f"{stem.name}{suffix}")
    yield from (stem.with_name(f"{stem.name}-{number}{suffix}") for number in count(2))


def _holds_another(path: Path, picture: Image.Image) -> bool:
    """Check whether a file is there that is not this very picture."""
    if not path.exists():
        return False
    try:
        with Image.open(path) as there:
            return bool(
                there.size != picture.size or there.convert("RGB").tobytes() != picture.convert("RGB").tobytes()
            )
    except (OSError, ValueError, SyntaxError):  # no picture
        return True


def _name(row: int, prompt: str, seed: int) -> str:
    """Return a picture's file name, without its ending."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40] or "empty"
    return f"{row:02d}-{words}-{seed}"

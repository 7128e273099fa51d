"""Paint prompts through diffusers' own pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image

from veneer.data.transform import centered_square
from veneer.engine.adapter_bank import AdapterBank, Row
from veneer.errors import UserError
from veneer.family.libraries import silence_libraries
from veneer.family.prompt_cache import PromptCache
from veneer.family.protocol import Family
from veneer.family.references import check_references
from veneer.family.unread import UnreadNote, unread_notes
from veneer.sample.clip import Clip

__all__ = [
    "check_frames",
    "check_steps",
    "clips_quietly",
    "generate",
    "generate_clips",
    "generate_each",
    "generate_quietly",
    "painted_at_once",
    "prompt_calls",
    "prompt_notes",
]


_AT_ONCE = 8  # pictures that are painted in one batch, at most


class _Job(NamedTuple):
    """A picture that is to be painted."""

    prompt: str
    seed: int
    references: Sequence[Image.Image]


def prompt_notes(family: Family, prompts: Sequence[str], trigger: str | None = None) -> list[UnreadNote]:
    """Return what of prompts the text encoders do not see, as the user should know it.

    Args:
        family: the base.
        prompts: the texts to paint.
        trigger: words that call an adapter.
    """
    places = {prompt: f"prompt {number}" for number, prompt in enumerate(dict.fromkeys(prompts), 1)}
    return unread_notes(family.unread, places, "prompts", trigger)


def generate(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int | None = None,
    references: Sequence[Sequence[Image.Image]] = (),
) -> list[Image.Image]:
    """Paint one picture for each pair of prompt and seed, by the networks as they stand.

    Each picture has a generator of its own, so it is the same in any batch (up to rounding in the last bit of a
    colour, since matrix products of other sizes round otherwise) and the same as diffusers gives for
    ``torch.Generator().manual_seed(seed)``. What of the prompts the text encoders do not see is told by
    ``warnings.warn``.

    Args:
        family: the base, with or without an adapter in it.
        prompts: the texts to paint.
        seeds: one a prompt.
        steps: denoising steps.
        guidance: scale of classifier-free guidance (Ho and Salimans 2022); 1 is none.
        batch: pictures painted at once; those with references are painted one by one. None: as many as the base lets
            fit into memory, 8 at most.
        references: for a base that edits, the pictures that each prompt is applied to; the middle square is cut from
            each, as from those that are trained on. Empty: there are none.

    Raises:
        UserError: the base takes another number of references, or is not painted in so few steps.
    """
    _warn(family, prompts)
    return generate_quietly(family, prompts, seeds, steps=steps, guidance=guidance, batch=batch, references=references)


def painted_at_once(family: Family) -> int:
    """Return how many pictures are painted in one batch where nobody says it."""
    return family.inference_batch_size or _AT_ONCE


def check_steps(family: Family, steps: int) -> None:
    """Refuse fewer denoising steps than a base is painted in.

    Raises:
        UserError: there are fewer.
    """
    if steps < family.fewest_steps:
        what = f"the scheduler of this {family.name} base cannot paint in {steps} step"
        remedy = f"use at least {family.fewest_steps}"
        raise UserError(what, code="sample.too_few_steps", where="sample.steps", remedy=remedy)


def _warn(family: Family, prompts: Sequence[str]) -> None:
    """Warn the caller of a public function of what is not seen of prompts."""
    for note in prompt_notes(family, prompts):
        warnings.warn(str(note), stacklevel=3)


def generate_clips(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    frames: int,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int | None = None,
) -> list[Clip]:
    """Paint one clip for each pair of prompt and seed, as :func:`generate` paints pictures.

    Args:
        family: a base that was trained on clips.
        prompts: as there, like all others.
        seeds: as there.
        frames: of each clip: one more than a multiple of ``family.frame_stride``.
        steps: as there.
        guidance: as there.
        batch: as there.

    Raises:
        UserError: the base paints no clips, or none of so many frames.
    """
    _warn(family, prompts)
    return clips_quietly(family, prompts, seeds, frames=frames, steps=steps, guidance=guidance, batch=batch)


def check_frames(family: Family, frames: int) -> None:
    """Refuse clips that a base does not paint.

    Raises:
        UserError: it paints pictures only, or its clips have other numbers of frames.
    """
    stride = family.frame_stride
    if frames > 1 and stride is None:
        what = f"is {frames}, but a {family.name} base paints pictures, not clips"
        raise UserError(what, code="sample.no_clips", where="sample.frames", remedy="leave it out")
    if stride is not None and (frames - 1) % stride:
        near = 1 + max(1, round((frames - 1) / stride)) * stride
        what = f"is {frames}, but the clips of a {family.name} base have one frame more than a multiple of {stride}"
        raise UserError(what, code="sample.unfit_frames", where="sample.frames", remedy=f"use {near}")


def generate_quietly(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int | None = None,
    references: Sequence[Sequence[Image.Image]] = (),
    cache: PromptCache | None = None,
) -> list[Image.Image]:
    """Paint as :func:`generate` does, where the user has been told already what of the prompts is not seen.

    Args:
        family: as there, like all others but the cache.
        prompts: as there.
        seeds: as there.
        steps: as there.
        guidance: as there.
        batch: as there.
        references: as there.
        cache: keeps what is made of the prompts; its text encoders have no adapter in them. None: nothing is kept.
    """
    settings: dict[str, Any] = {"steps": steps, "guidance": guidance, "batch": batch, "references": references}
    settings["cache"] = cache
    return [clip[0] for clip in clips_quietly(family, prompts, seeds, **settings)]


def clips_quietly(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    frames: int = 1,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int | None = None,
    references: Sequence[Sequence[Image.Image]] = (),
    cache: PromptCache | None = None,
) -> list[Clip]:
    """Paint as :func:`generate_clips` does, pictures as clips of one frame, where the user has been told already.

    The cache is that of :func:`generate_quietly`.
    """
    check_steps(family, steps)
    check_frames(family, frames)
    jobs = _jobs(family, prompts, seeds, references)
    pipeline: Any = family.pipeline() if cache is None else cache.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    told = family.pipeline_prompts if cache is None else cache.arguments
    clips: list[Clip] = []
    for part in _batches(family, jobs, batch):
        with silence_libraries():
            arguments = _arguments(family, part, told, frames, guidance)
            clips += family.frames_of(pipeline(**arguments, num_inference_steps=steps))
    return clips


def prompt_calls(
    cache: PromptCache,
    prompts: Sequence[str],
    *,
    frames: int = 1,
    guidance: float,
    references: Sequence[Sequence[Image.Image]] = (),
) -> list[Callable[[], None]]:
    """Return calls that keep what will be made of prompts when they are painted, one of each batch."""
    jobs = _jobs(cache.family, prompts, [0] * len(prompts), references)
    return [partial(_encode, cache, part, frames, guidance) for part in _batches(cache.family, jobs, None)]


def _encode(cache: PromptCache, part: Sequence[_Job], frames: int, guidance: float) -> None:
    with silence_libraries(), cache.encoding_pipeline() as pipeline:
        pipeline(**_arguments(cache.family, part, cache.arguments, frames, guidance))


def _jobs(
    family: Family, prompts: Sequence[str], seeds: Sequence[int], references: Sequence[Sequence[Image.Image]]
) -> list[_Job]:
    """Return what is to be painted.

    Raises:
        UserError: the base takes another number of references.
    """
    shown = references or [()] * len(prompts)
    for own in shown:
        check_references(family, len(own), "references")
    return [_Job(*each) for each in zip(prompts, seeds, shown, strict=True)]


def _batches(family: Family, jobs: Sequence[_Job], batch: int | None) -> Iterator[Sequence[_Job]]:
    """Yield what is painted at once; a pipeline resizes all references of a batch to the first one's shape."""
    count = 1 if any(job.references for job in jobs) else batch or painted_at_once(family)
    for start in range(0, len(jobs), count):
        yield jobs[start : start + count]


def _arguments(
    family: Family,
    part: Sequence[_Job],
    told: Callable[[Sequence[str]], Mapping[str, object]],
    frames: int,
    guidance: float,
) -> dict[str, Any]:
    """Return the pipeline's arguments for one batch, but for the number of steps."""
    return {
        **told([job.prompt for job in part]),
        **_reference_arguments(family, part[0].references),
        **family.pipeline_frames(frames),
        **family.pipeline_guidance(guidance),
        "generator": [torch.Generator().manual_seed(job.seed) for job in part],
        "height": family.resolution,
        "width": family.resolution,
    }


def _reference_arguments(family: Family, references: Sequence[Image.Image]) -> Mapping[str, object]:
    if not references:
        return {}
    return family.pipeline_references([centered_square(picture, family.resolution) for picture in references])


def generate_each(
    family: Family,
    bank: AdapterBank,
    rows: Sequence[Row],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int = 8,
) -> list[Image.Image]:
    """Paint as :func:`generate` does, each picture with adapters of its own: ``rows[i]`` is of ``prompts[i]``.

    Args:
        family: the base that the bank is of.
        bank: the adapters.
        rows: one entry a picture, as :meth:`AdapterBank.rows` takes them.
        prompts: the texts to paint.
        seeds: one a prompt.
        steps: denoising steps.
        guidance: scale of classifier-free guidance; 1 is none.
        batch: pictures painted at once.

    Raises:
        UserError: there is not one entry a picture, or an adapter is not in the bank.
    """
    if len(rows) != len(prompts):
        what = f"{len(rows)} rows are given for {len(prompts)} prompts"
        raise UserError(what, code="sample.rows_and_prompts", remedy="give one a prompt, or None")
    _warn(family, prompts)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        guided = family.guided_batch and guidance > 1
        with bank.rows(rows[part], guidance=guided, folded=family.folded_layers):
            pictures += generate_quietly(
                family, prompts[part], seeds[part], steps=steps, guidance=guidance, batch=batch
            )
    return pictures

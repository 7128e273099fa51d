"""Paint what a training will see: the draws of its first steps, cut, mirrored and coloured, with mask and latents."""

from __future__ import annotations

import io
from itertools import count as numbers
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from veneer.config.load import resolve
from veneer.config.schema import RunConfig
from veneer.data.buckets import Buckets
from veneer.data.caption_text import caption_of
from veneer.data.inspection import Advance, no_progress
from veneer.data.loader import DrawSchedule, SampleDraw
from veneer.data.preflight import survey
from veneer.data.transform import is_flipped, load_mask, load_pixels
from veneer.family.loading import load_run_base
from veneer.files import atomic_write, opens_paths
from veneer.sample.sheet import sheet

__all__ = ["show_draws"]

_CELL = 224  # pixels of a picture on the sheet
_PLACES = (0.0, 1 / 3, 2 / 3, 1.0)
"""Where in a clip the frames are that its cell shows, two beside two others."""


@opens_paths
def show_draws(config: RunConfig, out: Path, count: int = 8, progress: Advance = no_progress) -> list[SampleDraw]:
    """Paint the first draws of a run, a column each, under the caption that each shows; return them.

    Of a clip four frames are shown, from the first to the last.

    Args:
        config: of the run.
        out: the sheet, a PNG. Its rows are the pixels that the model is given, the same decoded back from their
            latents, and the mask on the grid of the latents, if there are masks.
        count: how many draws.
        progress: is called with how many pictures are decoded, and how many there are.

    Raises:
        UserError: a training of the config would be refused.
    """
    dataset = survey(config.data, progress)
    family = load_run_base(config)
    config = resolve(config, family)
    schedule = DrawSchedule.of(dataset.train, Buckets.of(config.data, family), config)
    draws = list(islice((draw for number in numbers() for draw in schedule.micro_batch(number)), count))
    seen = [_pixels(draw, config) for draw in draws]
    latents = [family.encode_image(pixels[None]).mean for pixels in seen]
    rows = {
        "what the model is given": [_image(pixels) for pixels in seen],
        "decoded from its latents": [_image(family.decode(latent)[0]) for latent in latents],
    }
    if schedule.has_masks:
        pairs = zip(draws, latents, strict=True)
        rows["mask"] = [_mask(draw, config, latent) for draw, latent in pairs]
    headings = [_heading(draw, config) for draw in draws]
    buffer = io.BytesIO()
    sheet(list(rows.values()), headings, list(rows), cell=_CELL).save(buffer, "PNG")
    atomic_write(out, buffer.getvalue())
    return draws


def _pixels(draw: SampleDraw, config: RunConfig) -> Tensor:
    return load_pixels(draw.sample, config.data, draw.size, config.seed, draw.draw_index, draw.span)


def _mask(draw: SampleDraw, config: RunConfig, latent: Tensor) -> Image.Image:
    grid = int(latent.shape[-2]), int(latent.shape[-1])
    cells = load_mask(draw.sample, config.data, draw.size, grid, config.seed, draw.draw_index)
    small = Image.fromarray(cells.mul(255).round().to(torch.uint8).numpy())
    return small.resize((draw.size[1], draw.size[0]), Image.Resampling.NEAREST)


def _image(pixels: Tensor) -> Image.Image:
    """Return a picture (3, H, W), or four frames of a clip (3, T, H, W) in two rows."""
    if pixels.ndim == 4:
        frames = [pixels[:, round(place * (pixels.shape[1] - 1))] for place in _PLACES]
        pixels = torch.cat([torch.cat(frames[:2], -1), torch.cat(frames[2:], -1)], -2)
    levels = pixels.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def _heading(draw: SampleDraw, config: RunConfig) -> str:
    mirrored = ", mirrored" if is_flipped(draw.sample, config.data, config.seed, draw.draw_index) else ""
    caption = caption_of(draw, config.data, config.seed) or "(no caption)"
    return f"{draw.size[1]} x {draw.size[0]}{_frames(draw)}{mirrored}: {caption}"


def _frames(draw: SampleDraw) -> str:
    """Return which frames of a clip are seen, for people; nothing of a picture."""
    span = draw.span
    return "" if span is None else f", {span.count} frames from {span.start} on at {span.rate:.4g} a second"

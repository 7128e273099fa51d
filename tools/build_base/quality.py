"""The base's figures: the autoencoder on pictures it never saw, retrieval of every concept, a sheet to look at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from . import autoencoder, drawings
from .concepts import Concept
from .drawings import DrawingSet, Pictures

STEPS = 25
GUIDANCES = (1.5, 2.5, 4.0, 6.0)
BATCH = 56


@dataclass(frozen=True)
class Quality:
    """What is measured of the base; shares are between 0 and 1."""

    psnr_noto_held_out: float  # dB, mean over Noto drawings that the autoencoder never saw
    psnr_openmoji: float  # dB, mean over OpenMoji's drawings of the base's concepts, a style it never saw
    guidance: float  # the best of those tried
    retrieval_top1: float  # generated pictures that find their own concept's drawing among all of them
    retrieval_top5: float
    concepts: int
    parameters: int

    def as_dict(self) -> dict[str, float]:
        """Rounded, for JSON."""
        return {k: round(v, 4) for k, v in asdict(self).items()}


def generate(pipeline: StableDiffusionPipeline, prompts: list[str], guidance: float) -> Pictures:
    """One picture a prompt, uint8 (N, 64, 64, 3); the seed of a picture is its place in the list."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        made = pipeline(part, num_inference_steps=STEPS, guidance_scale=guidance, generator=seeds)
        pictures += made.images
    return drawings.stack(pictures)


def ranks(vae: AutoencoderKL, made: Pictures, true: Pictures) -> npt.NDArray[np.int64]:
    """Place of each picture's own drawing among ``true`` by distance of latents, either way round; 0 is first."""
    found = autoencoder.encode(vae, made).flatten(1)
    distance = torch.stack([torch.cdist(found, t.flatten(1)) for t in _both_ways(vae, true)]).amin(0)
    own = distance.diagonal()[:, None]
    return (distance < own).sum(1).numpy()


def _both_ways(vae: AutoencoderKL, true: Pictures) -> list[Tensor]:
    return [autoencoder.encode(vae, true), autoencoder.encode(vae, np.ascontiguousarray(true[:, :, ::-1]))]


def measure(folder: Path, known: list[Concept], sets: dict[str, DrawingSet]) -> tuple[Quality, Image.Image]:
    """Measure the finished base in ``folder``; returns the figures and a sheet of 60 pictures."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    unseen = [n for n in sets["noto"].names() if autoencoder.held_out(n)]
    psnr = {
        "noto": _mean_psnr(pipeline.vae, [sets["noto"].svg(n) for n in unseen]),
        "openmoji": _mean_psnr(pipeline.vae, [sets["openmoji"].svg(c.name) for c in known]),
    }
    true = drawings.stack(drawings.draw(sets["noto"].svg(c.name)) for c in known)
    some = list(range(0, len(known), 4))
    tried = {g: _top1_of(pipeline, known, true, some, g) for g in GUIDANCES}
    guidance = max(tried, key=lambda g: tried[g])
    print(f"retrieval of every fourth concept by guidance: {tried}", flush=True)
    made = generate(pipeline, [c.caption for c in known], guidance)
    place = ranks(pipeline.vae, made, true)
    wrong = [(known[i].name, int(place[i])) for i in np.flatnonzero(place)]
    print(f"not first: {wrong}", flush=True)
    quality = Quality(
        psnr_noto_held_out=psnr["noto"],
        psnr_openmoji=psnr["openmoji"],
        guidance=guidance,
        retrieval_top1=float((place < 1).mean()),
        retrieval_top5=float((place < 5).mean()),
        concepts=len(known),
        parameters=sum(p.numel() for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in m.parameters()),
    )
    return quality, contact_sheet(made[:: max(1, len(made) // 60)][:60])


def _mean_psnr(vae: AutoencoderKL, svgs: list[str]) -> float:
    return float(autoencoder.psnr(vae, drawings.stack(drawings.draw(s) for s in svgs)).mean())


def _top1_of(
    pipeline: StableDiffusionPipeline,
    known: list[Concept],
    true: Pictures,
    some: list[int],
    guidance: float,
) -> float:
    """Retrieval among all drawings of a part of the concepts."""
    made = generate(pipeline, [known[i].caption for i in some], guidance)
    order = some + [i for i in range(len(known)) if i not in set(some)]
    found = autoencoder.encode(pipeline.vae, made).flatten(1)
    distance = torch.stack([torch.cdist(found, t.flatten(1)) for t in _both_ways(pipeline.vae, true[order])]).amin(0)
    own = distance[:, : len(some)].diagonal()[:, None]
    return float((distance < own).sum(1).eq(0).float().mean())


def contact_sheet(pictures: Pictures, columns: int = 10) -> Image.Image:
    """Pictures in rows, drawn at twice their size."""
    side = drawings.SIZE
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (i % columns * side, i // columns * side))
    return sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.LANCZOS)

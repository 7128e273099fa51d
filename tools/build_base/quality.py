"""The base's figures: the autoencoder on pictures it never saw, retrieval of every concept, a sheet to look at."""

from __future__ import annotations

from collections.abc import Iterable
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


@dataclass(frozen=True)
class Real:
    """Real drawings that a base is held against, uint8 (N, H, W, 3).

    Attributes:
        unseen: Noto's, that the autoencoder never saw.
        openmoji: OpenMoji's of the base's concepts.
        noto: Noto's of the base's concepts.
    """

    unseen: Pictures
    openmoji: Pictures
    noto: Pictures


def real_svgs(known: list[Concept], sets: dict[str, DrawingSet], most: int = 0) -> tuple[list[str], ...]:
    """The drawings of :class:`Real`; at most so many that were unseen."""
    noto, openmoji = sets["noto"], sets["openmoji"]
    unseen = drawings.thinned([name for name in noto.names() if autoencoder.held_out(name)], most)
    return (
        [noto.svg(name) for name in unseen],
        [openmoji.svg(concept.name) for concept in known],
        [noto.svg(concept.name) for concept in known],
    )


def real(svgs: Iterable[list[str]], pixels: int) -> Real:
    """Draw them."""
    return Real(*(drawings.stack(drawings.draw(svg, pixels) for svg in part) for part in svgs))


def generate(pipeline: StableDiffusionPipeline, prompts: list[str], guidance: float, batch: int = BATCH) -> Pictures:
    """One picture a prompt, uint8 (N, H, W, 3); the seed of a picture is its place in the list."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        made = pipeline(part, num_inference_steps=STEPS, guidance_scale=guidance, generator=seeds)
        pictures += made.images
    return drawings.stack(pictures)


def ranks(vae: AutoencoderKL, made: Pictures, true: Pictures) -> npt.NDArray[np.int64]:
    """Place of each picture's own drawing among ``true`` by distance of latents, either way round; 0 is first.

    The first of ``true`` are those of the pictures, in their order.
    """
    found = autoencoder.encode(vae, made).flatten(1)
    distance = torch.stack([torch.cdist(found, t.flatten(1)) for t in _both_ways(vae, true)]).amin(0)
    own = distance[:, : len(made)].diagonal()[:, None]
    return (distance < own).sum(1).cpu().numpy()


def _both_ways(vae: AutoencoderKL, true: Pictures) -> list[Tensor]:
    return [autoencoder.encode(vae, true), autoencoder.encode(vae, np.ascontiguousarray(true[:, :, ::-1]))]


def measure(
    folder: Path, known: list[Concept], drawn: Real, device: torch.device | str = "cpu", batch: int = BATCH
) -> tuple[Quality, Image.Image]:
    """Measure the finished base in ``folder``; returns the figures and a sheet of 60 pictures."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    psnr = {"noto": _mean_psnr(pipeline.vae, drawn.unseen), "openmoji": _mean_psnr(pipeline.vae, drawn.openmoji)}
    print(f"dB through the autoencoder: {psnr}", flush=True)
    some = list(range(0, len(known), 4))
    tried = {g: _top1_of(pipeline, known, drawn.noto, some, g, batch) for g in GUIDANCES}
    guidance = max(tried, key=lambda g: tried[g])
    print(f"retrieval of every fourth concept by guidance: {tried}", flush=True)
    made = generate(pipeline, [c.caption for c in known], guidance, batch)
    place = ranks(pipeline.vae, made, drawn.noto)
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


def _mean_psnr(vae: AutoencoderKL, pictures: Pictures) -> float:
    parts = np.array_split(pictures, -(-len(pictures) // BATCH))
    return float(torch.cat([autoencoder.psnr(vae, part) for part in parts]).mean())


def _top1_of(
    pipeline: StableDiffusionPipeline,
    known: list[Concept],
    true: Pictures,
    some: list[int],
    guidance: float,
    batch: int,
) -> float:
    """Retrieval among all drawings of a part of the concepts."""
    made = generate(pipeline, [known[i].caption for i in some], guidance, batch)
    order = some + [i for i in range(len(known)) if i not in set(some)]
    return float((ranks(pipeline.vae, made, true[order]) == 0).mean())


def contact_sheet(pictures: Pictures, columns: int = 10) -> Image.Image:
    """Pictures in rows, drawn so large that a row has at least 1,280 pixels."""
    side = pictures.shape[1]
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (i % columns * side, i // columns * side))
    if (larger := 1280 // sheet.width) > 1:
        return sheet.resize((larger * sheet.width, larger * sheet.height), Image.Resampling.LANCZOS)
    return sheet

"""Make a base: draw, train, write, measure; within a time, where one is given."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from . import autoencoder, card, concepts, denoiser, drawings, quality, text
from .concepts import Concept
from .design import Design
from .drawings import DrawingSet, Pictures
from .engine import Engine
from .fit import Pace

__all__ = ["Budget", "Job", "build", "needed_sets", "publish", "steps_made"]

PHASES = ("autoencoder", "denoiser", "finish")


@dataclass(frozen=True)
class Budget:
    """A time, and what each part has of it.

    Attributes:
        ends: by the monotonic clock; None: no end.
        judging: seconds that are kept for measuring.
        save_seconds: between two states.
    """

    ends: float | None = None
    judging: float = 0.0
    save_seconds: float | None = None

    @classmethod
    def of(cls, seconds: float, save_seconds: float = 60.0) -> Budget:
        """Divide so many seconds from now on."""
        return cls(time.monotonic() + seconds, min(JUDGING, JUDGING_SHARE * seconds), save_seconds)

    def pace(self, share: float, saved: Callable[[dict[str, Tensor]], None] | None = None) -> Pace:
        """Return the pace of a fit that has so much of what is left for training."""
        seconds = None if self.ends is None else share * max(0.0, self.ends - self.judging - time.monotonic())
        return Pace(seconds, self.save_seconds, saved)

    @property
    def is_over(self) -> bool:
        """Whether nothing more should be begun."""
        return self.ends is not None and time.monotonic() > self.ends


JUDGING, JUDGING_SHARE = 40.0, 0.15
"""Seconds that are kept for writing and measuring, but no more than this share of all."""
AUTOENCODER_SHARE, FINISH_SHARE = 0.3, 0.25
"""Of the time for training: the autoencoder's; of the rest: the finish's."""
JUDGED_AT_ONCE = 224
"""Pictures that a GPU paints at once."""


def _nothing(_: Path) -> None:
    pass


@dataclass(frozen=True)
class Job:
    """A base that is to be made.

    Attributes:
        design: its sizes and recipes.
        work: folder for packages, caches and states, from which a job goes on.
        out: folder that gets ``model``.
        engine: where it is trained.
        budget: of time.
        written: called with the model's folder whenever a base has been written there, better each time.
        most: how many concepts it learns, and how many drawings of each kind it sees; 0: all.
        processes: that draw; None: as many as there are cores.
    """

    design: Design
    work: Path
    out: Path
    engine: Engine = field(default_factory=Engine)
    budget: Budget = field(default_factory=Budget)
    written: Callable[[Path], None] = _nothing
    most: int = 0
    processes: int | None = None

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.out / "model"


def needed_sets(design: Design) -> tuple[str, ...]:
    """The packages that a base is made of and measured with."""
    return tuple(dict.fromkeys([*card.sets_of(design), *concepts.EVERYWHERE]))


def build(job: Job) -> None:
    """Build every part, or go on building; write the base, then what is measured of it."""
    job.engine.begin()
    sets = drawings.read_sets(needed_sets(job.design), job.work / "packages")
    known = drawings.thinned(concepts.concepts(sets), job.most)
    pictures = autoencoder.training_pictures(job.design, sets, job.work, job.most, job.processes)
    layers = _layers(job, known, sets)  # before the time for training is divided
    vae = autoencoder.train(job.design, pictures, job.work, job.engine, job.budget.pace(AUTOENCODER_SHARE))
    del pictures
    tokenizer = tokenizer_for(job.design, known, job.work)
    torch.manual_seed(2)
    encoder = text.make_encoder(tokenizer)
    if layers is None:
        shown = denoiser.lessons(job.design, known, sets, vae, tokenizer)
    else:
        shown = denoiser.varied_lessons(job.design, known, sets, layers, vae, tokenizer)
    pace_of = partial(_pace_of, job, partial(_save_average, job, vae, tokenizer))
    unet, encoder = denoiser.train(job.design, shown, encoder, job.work, job.engine, pace_of)
    save(job.model, vae, tokenizer, encoder, unet)
    job.written(job.model)
    if not job.budget.is_over:
        publish(job, known, sets)
        job.written(job.model)


def _layers(job: Job, known: list[Concept], sets: dict[str, DrawingSet]) -> Pictures | None:
    """Draw what the denoiser is shown, where drawings are varied."""
    if not job.design.is_varied:
        return None
    svgs = denoiser.lesson_svgs(job.design, known, sets)
    return drawings.draw_layers(svgs, job.design.pixels, job.work / "denoiser-layers.npy", job.processes)


def _pace_of(job: Job, saved: Callable[[dict[str, Tensor]], None], phase: str) -> Pace:
    return job.budget.pace(1.0 if phase == "finish" else 1 - FINISH_SHARE, saved)


def _save_average(job: Job, vae: AutoencoderKL, tokenizer: CLIPTokenizer, average: Mapping[str, Tensor]) -> None:
    """Write the base of averaged weights, while they are trained on; only where there is little time."""
    if job.budget.ends is None:
        return
    both = denoiser.both_of(job.design, text.make_encoder(tokenizer))
    both.load_state_dict(average, strict=False)
    save(job.model, vae, tokenizer, both["text_encoder"], both["unet"])
    job.written(job.model)


def tokenizer_for(design: Design, known: list[Concept], work: Path) -> CLIPTokenizer:
    """The tokenizer whose merges are those of the captions; one that is there already is kept.

    Where pairs of letters are equally frequent their order is by chance, so another one would not be the same.
    """
    folder = work / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    suffixes = list(design.styles.values())
    if design.is_varied:
        suffixes += [f" on {concepts.article(ground)} {ground} background" for ground in concepts.GROUNDS]
    texts = [t for c in known for suffix in suffixes for _, t in concepts.captions([c], suffix)]
    return text.train_tokenizer(texts, folder)


def save(
    folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, unet: UNet2DConditionModel
) -> None:
    """Write the base in diffusers' layout, float16 safetensors; what is there is replaced when all is written."""
    vae, encoder, unet = (copy.deepcopy(network).half().cpu() for network in (vae, encoder, unet))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=denoiser.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    beside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.save_pretrained(beside, safe_serialization=True)
    # what transformers loads it in where nobody says; diffusers loads the other parts so
    config = beside / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        source = Path(tokenizer.name_or_path) / name  # older readers want CLIP's own files
        if not (beside / "tokenizer" / name).exists():
            shutil.copy(source, beside / "tokenizer" / name)
    for file in (path for path in beside.rglob("*") if path.is_file()):
        target = folder / file.relative_to(beside)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(beside)


def publish(job: Job, known: list[Concept], sets: dict[str, DrawingSet]) -> quality.Quality:
    """Measure what was written and put figures, card and sheet beside it."""
    batch = JUDGED_AT_ONCE if job.engine.is_gpu else quality.BATCH
    figures, sheet = quality.measure(job.model, known, _real(job, known, sets), job.engine.device, batch)
    (job.model / "quality.json").write_text(json.dumps(figures.as_dict(), indent=2) + "\n")
    (job.model / "concepts.txt").write_text("".join(f"{c.words}\n" for c in known))
    (job.model / "README.md").write_text(card.text_of(job.design, figures, steps_made(job.work)))
    sheet.save(job.model / "sheet.png", optimize=True)
    print(json.dumps(figures.as_dict(), indent=2), flush=True)
    return figures


def _real(job: Job, known: list[Concept], sets: dict[str, DrawingSet]) -> quality.Real:
    svgs = quality.real_svgs(known, sets, job.most)
    if not job.design.is_varied:
        return quality.real(svgs, job.design.pixels)
    layers = drawings.draw_layers([*chain(*svgs)], job.design.pixels, job.work / "real-layers.npy", job.processes)
    return quality.Real(*np.split(drawings.on_white(layers), np.cumsum([len(part) for part in svgs])[:-1]))


def steps_made(work: Path) -> dict[str, int]:
    """Count the steps of each part, from their states."""
    made = {}
    for phase in PHASES:
        state = work / phase / "state.safetensors"
        if state.exists():
            with safe_open(state, "pt") as tensors:
                made[phase] = int(tensors.get_tensor("step"))
    return made

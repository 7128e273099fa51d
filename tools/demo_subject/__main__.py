"""Teach one cat from five pictures, and measure whether it is learned and whether the class stays what it was.

``python -m tools.demo_subject`` trains twice, with prior preservation and without, paints the same seeds, and writes
``docs/subject.png`` and ``figures.json`` beside this file.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import veneer
from tools.build_base import autoencoder, drawings
from tools.publish import publish
from veneer.adapter.protocol import AdapterWeights
from veneer.config.schema import RunConfig
from veneer.family.protocol import Family

FIGURES = Path(__file__).parent / "figures.json"
PICTURE = Path(__file__).parents[2] / "docs" / "subject.png"
CLASS, SUBJECT = "a cat face emoji", "a mikesch cat face emoji"
SEEDS = range(100, 116)  # painted and measured
SHOWN = 4  # of each kind, in the picture
GUIDANCE = 2.0  # more oversaturates this base
TRAIN: dict[str, Any] = {"max_steps": 240, "batch_size": 4, "learning_rate": 1e-3}


def main() -> None:
    """Train both adapters, paint, measure, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        adapters: dict[str, AdapterWeights] = {"base": {}}
        for name, prior in (("with prior", {"prompt": CLASS}), ("without prior", None)):
            adapters[name] = _train(Path(folder) / name.replace(" ", "-"), prior)
    family = veneer.load_base("bundled")
    painted = {name: _paint(family, factors) for name, factors in adapters.items()}
    ordinary = _generate(family, CLASS, [seed + 1000 for seed in SEEDS])
    figures = {name: _shares(family, pictures, ordinary) for name, pictures in painted.items()}
    for name, factors in adapters.items():
        figures[name] |= _drift(family, factors, ordinary)
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    _picture(painted).save(PICTURE, optimize=True)
    publish(PICTURE.with_suffix(".md"), table(figures))
    print(json.dumps(figures, indent=2))


def table(figures: dict[str, dict[str, float]]) -> str:
    """Return the figures as the page has them."""
    heading = "| model | subject's prompt | class's prompt | loss on the base's pictures of the class |"
    return "\n".join([heading, "| --- | --- | --- | --- |", *(_row(name, of) for name, of in figures.items())]) + "\n"


def _row(name: str, of: dict[str, float]) -> str:
    interval = f"[{of['low']:+.4f}, {of['high']:+.4f}]"
    return f"| {name} | {of['subject']:.0%} | {of['class']:.0%} | {of['drift']:+.4f} {interval} |"


def _config(output: Path, prior: dict[str, Any] | None, held_out: float | str = 0.0) -> RunConfig:
    mapping = {
        "base": "bundled",
        "output": {"dir": str(output)},
        "data": {"sources": [{"path": str(veneer.demo_path() / "subject")}], "held_out": held_out, "prior": prior},
        "adapter": {"rank": 8, "text_encoders": {"text_encoder": {"rank": 4, "learning_rate": 5e-4}}},
        "sample": {"prompts": [SUBJECT, CLASS], "guidance": GUIDANCE},
        "train": TRAIN,
    }
    return veneer.build_config(mapping, origin="the subject demo's config")


def _train(output: Path, prior: dict[str, Any] | None) -> AdapterWeights:
    result = veneer.run_training(_config(output, prior))
    return veneer.load_adapter(result.adapter).weights


def _paint(family: Family, factors: AdapterWeights) -> dict[str, list[Image.Image]]:
    """Paint both prompts from the same seeds."""
    merged = veneer.merge(family.networks, [(factors, 1.0)])
    painted = {prompt: _generate(family, prompt, list(SEEDS)) for prompt in (SUBJECT, CLASS)}
    merged.undo()
    return painted


def _generate(family: Family, prompt: str, seeds: list[int]) -> list[Image.Image]:
    return veneer.generate(family, [prompt] * len(seeds), seeds=seeds, guidance=GUIDANCE)


def _drift(family: Family, factors: AdapterWeights, ordinary: list[Image.Image]) -> dict[str, float]:
    """Measure what the adapter adds to the denoising loss on the base's own pictures of the class, of other seeds.

    A model that kept its class adds nothing; one that took the subject for the class denoises them worse.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number, picture in enumerate(ordinary):
            picture.save(Path(folder) / f"{number:02d}.png")
            (Path(folder) / f"{number:02d}.txt").write_text(CLASS)
        config = _config(Path("unused"), None, held_out=folder)
        score = veneer.score_adapter(config, family, veneer.survey(config.data), factors)
    return {"drift": round(score.mean, 4), "low": round(score.low, 4), "high": round(score.high, 4)}


def _shares(family: Family, painted: dict[str, list[Image.Image]], ordinary: list[Image.Image]) -> dict[str, float]:
    """Return the share of each prompt's pictures nearer to the subject's five than to the base's pictures of the class.

    Nearness is distance of latents to the nearest one, either way round; the base's pictures are of other seeds.
    """
    subject = _both_ways(family, [_open(path) for path in sorted((veneer.demo_path() / "subject").glob("*.png"))])
    usual = _both_ways(family, ordinary)

    def share(pictures: list[Image.Image]) -> float:
        latents = _latents(family, pictures)
        nearer = torch.cdist(latents, subject).amin(1) < torch.cdist(latents, usual).amin(1)
        return round(nearer.float().mean().item(), 4)

    return {"subject": share(painted[SUBJECT]), "class": share(painted[CLASS])}


def _open(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def _latents(family: Family, pictures: list[Image.Image]) -> Tensor:
    return family.encode_image(autoencoder.as_tensor(drawings.stack(pictures))).mean.flatten(1)


def _both_ways(family: Family, pictures: list[Image.Image]) -> Tensor:
    mirrored = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
    return _latents(family, [*pictures, *mirrored])


def _picture(painted: dict[str, dict[str, list[Image.Image]]]) -> Image.Image:
    """Draw a row for each adapter: the subject's prompt, then the class's, from the same seeds."""
    rows = [[*of[SUBJECT][:SHOWN], *of[CLASS][:SHOWN]] for of in painted.values()]
    headings = [*["mikesch"] * SHOWN, *["class"] * SHOWN]
    return veneer.sheet(rows, columns=headings, labels=list(painted))


if __name__ == "__main__":
    main()

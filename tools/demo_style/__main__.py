"""Measure whether the example's adapter paints OpenMoji's style, and whether the thing is still there.

python -m tools.demo_style --fit --work build/base    fit the two judges on real drawings, print how good they are
python -m tools.demo_style runs/example               measure an adapter on the 64 held-out concepts
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import veneer
import veneer.base
from tools.build_base import autoencoder, concepts, drawings
from tools.build_base.drawings import Pictures
from tools.publish import publish
from veneer.adapter.protocol import AdapterWeights
from veneer.family.protocol import Family

from . import classifier, likeness

FIGURES = Path(__file__).parent / "figures.json"
ROOT = Path(__file__).parents[2]
TOP = likeness.TOP
SEEDS = 3  # pictures of each thing
GUIDANCE = 2.5  # as the example paints


def main() -> None:
    """Fit the judges, or measure an adapter; the figures are printed and kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, nargs="?", help="folder of the example's run")
    parser.add_argument("--fit", action="store_true", help="fit the judges instead")
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder of the drawings' packages")
    options = parser.parse_args()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if options.fit:
        figures["classifier"] = fit_classifier(options.work)
        figures["likeness"] = fit_likeness(options.work)
    elif options.adapter is not None:
        figures |= measure(options.adapter)
        shutil.copy(options.adapter / "sheet.png", ROOT / "docs" / "sheet.png")
        publish(ROOT / "README.md", table(figures))
    else:
        parser.error("give an adapter, or --fit")
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def table(figures: dict[str, Any]) -> str:
    """Return the figures as README has them."""
    score, base, adapter = figures["score"], figures["base"], figures["adapter"]
    classifier_, likeness_, chance = figures["classifier"], figures["likeness"], figures["chance"]
    return f"""\
| on {score["pictures"]:.0f} things that training never showed | base | with the adapter |
| --- | --- | --- |
| denoising loss | {score["base"]:.4f} | {score["adapter"]:.4f} |
| painted pictures nearer to OpenMoji's drawings than to Noto's | {base["openmoji"]:.0%} | {adapter["openmoji"]:.0%} |
| ... that find their own real drawing among the first {TOP} of all, by likeness | {base["found"]:.0%} | \
{adapter["found"]:.0%} |
| ... by the bare angle between latents | {base["angle"]:.0%} | {adapter["angle"]:.0%} |

The difference of the losses is {score["mean"]:+.4f}, with a 95 % interval over pictures of
[{score["low"]:+.4f}, {score["high"]:+.4f}]. Shares are of {SEEDS} pictures of each thing; chance would find
{chance["found"]:.0%}. Both judges are fitted on real drawings of other things only: the one of style is right on
{classifier_["accuracy"]:.1%} of {classifier_["drawings"]:.0f} real drawings that it never saw; by the one of likeness
Noto's real drawings of these things find OpenMoji's {likeness_["real"]:.0%} of the time, by the bare angle
{likeness_["real_angle"]:.0%}. Figures and picture are made by `python -m tools.demo_style runs/example`.
"""


@dataclass(frozen=True)
class Place:
    """A base, the demo's pictures at its size, and its judges, fitted to what its autoencoder makes of drawings.

    Attributes:
        base: its folder, in diffusers' layout.
        demo: folder with ``train`` and ``held_out``.
        judges: folder of ``classifier.safetensors`` and ``likeness.safetensors``.
    """

    base: Path
    demo: Path
    judges: Path

    def family(self) -> Family:
        """Load the base."""
        return veneer.load_base(str(self.base))

    @property
    def pixels(self) -> int:
        """Side of its pictures."""
        side: int = json.loads((self.base / "vae" / "config.json").read_text("utf-8"))["sample_size"]
        return side


BUNDLED = Place(veneer.base.path(), veneer.demo_path(), Path(__file__).parent)


def fit_classifier(work: Path, place: Place = BUNDLED) -> dict[str, float]:
    """Fit on the concepts that the demo does not hold out; return its accuracy on those it does, real drawings all."""
    sets = drawings.read_sets(("noto", "twemoji", "openmoji"), work / "packages")
    known = concepts.concepts(sets)
    held_out = {c.name for c in concepts.demo_split(known)[1]}
    family = place.family()

    def pixels(style: str, held: bool) -> Tensor:
        names = [c.name for c in known if (c.name in held_out) == held]
        drawn = autoencoder.as_tensor(drawings.stack(drawings.draw(sets[style].svg(n), place.pixels) for n in names))
        through = [
            family.decode(family.encode_image(part).mean) for part in torch.tensor_split(drawn, min(16, len(drawn)))
        ]
        return torch.cat([drawn, *through])

    model = classifier.fit(pixels("noto", held=False), pixels("openmoji", held=False))
    classifier.save(model, place.judges / classifier.WEIGHTS.name)
    right = [
        ~classifier.is_openmoji(model, pixels("noto", held=True)),
        classifier.is_openmoji(model, pixels("openmoji", held=True)),
    ]
    return {"accuracy": _share(torch.cat(right)), "drawings": sum(len(r) for r in right)}


def fit_likeness(work: Path, place: Place = BUNDLED) -> dict[str, float]:
    """Fit on the concepts that the demo does not hold out; return how often real drawings of the others are found."""
    sets = drawings.read_sets((*concepts.STYLES, "openmoji"), work / "packages")
    known = concepts.concepts(sets)
    held_out = [c.name for c in concepts.demo_split(known)[1]]
    family = place.family()

    def latents(style: str) -> dict[str, Tensor]:
        names = [c.name for c in known if c.name in sets[style]]
        drawn = drawings.stack(drawings.draw(sets[style].svg(name), place.pixels) for name in names)
        sides = [_latents(family, side) for side in (drawn, _mirrored(drawn))]
        return dict(zip(names, torch.stack(sides, dim=1), strict=True))

    drawn = {style: latents(style) for style in (*concepts.STYLES, "openmoji")}
    names = [c.name for c in known if c.name not in set(held_out)]
    ridge, directions, share = likeness.chosen(drawn, names)
    fitted = likeness.fit(drawn, names, ridge, directions)
    likeness.save(fitted, place.judges / likeness.WEIGHTS.name)
    noto = torch.stack([drawn["noto"][name][0] for name in held_out])
    openmoji = torch.stack([drawn["openmoji"][name] for name in held_out], dim=1)
    return {
        "ridge": ridge,
        "directions": directions,
        "cross_validated": round(share, 4),
        "real": round(likeness.found(fitted.places(noto, openmoji)), 4),
        "real_angle": round(likeness.found(likeness.places_by_angle(noto, openmoji)), 4),
    }


def measure(adapter: Path, place: Place = BUNDLED) -> dict[str, dict[str, float]]:
    """Measure style and retrieval of the base, alone and with the adapter, on the demo's held-out concepts."""
    family = place.family()
    factors = veneer.load_adapter(adapter, family.networks).weights
    return {
        "score": _score(family, factors, place),
        "base": _shares(family, {}, place),
        "adapter": _shares(family, factors, place),
        "chance": {"found": TOP / len(held_out_rows(place))},
    }


def _score(family: Family, factors: AdapterWeights, place: Place) -> dict[str, float]:
    """Score the adapter as the example does."""
    data = {"sources": [{"path": str(place.demo / "train")}], "held_out": str(place.demo / "held_out")}
    config = veneer.build_config({"base": str(place.base), "data": data}, origin="the demo's config")
    return asdict(veneer.score_adapter(config, family, veneer.survey(config.data), factors))


def held_out_rows(place: Place) -> list[dict[str, str]]:
    """Return file names and captions of what the demo holds out."""
    file = place.demo / "held_out" / "metadata.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def _shares(family: Family, factors: AdapterWeights, place: Place) -> dict[str, float]:
    """Return the shares of the pictures painted with an adapter that pass each judge.

    ``openmoji``: nearer to its drawings than to Noto's. ``found``: own real drawing among the first five of all, by
    likeness as things; ``angle``: the same by the angle between latents alone.
    """
    rows = held_out_rows(place)
    judge = likeness.load(place.judges / likeness.WEIGHTS.name)
    style = classifier.load(place.judges / classifier.WEIGHTS.name)
    real = np.stack([_read(place.demo / "held_out" / row["file_name"]) for row in rows])
    real_2NF = torch.stack([_latents(family, side) for side in (real, _mirrored(real))])
    merged = veneer.merge(family.networks, [(factors, 1.0)])
    of_seed = []
    for seed in range(SEEDS):
        seeds = [1000 * seed + number for number in range(len(rows))]
        made = veneer.generate(family, [row["text"] for row in rows], seeds=seeds, guidance=GUIDANCE, batch=len(rows))
        pictures = drawings.stack(made)
        latents = _latents(family, pictures)
        near = classifier.is_openmoji(style, autoencoder.as_tensor(pictures))
        by_angle = likeness.places_by_angle(latents, real_2NF)
        of_seed.append((_share(near), likeness.found(judge.places(latents, real_2NF)), likeness.found(by_angle)))
    merged.undo()
    means = np.mean(of_seed, axis=0).round(4).tolist()
    return dict(zip(("openmoji", "found", "angle"), means, strict=True))


def _latents(family: Family, pictures: Pictures) -> Tensor:
    parts = np.array_split(pictures, -(-len(pictures) // 64))
    return torch.cat([family.encode_image(autoencoder.as_tensor(part)).mean.flatten(1) for part in parts])


def _mirrored(pictures: Pictures) -> Pictures:
    return np.ascontiguousarray(pictures[:, :, ::-1])


def _read(file: Path) -> Pictures:
    return np.asarray(Image.open(file).convert("RGB"))


def _share(flags: Tensor) -> float:
    return round(flags.float().mean().item(), 4)


if __name__ == "__main__":
    main()

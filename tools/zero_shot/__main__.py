"""Measure how often the bundled base takes a picture for what its caption says, by the bare rule and by Veneer's.

``python -m tools.zero_shot`` takes two minutes on two cores and writes the table of ``docs/evaluate.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import veneer
from tools.publish import publish
from veneer.engine.precision import precision_of
from veneer.evaluate.prompt_fidelity import Judge, margins_in_group
from veneer.family.protocol import Family
from veneer.family.registry import BUNDLED

__all__ = ["FIGURES", "PAGE", "SECTION", "main", "table"]

FIGURES = Path(__file__).parent / "figures.json"
PAGE = Path(__file__).parents[2] / "docs" / "evaluate.md"
SECTION = "zero-shot"


def main() -> None:
    """Measure, print the table, keep the figures, and publish them."""
    family = veneer.load_base(BUNDLED)
    folder = veneer.demo_path() / "held_out"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
    captions = [row["text"] for row in rows]
    judge = Judge(family, captions, precision_of("float32", torch.device("cpu")))
    drawings = (Image.open(folder / row["file_name"]).convert("RGB") for row in rows)
    figures = {
        "pictures": len(captions),
        "real drawings of OpenMoji, a style that it has never seen": _shares(judge, family, drawings),
        "its own pictures": _shares(judge, family, veneer.generate(family, captions, seeds=range(len(captions)))),
    }
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    publish(PAGE, table(figures), SECTION)
    print(table(figures))


def _shares(judge: Judge, family: Family, pictures: Iterable[Image.Image]) -> dict[str, float]:
    """Return the shares of pictures that are found by the bare rule, by Veneer's, and by chance."""
    groups = [errors for _, errors in judge.errors(_latents(family, pictures))]
    bare = np.concatenate([errors.mean(axis=2).argmin(axis=1) == np.arange(len(errors)) for errors in groups])
    ours = np.concatenate([margins_in_group(errors).mean(axis=1) > 0 for errors in groups])
    return {"bare": float(bare.mean()), "ours": float(ours.mean()), "chance": len(groups) / len(bare)}


def _latents(family: Family, pictures: Iterable[Image.Image]) -> Tensor:
    pixels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1 for picture in pictures]
    return torch.cat([family.encode_image(one[None]).mean for one in pixels])


def table(figures: dict[str, Any]) -> str:
    """Return the figures as the page has them."""
    rows = [
        f"| {name} | {one['bare']:.0%} | {one['ours']:.0%} | {one['chance']:.0%} |"
        for name, one in figures.items()
        if isinstance(one, dict)
    ]
    return "\n".join(
        [
            f"| of {figures['pictures']} pictures each | bare rule | each text's mean taken off | by chance |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()

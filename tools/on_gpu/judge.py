"""Hold a base that came back against what it should reach, here on the CPU: by the demo's adapter above all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

import veneer
from tools.build_base import build, concepts, demo, drawings
from tools.build_base.design import DESIGNS, Design
from tools.demo_style import __main__ as demo_style
from tools.on_gpu import archive
from tools.on_gpu.base import ARCHIVE
from tools.on_gpu.places import ROOT
from tools.on_gpu.table import target_rows
from veneer.adapter.protocol import AdapterWeights

__all__ = ["judge"]

STEPS = 300
"""Of the adapter: the example's."""
SHOWN = 20
"""Things on the sheet."""


def judge(came: Path, work: Path | None = None, steps: int = STEPS) -> int:
    """Unpack a base, train the example's adapter on it, measure both, print a table; return 0 if all is reached.

    ``model`` and ``demo`` beside what came back are then what could be bundled. It takes some twenty
    minutes of two cores.

    Args:
        came: folder of what came back from the machine.
        work: folder with the packages of drawings; None: where a build of a base has them.
        steps: of the adapter.
    """
    work = ROOT / "build" / "base" if work is None else work
    place = demo_style.Place(came / "model", came / "demo", came / "judges")
    archive.unpack_parts(came / ARCHIVE, place.base)
    place.judges.mkdir(exist_ok=True)
    design = next(each for each in DESIGNS.values() if each.pixels == place.pixels)
    _write_demo(design, place, work)
    reached = _quality(design, place, work)
    style = _style(place, work, steps)
    reached |= {"style": style["adapter"]["openmoji"], "found_over_base": _ratio(style)}
    (came / "judged.json").write_text(json.dumps({"quality": reached, "style": style}, indent=1) + "\n", "utf-8")
    rows = target_rows(reached)
    print("\n".join(rows))
    print(f"To be looked at: {place.base / 'sheet.png'}, {came / 'sheet-of-adapter.png'}")
    return 1 if any("NO" in row or "not measured" in row for row in rows) else 0


def _write_demo(design: Design, place: demo_style.Place, work: Path) -> None:
    sets = drawings.read_sets(concepts.EVERYWHERE, work / "packages")
    demo.write(place.demo, concepts.concepts(sets), sets["openmoji"], design.pixels)


def _quality(design: Design, place: demo_style.Place, work: Path) -> dict[str, float]:
    """Return the figures that came with the base, measured now where the time there was not enough."""
    file = place.base / "quality.json"
    if not file.exists():
        job = build.Job(design, work, place.base.parent)
        sets = drawings.read_sets(build.needed_sets(design), work / "packages")
        build.publish(job, concepts.concepts(sets), sets)
    figures: dict[str, float] = json.loads(file.read_text("utf-8"))
    return figures


def _style(place: demo_style.Place, work: Path, steps: int) -> dict[str, Any]:
    """Train the demo's adapter with the example's settings, and measure it."""
    fitted = {"classifier": demo_style.fit_classifier(work, place), "likeness": demo_style.fit_likeness(work, place)}
    config = _example(place, steps)
    adapter = veneer.run_training(config).adapter
    _sheet(place, veneer.load_adapter(adapter).weights, place.base.parent / "sheet-of-adapter.png")
    return {**fitted, **demo_style.measure(adapter, place)}


def _example(place: demo_style.Place, steps: int) -> veneer.RunConfig:
    """Return the settings of lora_complete_example.py on its own base and pictures."""
    mapping = {
        "base": str(place.base),
        "output": {"dir": str(place.base.parent / "adapter")},
        "data": {"sources": [{"path": str(place.demo / "train")}], "held_out": str(place.demo / "held_out")},
        "adapter": {"rank": 4},
        "train": {"max_steps": steps, "batch_size": 8, "learning_rate": 1e-3},
        "sample": {"guidance": demo_style.GUIDANCE},
    }
    return veneer.build_config(mapping, origin="the example's config")


def _sheet(place: demo_style.Place, factors: AdapterWeights, file: Path) -> None:
    """Paint held-out things with the base, with the adapter, and beside the real drawings."""
    rows = demo_style.held_out_rows(place)[:: -(-len(demo_style.held_out_rows(place)) // SHOWN)]
    family, prompts = place.family(), [row["text"] for row in rows]
    painted = []
    for weights in ({}, factors):
        merged = veneer.merge(family.networks, [(weights, 1.0)])
        painted.append(veneer.generate(family, prompts, seeds=[*range(len(rows))], guidance=demo_style.GUIDANCE))
        merged.undo()
    real = [Image.open(place.demo / "held_out" / row["file_name"]).convert("RGB") for row in rows]
    names = [row["file_name"].removesuffix(".png") for row in rows]
    veneer.sheet([*painted, real], columns=names, labels=["base", "adapter", "real"]).save(file)


def _ratio(style: Mapping[str, Mapping[str, float]]) -> float:
    base = style["base"]["found"]
    return style["adapter"]["found"] / base if base else 0.0

"""Make a base from nothing: ``python -m tools.build_base --work build/base``; goes on where it stopped.

By default it is the bundled one, on the CPU, for as many steps as it had. ``--design large --device cuda --graphs
--minutes 5`` makes a better one on a GPU; ``--plan`` says beforehand what there would be time for.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import get_args

import torch

from . import build, concepts, demo, drawings
from .design import DESIGNS
from .engine import Engine, Precision
from .plan import plan_table

MINUTES = 4.75
"""Of a plan, where no time is given: what a run on a GPU has."""
HERE = Path(__file__).parent
BASE = HERE.parents[1] / "src" / "veneer" / "base"


def main() -> None:
    """Build every part, or go on building; measure; write."""
    given = _parser().parse_args()
    design = DESIGNS[given.design]
    if given.plan:
        print(plan_table(design, 60 * (given.minutes or MINUTES)))
        return
    job = build.Job(
        design=design,
        work=given.work,
        out=given.out,
        engine=Engine(torch.device(given.device), given.precision, given.graphs, given.compile),
        budget=build.Budget() if given.minutes is None else build.Budget.of(60 * given.minutes),
    )
    sets = drawings.read_sets(build.needed_sets(design), given.work / "packages")
    demo.write(given.out / "demo", concepts.concepts(sets), sets["openmoji"], design.pixels)
    build.build(job)
    if given.out == BASE:
        for phase in build.PHASES:
            shutil.copy(given.work / phase / "log.jsonl", HERE / f"{phase}.log.jsonl")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.build_base", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder for packages, caches, states")
    parser.add_argument("--out", type=Path, default=BASE, help="folder that gets model/ and demo/")
    parser.add_argument("--design", choices=tuple(DESIGNS), default="small", help="which base")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto", help="of multiplications")
    parser.add_argument("--graphs", action="store_true", help="a step's passes as one CUDA graph")
    parser.add_argument("--compile", action="store_true", help="compute losses through torch.compile")
    parser.add_argument("--minutes", type=float, help="how long it may take; with fewer steps, but with a base")
    parser.add_argument("--plan", action="store_true", help="say what there would be time for on an H100, and end")
    return parser

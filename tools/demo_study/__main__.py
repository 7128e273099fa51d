"""Publish finished studies in docs/study.md: tables into the page, plots and numbers beside it.

veneer study studies/rank.yaml
veneer study studies/strength.yaml
veneer study studies/targets.yaml
veneer adapter resize runs/demo-rank/trials/rank-64-seed0-* --study --out runs/demo-resized
python -m tools.demo_study runs/demo-rank runs/demo-strength runs/demo-targets runs/demo-resized

About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from tools.publish import publish

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "study.md"
FOLDER = ROOT / "docs" / "study"
TITLES = {
    "rank": "Rank, at one alpha",
    "strength": "Rank, at one strength alpha/rank",
    "targets": "Matrices, at one number of parameters",
    "resized": "One adapter of rank 64, cut after training",
}


def main() -> None:
    """Copy plots and numbers, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+", help="folders that veneer study and resize --study left")
    studies: list[Path] = parser.parse_args().studies
    FOLDER.mkdir(exist_ok=True)
    publish(PAGE, "\n".join(_published(study) for study in studies))


def _published(study: Path) -> str:
    name = study.name.rpartition("-")[2]
    stem = "ranks" if name == "resized" else "study"
    for ending in ("json", "csv", "png"):
        shutil.copy(study / f"{stem}.{ending}", FOLDER / f"{name}.{ending}")
    return section(name, settings(study), (study / f"{stem}.md").read_text("utf-8"))


def settings(study: Path) -> str:
    """Return how it was trained, in a line; empty for an adapter that was cut."""
    path = study / "study.yaml"
    if not path.exists():
        return ""
    from veneer.study.config import load_study

    told = load_study(path)
    train, seeds = told.run.train, len(told.config.seeds)
    rate = train.learning_rate
    counted = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return f"{train.max_steps} steps of {train.batch_size} pictures at a rate of {rate:g}, {counted}.\n\n"


def section(name: str, trained: str, table: str) -> str:
    """Return one study's part of the page."""
    return f"### {TITLES[name]}\n\n{trained}![The study's plot](study/{name}.png)\n\n{table}"


def rows() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each study that is published, by its name."""
    return {path.stem: json.loads(path.read_text("utf-8"))["rows"] for path in sorted(FOLDER.glob("*.json"))}


if __name__ == "__main__":
    main()

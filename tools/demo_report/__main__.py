"""Measure how long ``veneer evaluate`` takes on the demo, and check that two runs write the same bytes.

veneer train tools/demo_report/run.yaml                    some minutes on two cores
python -m tools.demo_report runs/report                    a few more; writes the table of docs/evaluate.md

The pictures of docs/report.md are then taken with ``python -m tools.screenshots``; its help shows the commands.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.page import machine
from tools.publish import publish
from veneer.evaluate.results import EVALUATION

__all__ = ["PAGE", "SECTION", "load_figures", "main", "table"]

ROOT = Path(__file__).parents[2]
FIGURES = Path(__file__).parent / "figures.json"
PAGE = ROOT / "docs" / "evaluate.md"
SECTION = "time"
PAINTED = 16
"""Default of ``--paint``."""


def main() -> None:
    """Measure, save the figures, and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    run: Path = parser.parse_args().run
    options = [("losses alone", 0), ("losses alone, again", 0), (f"with {PAINTED} paintings of each kind", PAINTED)]
    measured = [(name, *_evaluate(run, paint)) for name, paint in options]
    figures = {
        "machine": machine(),
        "pictures": json.loads(measured[0][2])["held_out"]["pictures"],
        "draws": json.loads(measured[0][2])["held_out"]["draws"],
        "seconds": {name: seconds for name, seconds, _ in measured},
        "equal": measured[0][2] == measured[1][2],
    }
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    publish(PAGE, table(figures), SECTION)
    print(table(figures))


def load_figures() -> dict[str, Any]:
    """Return the figures that were saved last; empty before the first measurement."""
    figures: dict[str, Any] = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    return figures


def _evaluate(run: Path, paint: int) -> tuple[float, str]:
    """Return the seconds that the whole command takes, and the text of evaluation.json."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "veneer", "evaluate", str(run), "--samples", str(paint)], check=True)
    return round(time.perf_counter() - began, 1), (run / EVALUATION).read_text("utf-8")


def table(figures: dict[str, Any]) -> str:
    """Return the figures as the page's table; a sentence before the first measurement."""
    if not figures:
        return "Not measured yet.\n"
    rows = "\n".join(f"| {name} | {seconds:.1f} s |" for name, seconds in figures["seconds"].items())
    same = "The first two wrote the same bytes." if figures["equal"] else "The first two did not write the same bytes."
    return f"""\
| `veneer evaluate` on {figures["pictures"]} held-out pictures and as many training pictures, {figures["draws"]} draws \
each | the whole command |
| --- | --- |
{rows}

{same} On {figures["machine"]}.
"""


if __name__ == "__main__":
    main()

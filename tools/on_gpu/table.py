"""Short tables of what was found, and the section of docs/benchmarks.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tools.on_gpu.groups import GROUPS, PEFT
from tools.on_gpu.places import ROOT

__all__ = ["TARGETS", "base_table", "bench_table", "check_table", "publish_results", "section", "stored_results"]

TARGETS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "psnr_noto_held_out": ("dB through the autoencoder, Noto's drawings that it never saw", 28.0),
        "psnr_openmoji": ("dB, OpenMoji's, a style that it never saw", 26.0),
        "retrieval_top1": ("pictures that find their own drawing first", 0.98),
        "style": ("with the demo's adapter: nearer to OpenMoji's drawings than to Noto's", 0.90),
        "found_over_base": ("things found with the adapter, over those found without", 1.0),
    }
)
"""What a base to be bundled has to reach, by the name of its figure."""
RESULTS = ROOT / "benchmarks" / "results"


def check_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a line a test that has something to say, and a line of counts."""
    counts: dict[str, int] = {}
    lines = []
    for name, result in results.items():
        counts[result["outcome"]] = counts.get(result["outcome"], 0) + 1
        figures = ", ".join(f"{what} {value}" for what, value in result["figures"].items())
        if said := "; ".join(part for part in (figures, result["why"]) if part):
            lines.append(f"{result['outcome']:8}{result['seconds']:7.1f} s  {name}: {said}")
    return "\n".join([*lines, ", ".join(f"{number} {outcome}" for outcome, number in counts.items())])


def base_table(figures: Mapping[str, Any]) -> str:
    """Return what was trained, and what was reached of what should be."""
    lines = [f"On {figures['card']}, {figures['date']}.", "", "| phase | steps | seconds | loss |", "| --- " * 4 + "|"]
    for phase, of in figures["phases"].items():
        lines.append(f"| {phase} | {of['steps']:,} | {of['seconds']:.0f} | {of['loss']:.4f} |")
    total = sum(figures["bytes"].values())
    lines += ["", *target_rows(figures["quality"]), "", f"Written in {len(figures['bytes'])} parts, {total:,} bytes."]
    lines += [f"No CUDA graph in {phase}: {why}" for phase, why in figures["no CUDA graph"].items()]
    if figures["fault"]:
        lines.append(f"Ended early: {figures['fault'][:300]}")
    return "\n".join(lines)


def target_rows(reached: Mapping[str, float]) -> list[str]:
    """Return a table of the figures that should be reached."""
    lines = ["| figure | at least | reached | |", "| --- " * 4 + "|"]
    for name, (title, least) in TARGETS.items():
        value = reached.get(name)
        cells = ("not measured", "") if value is None else (f"{value:.4g}", "yes" if value >= least else "NO")
        lines.append(f"| {title} | {least:g} | {' | '.join(cells)} |")
    return lines


def bench_table(figures: Mapping[str, Any]) -> str:
    """Return a table of each group: ratios over peft's step first, then seconds and memory."""
    lines = [f"On {figures['machine']}, {figures['date']}, rank 16."]
    for group in dict.fromkeys(case["group"] for case in figures["cases"]):
        cases = [case for case in figures["cases"] if case["group"] == group]
        title = GROUPS[group].title if group in GROUPS else str(group)
        lines += ["", f"{title}:", "", *_rows(cases)]
    if figures["skipped"]:
        lines += ["", f"No time was left for {', '.join(figures['skipped'])}."]
    return "\n".join([*lines, ""])


def _rows(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    if any("batch" in case for case in cases):
        return ["| way | largest batch |", "| --- | --- |", *(f"| {c['way']} | {_batch(c)} |" for c in cases)]
    peft: Mapping[str, Any] = next((case for case in cases if case["way"] == PEFT), {})
    head = ["| way | time over peft's | memory over peft's | seconds | GiB |", "| --- | --- | --- | --- | --- |"]
    return [*head, *(_row(case, peft) for case in cases)]


def _batch(case: Mapping[str, Any]) -> str:
    return str(case.get("batch", case.get("error", "")))


def _row(case: Mapping[str, Any], peft: Mapping[str, Any]) -> str:
    if "error" in case:
        return f"| {case['way']} | {case['error'][:120]} | | | |"
    peak = case["peak"]
    cells = [_over(case["seconds"], peft.get("seconds")), _over(peak, peft.get("peak")), f"{case['seconds']:.4f}"]
    return f"| {case['way']} | {' | '.join([*cells, '–' if peak is None else f'{peak / 2**30:.2f}'])} |"


def _over(value: float | None, other: float | None) -> str:
    return "–" if value is None or not other else f"{value / other:.3f}"


def section(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the section of docs/benchmarks.md, a table a card."""
    tables = [bench_table(figures) for figures in results]
    return "\n".join(tables) if tables else "Not measured yet.\n"


def stored_results() -> list[dict[str, Any]]:
    """Return the figures of all cards that are kept."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("gpu-*.json"))]


def publish_results(file: Path) -> None:
    """Keep a bench's figures under its card's name, and write them into the page."""
    from benchmarks.page import PAGE
    from tools.publish import publish

    figures = json.loads(file.read_text("utf-8"))
    name = re.sub(r"[^a-z0-9]+", "-", figures["card"].lower()).strip("-")
    (RESULTS / f"gpu-{name}.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    publish(PAGE, section(stored_results()), "gpu")

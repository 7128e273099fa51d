"""The run that is prepared for a GPU works on the CPU: what is packed, what is checked, what is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.page import PAGE
from tests.packages import few_steps, make_packages
from tools.build_base import build as build_base
from tools.build_base import demo, design
from tools.build_base.command import MINUTES
from tools.build_base.plan import parameters, plan_table
from tools.on_gpu import archive, base, bench, run, table
from tools.on_gpu.adopt import adopt
from tools.on_gpu.check import DEVICE
from tools.on_gpu.groups import PEFT
from tools.on_gpu.places import MACHINE, ROOT
from tools.on_gpu.requirements import LARGE, Wheel, choose, direct_requirements, read_machine, read_pins, unmet
from tools.on_gpu.table import bench_table, check_table
from tools.publish import published

PINS = {"old": "2.0", "missing": "1.5", "beneath": "3.1", "unknown": "4.0", "large": "7.0"}
MACHINE_HAS = {"old": "1.0", "new": "9.0", "unknown": None, "large": None, "trusted": None}
NEEDS = {"missing": ("beneath>=3", "trusted>=1", "left-out; extra == 'x'", "other; python_version < '3.12'")}


@pytest.fixture(autouse=True)
def nothing_travelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the archives alone that may lie in the project's folder."""
    for name in ("SITE", "WEIGHTS"):
        monkeypatch.setattr(run, name, tmp_path / "none")


def fetch(name: str, version: str) -> Wheel:
    return Wheel(name, version, LARGE + 1 if name == "large" else 1, NEEDS.get(name, ()))


def test_what_the_machine_lacks_is_packed_with_what_it_needs() -> None:
    direct = ["old>=2", "new>=2", "missing>=1", "unknown>=4", "large>=7"]
    chosen = choose(direct, MACHINE_HAS, PINS, fetch)
    assert {name: wheel.version for name, wheel in chosen.items()} == {
        "old": "2.0",
        "missing": "1.5",
        "beneath": "3.1",
        "unknown": "4.0",
    }
    assert unmet(direct, MACHINE_HAS, chosen) == []


def test_a_requirement_that_nothing_meets_is_named() -> None:
    chosen = {"missing": fetch("missing", "1.5")}
    assert unmet(["old>=2", "missing>=1"], MACHINE_HAS, chosen) == ["beneath>=3: not there", "old>=2: 1.0"]


def test_the_projects_own_requirements_are_on_the_machine_or_pinned() -> None:
    """So a dependency that is added later is packed, and one without a pin is found here."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    machine, pins = read_machine(MACHINE), read_pins(ROOT / "constraints.txt")
    chosen = choose(direct_requirements(project), machine, pins, lambda name, version: Wheel(name, version, 1))
    assert {"diffusers", "pydantic", "transformers"} <= chosen.keys()
    assert not {"torch", "numpy", "tokenizers", "huggingface-hub"} & chosen.keys()


def test_weights_come_back_to_the_bit(tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    for root in (there, back):
        (root / "model").mkdir(parents=True)
    weights = bytes(range(256)) * 3
    (there / "model" / "a.safetensors").write_bytes(weights)
    (there / "model" / "b.safetensors").write_bytes(weights[:-1])  # an odd number of bytes
    (back / "model" / "b.safetensors").write_bytes(b"kept")
    archive.pack_weights(there, sorted((there / "model").iterdir()), tmp_path / "w.tar.xz")
    assert archive.unpack_weights(tmp_path / "w.tar.xz", back) == ["model/a.safetensors"]
    assert (back / "model" / "a.safetensors").read_bytes() == weights
    assert (back / "model" / "b.safetensors").read_bytes() == b"kept"


def test_packages_leave_out_what_is_not_needed(tmp_path: Path) -> None:
    kept = ["a/__init__.py", "bitsandbytes/libbitsandbytes_cuda130.so", "bitsandbytes/libbitsandbytes_cpu.so"]
    left = ["a/__pycache__/x.pyc", "a/tests/test_x.py", "bitsandbytes/libbitsandbytes_cuda118.so"]
    for name in (*kept, *left):
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(name)
    archive.pack_folder(tmp_path / "site", tmp_path / "site.tar.xz")
    archive.unpack_folder(tmp_path / "site.tar.xz", tmp_path / "back")
    found = {
        path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*") if path.is_file()
    }
    assert found == set(kept)


def test_the_tool_needs_nothing_but_the_standard_library_until_packages_are_unpacked() -> None:
    code = "import sys, tools.on_gpu.__main__; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    assert not loaded & {"packaging", "torch", "diffusers", "veneer", "pytest", "numpy"}


def test_a_part_that_does_not_end_is_ended_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_GRACE", 0.2)
    monkeypatch.setattr(run, "PARTS", {"check": 0.3, "bench": 0.3})
    monkeypatch.setattr(run.sys, "executable", _script(tmp_path, "echo begun; sleep 60"))
    began = time.monotonic()
    assert run.run(["check", "bench"], tmp_path, "cpu", None) != 0
    assert time.monotonic() - began < 20
    said = capsys.readouterr().out
    assert said.count("begun") == said.count("ended after") == 2


def test_no_part_begins_without_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.run(["check"], tmp_path, "cpu", 1.0) == 1
    assert "check: skipped, no time was left" in capsys.readouterr().out


def _script(folder: Path, lines: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


def test_a_table_names_what_was_found_and_counts_the_rest() -> None:
    passed = {"outcome": "passed", "seconds": 1.0, "figures": {}, "why": ""}
    found = {**passed, "figures": {"held GiB": "2.1"}}
    results = {"a": passed, "b": found, "c": {**passed, "outcome": "failed", "why": "assert 1 == 2"}}
    assert check_table(results).splitlines() == [
        "passed      1.0 s  b: held GiB 2.1",
        "failed      1.0 s  c: assert 1 == 2",
        "2 passed, 1 failed",
    ]


@pytest.mark.slow
def test_without_a_gpu_its_tests_are_skipped() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop(DEVICE, None)
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    last = ended.stdout.splitlines()[-1]
    assert ended.returncode == 0 and "skipped" in last and "passed" not in last and "failed" not in last


@pytest.mark.slow
def test_the_check_passes_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.on_gpu", "check", "--out", str(tmp_path), "--device", "cpu"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:]
    results = json.loads((tmp_path / "check.json").read_text("utf-8"))
    files = {name.partition("::")[0] for name in results}
    assert files == {path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert all(result["outcome"] in ("passed", "skipped") for result in results.values())


@pytest.mark.slow
def test_the_bench_measures_every_kind_of_case_on_the_cpu(tmp_path: Path) -> None:
    assert bench.bench(tmp_path, "cpu", 200, ["flux-1024-1", "z-image-1024-1", "sdxl-1024-1", "sd15-512-largest"]) == 0
    figures = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    assert not [case for case in figures["cases"] if "error" in case]
    ways = {(case["group"], case["way"]) for case in figures["cases"]}
    assert {("flux-1024-1", "veneer, lean"), ("sdxl-1024-1", PEFT), ("sdxl-1024-1", "veneer, checkpoint")} <= ways
    assert figures["skipped"] == []


def test_a_group_that_ends_its_process_or_takes_too_long_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the measuring process: it dies at the first group, hangs at the second, measures the third."""
    lines = """
    for argument in "$@"; do [ "$last" = --file ] && file=$argument; last=$argument; done
    shift 2
    for group in "$@"; do
        case $group in --*) exit 0;; esac
        echo "{\\"begins\\": \\"$group\\"}" >> $file
        case $group in
            sd15-512-1) kill -9 $$;;
            sd15-512-4) sleep 60;;
            *) echo "{\\"group\\": \\"$group\\", \\"way\\": \\"w\\", \\"seconds\\": 1.0, \\"peak\\": null}" >> $file;;
        esac
    done
    """
    monkeypatch.setattr(bench.sys, "executable", _script(tmp_path, lines))
    monkeypatch.setitem(bench.GROUPS, "sd15-512-4", replace(bench.GROUPS["sd15-512-4"], limit=0.5))
    assert bench.bench(tmp_path, "cpu", 30, ["sd15-512-1", "sd15-512-4", "sdxl-1024-1"]) == 0
    cases = json.loads((tmp_path / "bench.json").read_text("utf-8"))["cases"]
    assert [(case["group"], case.get("error", "measured")) for case in cases] == [
        ("sd15-512-1", "exit status -9"),
        ("sd15-512-4", "its time was over"),
        ("sdxl-1024-1", "measured"),
    ]


def test_a_base_comes_back_in_parts_with_figures_and_a_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_packages(tmp_path / "drawings", monkeypatch)
    monkeypatch.setattr(base, "DRAWINGS", tmp_path / "drawings")
    monkeypatch.setattr(design, "TINY", few_steps(design.TINY))
    out = tmp_path / "out"
    out.mkdir()
    assert base.base(out, "cpu", 300.0, tmp_path / "work") == 0
    names = {file.name for file in out.iterdir()}
    assert names == {"base.json", "base.jsonl", "sheet.png", "base.tar.0"}
    figures = json.loads((out / "base.json").read_text())
    assert set(figures["phases"]) == {"autoencoder", "denoiser", "finish"} and figures["quality"]["concepts"] == 8
    assert "| autoencoder |" in capsys.readouterr().out
    archive.unpack_parts(out / "base.tar", tmp_path / "back")
    assert (tmp_path / "back" / "unet" / "diffusion_pytorch_model.safetensors").exists()


def test_a_base_that_is_cut_short_has_been_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_packages(tmp_path / "drawings", monkeypatch)
    monkeypatch.setattr(base, "DRAWINGS", tmp_path / "drawings")
    monkeypatch.setattr(design, "TINY", few_steps(design.TINY))

    def fail(*_: object) -> None:
        raise RuntimeError("the card fell out")

    monkeypatch.setattr(build_base, "publish", fail)
    assert base.base(tmp_path, "cpu", 300.0, tmp_path / "work") == 1
    assert "Ended early: RuntimeError: the card fell out" in capsys.readouterr().out
    archive.unpack_parts(tmp_path / "base.tar", tmp_path / "back")
    assert (tmp_path / "back" / "vae" / "diffusion_pytorch_model.safetensors").exists()


@pytest.mark.slow
def test_a_base_that_came_back_is_judged_with_an_adapter_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.build_base import concepts
    from tools.demo_style import classifier, likeness
    from tools.on_gpu.judge import judge

    make_packages(tmp_path / "work" / "packages", monkeypatch)
    monkeypatch.setattr(design, "TINY", few_steps(design.TINY))
    monkeypatch.setattr(concepts, "DEMO_HELD_OUT", 3)
    monkeypatch.setattr(concepts, "DEMO_TRAIN", 5)
    monkeypatch.setattr(demo, "SUBJECT", ("ant",))
    monkeypatch.setattr(classifier, "STEPS", 3)
    monkeypatch.setattr(likeness, "FOLDS", 2)
    monkeypatch.setattr(likeness, "DIRECTIONS", (2,))
    base.base(tmp_path, "cpu", 300.0, tmp_path / "work")
    capsys.readouterr()
    assert judge(tmp_path, tmp_path / "work", steps=2) == 1  # it has learned nothing
    said = capsys.readouterr().out
    assert "| pictures that find their own drawing first | 0.98 |" in said and "not measured" not in said
    assert Image.open(tmp_path / "sheet-of-adapter.png").width > 0
    assert (tmp_path / "demo" / "LICENSE.txt").read_text().count("32 x 32") == 1


def judged(folder: Path, **reached: float) -> Path:
    """What a base leaves that was judged, and a project that it may be put into."""
    for place, name in (("came", "new"), ("root/src/veneer/base", "old")):
        for part in ("model", "demo"):
            (folder / place / part).mkdir(parents=True)
            (folder / place / part / name).write_text(name)
    for name in ("came/judges", "root/tools/demo_style", "root/tools/build_base"):
        (folder / name).mkdir(parents=True)
    (folder / "came" / "judges" / "likeness.safetensors").write_text("new")
    rows = [{"phase": "autoencoder", "step": 50}, {"phase": "finish", "step": 2}, {"phase": "finish", "step": 3}]
    (folder / "came" / "base.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    least = {name: value for name, (_, value) in table.TARGETS.items()}
    (folder / "came" / "judged.json").write_text(json.dumps({"quality": {**least, **reached}}))
    return folder / "came"


def test_a_base_that_reaches_all_takes_the_bundled_ones_place(tmp_path: Path) -> None:
    adopt(judged(tmp_path), tmp_path / "root")
    base_folder = tmp_path / "root" / "src" / "veneer" / "base"
    assert [file.name for part in ("model", "demo") for file in (base_folder / part).iterdir()] == ["new", "new"]
    assert (tmp_path / "root" / "tools" / "demo_style" / "likeness.safetensors").read_text() == "new"
    assert (tmp_path / "root" / "tools" / "build_base" / "finish.log.jsonl").read_text().splitlines() == [
        '{"step": 2}',
        '{"step": 3}',
    ]


def test_a_base_that_falls_short_stays_outside(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="style is less than it should be"):
        adopt(judged(tmp_path, style=0.89), tmp_path / "root")
    assert (tmp_path / "root" / "src" / "veneer" / "base" / "model" / "old").exists()
    with pytest.raises(SystemExit, match="judge"):
        adopt(tmp_path, tmp_path / "root")


def test_the_page_has_the_plan_of_the_base() -> None:
    """Made with: python -m tools.build_base --design large --plan."""
    assert published(PAGE, "plan") == plan_table(design.LARGE, 60 * MINUTES) + "\n"


def test_all_that_comes_back_is_few_files() -> None:
    """At most 8, of 16 MiB: the log, figures, losses, the sheet, and the base."""
    whole = 2 * parameters(design.LARGE) + 2_000_000  # tokenizer, sheet, card
    assert -(-whole // (15 << 20)) + 4 <= 8


def test_parts_of_a_base_are_put_together_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "model" / "a").mkdir(parents=True)
    content = bytes(range(256)) * 400
    (tmp_path / "model" / "a" / "weights").write_bytes(content)
    parts = archive.pack_parts(tmp_path / "model", tmp_path / "base.tar", most=8000)
    assert len(parts) > 10 and all(part.stat().st_size <= 8000 for part in parts)
    archive.unpack_parts(tmp_path / "base.tar", tmp_path / "back")
    assert (tmp_path / "back" / "a" / "weights").read_bytes() == content
    with pytest.raises(ValueError, match="there is no such file"):
        archive.unpack_parts(tmp_path / "other.tar", tmp_path / "back")


def test_a_table_says_what_went_wrong_with_a_base() -> None:
    figures = {"card": "a card", "date": "2026-01-01", "phases": {}, "quality": {}, "bytes": {}}
    text = table.base_table({**figures, "no CUDA graph": {"denoiser": "it waits"}, "fault": "OutOfMemoryError: no"})
    assert text.endswith("No CUDA graph in denoiser: it waits\nEnded early: OutOfMemoryError: no")


def test_what_a_base_should_reach_is_said_beside_what_it_has() -> None:
    rows = table.target_rows({"psnr_noto_held_out": 28.4, "retrieval_top1": 0.9})[2:]
    assert [row.split("|")[3:5] for row in rows[:3]] == [
        [" 28.4 ", " yes "],
        [" not measured ", "  "],
        [" 0.9 ", " NO "],
    ]


FIGURES = {"machine": "a card", "date": "2026-01-01", "skipped": ["flux-1024-1"]}
CASES = [
    {"group": "sd15-512-1", "way": PEFT, "seconds": 0.2, "peak": 2 << 30},
    {"group": "sd15-512-1", "way": "veneer, lean", "seconds": 0.1, "peak": 1 << 30},
    {"group": "sd15-512-1", "way": "veneer, exact", "error": "OutOfMemoryError: CUDA out of memory"},
    {"group": "sd15-512-largest", "way": PEFT, "batch": 12},
]


def test_the_tables_have_ratios_first() -> None:
    text = bench_table({**FIGURES, "cases": CASES})
    assert f"| {PEFT} | 1.000 | 1.000 | 0.2000 | 2.00 |" in text
    assert "| veneer, lean | 0.500 | 0.500 | 0.1000 | 1.00 |" in text
    assert "| veneer, exact | OutOfMemoryError: CUDA out of memory | | | |" in text
    assert f"| {PEFT} | 12 |" in text
    assert text.endswith("No time was left for flux-1024-1.\n")


def test_figures_are_kept_under_the_cards_name_and_written_into_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- gpu: begin -->\n<!-- gpu: end -->\n")
    (tmp_path / "bench.json").write_text(json.dumps({**FIGURES, "card": "NVIDIA H100 80GB", "cases": CASES}))
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.page.PAGE", page)
    table.publish_results(tmp_path / "bench.json")
    assert (tmp_path / "gpu-nvidia-h100-80gb.json").exists()
    assert published(page, "gpu") == table.section(table.stored_results())


def test_the_page_quotes_the_figures() -> None:
    assert published(PAGE, "gpu") == table.section(table.stored_results())

"""Put a base that was judged in the bundled one's place, with the demo's pictures and judges that belong to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tools.on_gpu.places import ROOT
from tools.on_gpu.table import TARGETS

__all__ = ["adopt"]

_AGAIN = """\
Look at the sheets, then make again what stands on the base:
python lora_complete_example.py
python -m tools.demo_style runs/example
python -m tools.demo_subject
python -m tools.baselines
python -m tools.demo_study
python -m tools.demo_report
python -m tools.doctor_cases
python -m tools.plan_accuracy
and in lora_complete_example.py and the tests what holds 64 pixels"""


def adopt(came: Path, root: Path = ROOT) -> None:
    """Copy what :func:`judge` left into the project, and say what is to be made again.

    Args:
        came: the folder that was judged.
        root: of the project.

    Raises:
        SystemExit: it was not judged, or does not reach all that it should.
    """
    judged = came / "judged.json"
    if not judged.exists():
        raise SystemExit(f"{judged}: there is no such file; run python -m tools.on_gpu judge {came} first")
    reached = json.loads(judged.read_text("utf-8"))["quality"]
    if short := [name for name, (_, least) in TARGETS.items() if reached.get(name, 0.0) < least]:
        raise SystemExit(f"{came}: {', '.join(short)} is less than it should be; the bundled base stays")
    for part in ("model", "demo"):
        target = root / "src" / "veneer" / "base" / part
        shutil.rmtree(target)
        shutil.copytree(came / part, target)
    for file in (came / "judges").glob("*.safetensors"):
        shutil.copy(file, root / "tools" / "demo_style" / file.name)
    _write_logs(came / "base.jsonl", root / "tools" / "build_base")
    print(_AGAIN)


def _write_logs(came: Path, folder: Path) -> None:
    """Write each phase's losses where those of the bundled base are kept."""
    rows = [json.loads(line) for line in came.read_text("utf-8").splitlines()]
    for phase in dict.fromkeys(row["phase"] for row in rows):
        own = [{name: value for name, value in row.items() if name != "phase"} for row in rows if row["phase"] == phase]
        (folder / f"{phase}.log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), "utf-8")

"""Run the tests with the oldest releases that pyproject.toml allows: ``python -m tools.lower_bounds``.

It makes an environment of its own, installs each dependency at its lower bound, and runs the test suite there. To look
for an older bound, name it: ``python -m tools.lower_bounds --try torch==2.9.0 --try peft==0.18.0``. What follows ``--``
goes to pytest: ``python -m tools.lower_bounds -- -x tests/unit``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["lower_bounds", "main"]

ROOT = Path(__file__).parents[2]
EXTRA = "test"
PINS = "tests/unit/test_packaging.py::test_every_dependency_is_pinned"
"""The one test that is about the newest releases: old ones may need packages that constraints.txt does not have."""


def lower_bounds(requirements: Iterable[str], tries: Iterable[str] = ()) -> list[str]:
    """List requirements at their lower bounds, such as ``torch==2.9.0``; one without a bound is listed by its name.

    Args:
        requirements: as ``importlib.metadata.requires`` returns them; extras other than ``test`` are left out.
        tries: requirements that take the place of the bound of the same package.
    """
    pins: dict[str, str] = {}
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": EXTRA}):
            pins.setdefault(canonicalize_name(requirement.name), _at_bound(requirement))
    pins |= {canonicalize_name(Requirement(each).name): each for each in tries}
    return sorted(pins.values())


def _at_bound(requirement: Requirement) -> str:
    versions = [each.version for each in requirement.specifier if each.operator in (">=", "==", "~=")]
    return f"{requirement.name}=={versions[0]}" if versions else requirement.name


def main(arguments: Sequence[str] | None = None) -> int:
    """Install the lower bounds and run the tests; return pytest's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.lower_bounds", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-lower-bounds", help="where the environment goes")
    parser.add_argument("--try", dest="tries", action="append", default=[], help="another release, as torch==2.9.0")
    parser.add_argument("pytest", nargs="*", help="what pytest is given, after --")
    given = parser.parse_args(arguments)
    python = given.folder / "bin" / "python"
    if not python.exists():
        venv.create(given.folder, with_pip=True)
    pins = lower_bounds(metadata.requires("veneer") or [], given.tries)
    print(*pins, sep="\n", flush=True)
    install = [python, "-m", "pip", "install", "--quiet", *pins]
    subprocess.run([*install, "--no-deps", "--editable", ROOT], check=True, cwd=ROOT)
    subprocess.run(install, check=True)
    return subprocess.run([python, "-m", "pytest", "--deselect", PINS, *given.pytest], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())

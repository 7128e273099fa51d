"""Find which packages a machine lacks, or has too old: those that are packed for it.

A requirement is met by a version that the machine is known to have. Where it has the package and nobody knows in
which version, the pinned release of what Veneer itself asks for is packed all the same, unless its wheel is large; what
others ask for is trusted to be there as they need it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["PYTHON", "Wheel", "choose", "direct_requirements", "read_machine", "read_pins", "unmet"]

PYTHON = "3.12"
LARGE = 3 << 20
"""Bytes of a wheel that is not packed in the place of a version that is not known."""
_ENVIRONMENT = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.3",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "sys_platform": "linux",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "extra": "",
}
_TESTS, _EXTRAS = ("pytest",), ("bitsandbytes", "torchao", "build-base")


@dataclass(frozen=True)
class Wheel:
    """A wheel as a choice depends on it.

    Attributes:
        name: of its package.
        version: of its release.
        size: bytes of the file.
        requires: as its METADATA has them.
    """

    name: str
    version: str
    size: int
    requires: Sequence[str] = field(default=())


Fetch = Callable[[str, str], Wheel]
"""(name, version) -> the wheel of that release, downloaded."""


def read_machine(path: Path) -> dict[str, str | None]:
    """Return the versions that the machine has by package; None: it is there in a version that is not known."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    parts = (line.partition("==") for line in lines if line)
    return {str(canonicalize_name(name)): version or None for name, _, version in parts}


def read_pins(path: Path) -> dict[str, str]:
    """Return the releases of constraints.txt, for the machine's Python."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    pins = [Requirement(line) for line in lines if line]
    return {
        str(canonicalize_name(pin.name)): next(iter(pin.specifier)).version
        for pin in pins
        if pin.marker is None or pin.marker.evaluate(_ENVIRONMENT)
    }


def direct_requirements(project: Mapping[str, object]) -> list[str]:
    """Return what Veneer and its tests need on a GPU, from the table ``project`` of pyproject.toml."""
    dependencies, extras = project["dependencies"], project["optional-dependencies"]
    assert isinstance(dependencies, list) and isinstance(extras, dict)
    tests = [each for each in extras["test"] if re.match(r"[\w-]+", each)[0] in _TESTS]  # type: ignore[index]
    return [*dependencies, *tests, *(each for extra in _EXTRAS for each in extras[extra])]


def choose(
    direct: Iterable[str], machine: Mapping[str, str | None], pins: Mapping[str, str], fetch: Fetch
) -> dict[str, Wheel]:
    """Return the wheels that the machine needs, with what they need in turn, by package.

    Args:
        direct: requirements of the project.
        machine: from :func:`read_machine`.
        pins: from :func:`read_pins`; each package that is packed has one.
        fetch: downloads a wheel.
    """
    chosen: dict[str, Wheel] = {}
    own = list(_applying(direct))
    asked = list(own)
    for requirement in asked:  # which grows
        name = str(canonicalize_name(requirement.name))
        is_unknown = name in machine and machine[name] is None
        if name in chosen or _is_met(requirement, machine) or (is_unknown and requirement not in own):
            continue
        wheel = fetch(name, pins[name])
        if not (is_unknown and wheel.size > LARGE):
            chosen[name] = wheel
            asked += _applying(wheel.requires)
    return chosen


def unmet(direct: Iterable[str], machine: Mapping[str, str | None], chosen: Mapping[str, Wheel]) -> list[str]:
    """Return the requirements of the project and of the chosen wheels that nothing meets, each with what is there."""
    there = {**machine, **{name: wheel.version for name, wheel in chosen.items()}}
    asked = [*direct, *(each for wheel in chosen.values() for each in wheel.requires)]
    missing = []
    for requirement in _applying(asked):
        name = str(canonicalize_name(requirement.name))
        version = there.get(name, "")
        if name not in there or (version and not requirement.specifier.contains(version, prereleases=True)):
            missing.append(f"{requirement}: {version or 'not there'}")
    return sorted(set(missing))


def _applying(requirements: Iterable[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate(_ENVIRONMENT):
            yield requirement


def _is_met(requirement: Requirement, machine: Mapping[str, str | None]) -> bool:
    name = str(canonicalize_name(requirement.name))
    if name not in machine:
        return False
    version = machine[name]
    if version is None:
        return not requirement.specifier
    return requirement.specifier.contains(version, prereleases=True)

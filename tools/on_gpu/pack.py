"""Pack what travels to the machine with the GPU, and count its bytes."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tools.on_gpu import archive
from tools.on_gpu.places import DRAWINGS, MACHINE, PACK, ROOT, SITE, WEIGHTS, WEIGHTS_FOLDER
from tools.on_gpu.requirements import PYTHON, Wheel, choose, direct_requirements, read_machine, read_pins, unmet

__all__ = ["pack", "sizes", "travelling"]

MOST_PACKED, MOST_TRAVELLING = 40 << 20, 64 << 20
"""Bytes that the packages may have, and all that travels together."""
_PLATFORMS = tuple(
    f"manylinux{version}" for version in ("_2_39", "_2_34", "_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")
)
_BIG_WEIGHTS = 1 << 20
_FOLDERS_BEHIND = ("docs", "tests/parity", "tests/resume", "tests/unit")
_ENTRY = 1024
"""Bytes that a file takes in an archive beside its own, at most: a header, and zeros up to a whole block."""
_IMPORTS = """
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline
from transformers import CLIPTextModel
import filelock, peft, pydantic, pytest, rich, typer, veneer, xxhash
veneer.load_base("bundled")
import sys"""


def pack(python: str | None, parts: Sequence[str]) -> None:
    """Write packages, and weights or drawings, into the folder of the pack, and say what travels.

    Args:
        parts: that will be run there: all but ``base`` need the bundled base's weights, that one packages of drawings.
        python: an interpreter of the machine's Python, with torch, numpy and so on, that tries the packages; None: what
            they require is held against what the machine has, and no more.

    Raises:
        SystemExit: a requirement is not met, or the pack is too large.
    """
    PACK.mkdir(exist_ok=True)
    direct, machine = direct_requirements(_project()), read_machine(MACHINE)
    with tempfile.TemporaryDirectory() as temporary:
        wheels = Path(temporary) / "wheels"
        chosen = choose(direct, machine, read_pins(ROOT / "constraints.txt"), lambda *pin: _fetch(wheels, *pin))
        if missing := unmet(direct, machine, chosen):
            raise SystemExit("nothing meets " + "; ".join(missing))
        site = Path(temporary) / "site"
        _pip("install", wheels, "--no-index", "--no-compile", "--target", str(site), *_pinned(chosen.values()))
        archive.pack_folder(site, SITE)
    WEIGHTS.unlink(missing_ok=True)
    shutil.rmtree(DRAWINGS, ignore_errors=True)
    if set(parts) - {"base"}:
        archive.pack_weights(ROOT, weight_files(), WEIGHTS)
    if "base" in parts:
        _pack_drawings()
    if python is not None:
        _try_import(python)
    print("packed:", ", ".join(_pinned(chosen.values())))
    for line in sizes():
        print(line)
    packages = sum(file.stat().st_size for file in (SITE, *DRAWINGS.glob("*")))
    if packages > MOST_PACKED:
        raise SystemExit(f"the packages take {packages:,} bytes of {MOST_PACKED:,} allowed")


def _pack_drawings() -> None:
    """Bring the packages that a base is made of, fetched where the last build of a base has not left them."""
    from tools.build_base import build, design, drawings

    for name in build.needed_sets(design.LARGE):
        DRAWINGS.mkdir(exist_ok=True)
        shutil.copy(drawings.fetch(drawings.PACKAGES[name], ROOT / "build" / "base" / "packages"), DRAWINGS)


def sizes() -> list[str]:
    """Say what travels and whether it may."""
    packed = sum(file.stat().st_size for file in PACK.rglob("*") if file.is_file())
    tree, aside = travelling()
    total = packed + tree
    files = [str(file.relative_to(ROOT)) for file in (*weight_files(), *WEIGHTS_FOLDER.glob("*.png"))]
    lines = [f"pack {packed:,} bytes, the other files {tree:,}, together {total:,} of {MOST_TRAVELLING:,}"]
    if total > MOST_TRAVELLING:
        lines.append("TOO MUCH: leave more behind")
    if aside:
        lines.append(f"before: rm -r {' '.join([*files, *_FOLDERS_BEHIND])}")
        lines.append("after: git checkout -- docs src/veneer/base tests")
    return lines


def weight_files() -> list[Path]:
    """Return the bundled base's large files."""
    files = WEIGHTS_FOLDER.rglob("*.safetensors")
    return sorted(file for file in files if file.stat().st_size >= _BIG_WEIGHTS)


def left_behind() -> list[Path]:
    """Return the files that need not travel: the large weights, which the pack has, documents and other tests."""
    behind = [file for folder in _FOLDERS_BEHIND for file in (ROOT / folder).rglob("*") if file.is_file()]
    return [*weight_files(), *WEIGHTS_FOLDER.glob("*.png"), *behind]


def travelling() -> tuple[int, int]:
    """Return the bytes of the files that git knows or does not ignore, without those left behind; and of these."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = {ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    aside = set(left_behind())
    return sum(f.stat().st_size + _ENTRY for f in files - aside), sum(f.stat().st_size for f in aside)


def _project() -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project


def _pinned(wheels: Iterable[Wheel]) -> list[str]:
    return sorted(f"{wheel.name}=={wheel.version}" for wheel in wheels)


def _fetch(folder: Path, name: str, version: str) -> Wheel:
    before = set(folder.glob("*.whl"))
    _pip("download", folder, "--dest", str(folder), f"{name}=={version}")
    (file,) = set(folder.glob("*.whl")) - before
    with zipfile.ZipFile(file) as wheel:
        text = next(wheel.read(entry) for entry in wheel.namelist() if entry.endswith(".dist-info/METADATA"))
    requires: Sequence[str] = email.message_from_bytes(text).get_all("Requires-Dist") or ()
    return Wheel(name, version, file.stat().st_size, requires)


def _pip(command: str, wheels: Path, *arguments: str) -> None:
    """Run pip for the machine's Python and platform, without dependencies."""
    platforms = [part for platform in _PLATFORMS for part in ("--platform", f"{platform}_x86_64")]
    target = ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--find-links", str(wheels)]
    subprocess.run([sys.executable, "-m", "pip", command, *options, *target, *arguments], check=True)


def _try_import(python: str) -> None:
    """Import the packages from the archive, with an interpreter as the machine has it."""
    with tempfile.TemporaryDirectory() as temporary:
        archive.unpack_folder(SITE, Path(temporary))
        paths = os.pathsep.join([temporary, str(ROOT / "src"), str(ROOT)])
        code = f"{_IMPORTS}; print('imported by', sys.version)"
        subprocess.run([python, "-c", code], env={**os.environ, "PYTHONPATH": paths}, check=True)

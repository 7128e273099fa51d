"""Packages of a few made-up drawings, where tools.build_base looks for npm's; drawn as discs, without resvg."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tools.build_base import concepts, drawings, quality
from tools.build_base.design import Design
from tools.build_base.drawings import Package

NAMES = ("ant", "bear", "crab", "duck", "eagle", "fish", "goat", "hedgehog")


def make_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the packages, and have them drawn and measured in a moment."""
    folder.mkdir(parents=True)
    monkeypatch.setattr(drawings, "draw_transparent", _disc)
    monkeypatch.setattr(drawings, "_cores", lambda: 1)  # another process would not draw so
    monkeypatch.setattr(drawings, "PACKAGES", {name: _package(folder, name) for name in drawings.PACKAGES})
    monkeypatch.setattr(quality, "GUIDANCES", (1.5,))
    monkeypatch.setattr(quality, "STEPS", 2)


def few_steps(design: Design) -> Design:
    """The design with so few steps that no time ends them."""
    few = {name: getattr(design, name).of_steps(2) for name in ("autoencoder", "denoiser", "finish")}
    return replace(design, **few)


def _disc(svg: str, size: int) -> Image.Image:
    picture = Image.new("RGBA", (size, size))
    colour = tuple(hashlib.sha256(svg.encode()).digest()[:3])
    ImageDraw.Draw(picture).ellipse((2, 2, size - 3, size - 3), fill=(*colour, 255))
    return picture


def _package(folder: Path, name: str) -> Package:
    icons = {each: {"body": f"<path id='{name} {each}'/>"} for each in NAMES}
    categories: dict[str, list[str]] = {category: [] for category in (*concepts.WHOLE, *concepts.PART)}
    metadata = {"categories": {**categories, "Animals Nature": list(NAMES)}}
    file = folder / f"{name}-1.tgz"
    with tarfile.open(file, "w:gz") as tar:
        _add(tar, "package/icons.json", {"icons": icons})
        _add(tar, "package/metadata.json", metadata)
    digest = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    return Package(name, "1", digest, drawings.PACKAGES[name].licence)


def _add(tar: tarfile.TarFile, name: str, content: Any) -> None:
    data = json.dumps(content).encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))

"""Public emoji drawings: fetched from npm by pinned hash, selected by name, drawn with resvg.

OpenMoji is the demo style: drawn for the demo and for measuring, never for training. Streamline Emojis and Fluent Emoji
with its shades are not fetched at all: they stay unseen, as styles to test with. EmojiOne 1 may be shared under its own
licence alone, so weights that may be used freely are not made of it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

Pictures: TypeAlias = "npt.NDArray[np.uint8]"
"""Pixels (N, H, W, 3)."""

Row = TypeVar("Row")

_AT_ONCE = 64  # drawings that a process draws before it asks for more
SIZE = 64  # pixels, both ways
_LEFT_OUT = re.compile(r"skin-tone|^flag-|^keycap|-flag$")


@dataclass(frozen=True)
class Package:
    """One npm package of drawings, pinned by version and by npm's integrity hash."""

    name: str
    version: str
    sha512: str  # base64, as npm prints it
    licence: str

    @property
    def spec(self) -> str:
        """What npm calls it."""
        return f"@iconify-json/{self.name}@{self.version}"


PACKAGES = {
    p.name: p
    for p in (
        Package(
            "noto",
            "1.2.9",
            "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
            "Apache-2.0",
        ),
        Package(
            "twemoji",
            "1.2.5",
            "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
            "CC BY 4.0",
        ),
        Package(
            "fxemoji",
            "1.2.2",
            "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
            "Apache-2.0",
        ),
        Package(
            "fluent-emoji-flat",
            "1.2.6",
            "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
            "MIT",
        ),
        Package(
            "fluent-emoji-high-contrast",
            "1.2.6",
            "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
            "MIT",
        ),
        Package(
            "emojione",
            "1.2.3",
            "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
            "CC BY 4.0",
        ),
        Package(
            "noto-v1",
            "1.2.5",
            "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
            "Apache-2.0",
        ),
        Package(
            "openmoji",
            "1.2.29",
            "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
            "CC BY-SA 4.0",
        ),
        Package(
            "emojione-monotone",
            "1.2.1",
            "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
            "CC BY 4.0",
        ),
        Package(
            "icon-park",
            "1.2.4",
            "S8fVl49LG/M9hvwb7ruFGInK21AHMv3IJehOJRJgXPLE39OOCP3wbfTWjro/XzsjxRwdvX/lYdGetFOZI0TaJQ==",
            "Apache-2.0",
        ),
        Package(
            "mdi",
            "1.2.3",
            "O3cLwbDOK7NNDf2ihaQOH5F9JglnulNDFV7WprU2dSoZu3h3cWH//h74uQAB87brHmvFVxIOkuBX2sZSzYhScg==",
            "Apache-2.0",
        ),
        Package(
            "ph",
            "1.2.2",
            "PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==",
            "MIT",
        ),
    )
}


def fetch(package: Package, cache: Path) -> Path:
    """Return the package's tarball, fetched once by npm; raises ValueError if its hash is not the pinned one."""
    target = cache / f"{package.name}-{package.version}.tgz"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = subprocess.run(
            ["npm", "pack", package.spec, "--silent", "--pack-destination", str(cache)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()[-1]
        (cache / Path(made).name).rename(target)
    digest = base64.b64encode(hashlib.sha512(target.read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise ValueError(f"{target}: sha512 is {digest}, pinned is {package.sha512}; delete the file to fetch again")
    return target


def read_sets(names: Iterable[str], cache: Path) -> dict[str, DrawingSet]:
    """Read the packages of these names, fetched where they are not in ``cache``."""
    return {name: DrawingSet(PACKAGES[name], cache) for name in dict.fromkeys(names)}


class DrawingSet:
    """The drawings of one package: names, categories, and SVG by name."""

    def __init__(self, package: Package, cache: Path) -> None:
        with tarfile.open(fetch(package, cache)) as tar:
            self._icons = _member(tar, "package/icons.json")
            metadata = _member(tar, "package/metadata.json")
        self.name = package.name
        # the sets write "Animals & Nature" with and without the ampersand
        self.categories = {k.replace("&", "").replace("  ", " "): v for k, v in metadata.get("categories", {}).items()}

    def names(self) -> list[str]:
        """Every drawing but skin tones, flags and keycaps, in the package's order."""
        return [n for n in self._icons["icons"] if not _LEFT_OUT.search(n)]

    def __contains__(self, name: str) -> bool:
        return name in self._icons["icons"]

    def svg(self, name: str, outline: float = 0.0, margin: float = 0.0) -> str:
        """SVG of one drawing, each shape stroked in black by ``outline``; it and ``margin`` are shares of the width."""
        icon = self._icons["icons"][name]
        width = icon.get("width", self._icons.get("width", 16))
        height = icon.get("height", self._icons.get("height", 16))
        stroke = f' stroke="#000" stroke-linejoin="round" stroke-width="{outline * width:.4f}"' if outline else ""
        x, y = -margin / 2 * width, -margin / 2 * height
        box = f"{x} {y} {width * (1 + margin)} {height * (1 + margin)}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}"{stroke}>{icon["body"]}</svg>'
        )


def _member(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{tar.name!r}: no file {name}")
    return json.load(file)


def draw(svg: str, size: int = SIZE) -> Image.Image:
    """Draw an SVG on white, at twice the size and then averaged down."""
    picture = draw_transparent(svg, 2 * size)
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB").resize((size, size), Image.Resampling.BOX)


def draw_transparent(svg: str, size: int) -> Image.Image:
    """Draw an SVG on nothing."""
    import resvg_py  # of the extra build-base; whoever only measures needs it not

    # no drawing has letters, and a system's fonts take longer to find than a drawing to draw
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def draw_layer(svg: str, size: int) -> Pictures:
    """Draw an SVG as (2 size, 2 size, 4): colours multiplied by opacity, so that to average them leaves no dark rim."""
    layer = np.asarray(draw_transparent(svg, 2 * size)).astype(np.uint16)
    layer[..., :3] = (layer[..., :3] * layer[..., 3:] + 127) // 255
    return layer.astype(np.uint8)


def draw_layers(svgs: Sequence[str], size: int, file: Path, processes: int | None = None) -> Pictures:
    """Draw SVGs as layers (N, 2 size, 2 size, 4) into a file, a part in each process; read what is there already."""
    shape = (len(svgs), 2 * size, 2 * size, 4)
    if file.exists() and (layers := np.load(file, mmap_mode="c")).shape == shape:
        return cast(Pictures, layers)
    beside = file.with_suffix(".part")
    np.lib.format.open_memmap(beside, "w+", np.uint8, shape).flush()
    count = min(processes or _cores(), len(svgs))
    places = np.array_split(np.arange(len(svgs)), max(count, len(svgs) // _AT_ONCE))
    jobs = [(beside, int(part[0]), [svgs[place] for place in part], size) for part in places]
    if count == 1:
        list(map(_draw_part, jobs))
    else:
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_draw_part, jobs))
    beside.replace(file)
    return cast(Pictures, np.load(file, mmap_mode="c"))


def _cores() -> int:
    """Count the cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw_part(job: tuple[Path, int, list[str], int]) -> None:
    file, first, svgs, size = job
    layers = np.load(file, mmap_mode="r+")
    for place, svg in enumerate(svgs):
        layers[first + place] = draw_layer(svg, size)


def on_white(layers: Pictures) -> Pictures:
    """Layers (N, 2 size, 2 size, 4) as the pictures (N, size, size, 3) that :func:`draw` makes."""
    over = layers[..., :3] + (255 - layers[..., 3:])
    count, side = over.shape[:2]
    return cast(Pictures, over.reshape(count, side // 2, 2, side // 2, 2, 3).mean((2, 4)).round().astype(np.uint8))


def stack(pictures: Iterable[Image.Image]) -> Pictures:
    """Pictures of one size as one array."""
    return np.stack([np.asarray(p) for p in pictures])


def thinned(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many rows, from all over; 0: all."""
    return list(rows[:: -(-len(rows) // most)]) if most else list(rows)


def share(name: str, salt: str) -> float:
    """A fixed number in [0, 1) for a name: how held-out names are chosen."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "big") / 2**64

"""A run on pictures of many shapes goes on to the same bits wherever it was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import veneer
from tests.running import hashes, killed, quick_config, use_base
from veneer.family.registry import BUNDLED, load_family
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.events import StepDone
from veneer.weights.file import FILE_NAME, load

SHAPES = ((72, 72), (96, 64), (64, 96), (160, 80), (60, 40))


def write_shapes(folder: Path) -> Path:
    """Twelve of the bundled pictures, padded or shrunk to several shapes."""
    folder.mkdir()
    for number, picture in enumerate(sorted((veneer.demo_path() / "train").glob("*.png"))[:12]):
        with Image.open(picture) as image:
            paper = Image.new("RGB", SHAPES[number % len(SHAPES)], "white")
            side = min(paper.size)
            paper.paste(image.convert("RGB").resize((side, side)), (0, 0))
        paper.save(folder / picture.name)
        (folder / f"{picture.stem}.txt").write_text(picture.stem.replace("-", " "))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "data", [{}, {"crop": "random", "flip": True, "resolution": [32, 64]}], ids=["plain", "random"]
)
def test_a_killed_run_on_many_shapes_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]
) -> None:
    """On the bundled base, with class pictures of another size, and scores of held-out ones of several shapes."""
    use_base(monkeypatch, load_family(BUNDLED))
    pictures = write_shapes(tmp_path / "pictures")
    prior = {"prompt": "an emoji", "count": 3, "path": str(veneer.demo_path() / "train")}
    sections: dict[str, Any] = {"data": {**data, "held_out": 0.25, "prior": prior}, "validation": {"every": 4}}
    sections["train"] = {"max_steps": 8, "gradient_accumulation_steps": 2}
    whole, often = (quick_config(Path(BUNDLED), pictures, tmp_path / name, **sections) for name in ("whole", "often"))
    result = run_training(whole)
    for step in (2, 5):
        killed(often, StepDone, step, Resume())
    run_training(often, resume=Resume())
    assert hashes(often.output.dir) == hashes(whole.output.dir)
    said = load(whole.output.dir / FILE_NAME).metadata
    assert said["veneer.steps"] == "8" and result.score is not None

"""``veneer data show``: the draws of a run's first steps, as its batches have them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.training import tiny_config, trainer_on
from veneer.cli.main import main
from veneer.config.load import resolve
from veneer.family.loading import load_base
from veneer.verbs.data_show import show_draws


def test_it_shows_what_the_first_steps_are_given(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_pictures, base=str(tiny_base), data={"flip": True})
    draws = show_draws(config, tmp_path / "sheet.png", count=6)
    family = load_base(str(tiny_base))
    with trainer_on(resolve(config, family), family) as trainer:
        batches = trainer.batches.own
        expected = [draw for number in range(6) for draw in batches.micro_batch(number)]
    assert draws == expected[:6]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 224 and sheet.height > 2 * 224


def test_masks_have_a_row(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masked"
    folder.mkdir()
    for path in sorted(tiny_pictures.glob("*.png"))[:4]:
        with Image.open(path) as image:
            alpha = Image.new("L", image.size, 0)
            alpha.paste(255, (0, 0, 32, 64))
            image.putalpha(alpha)
            image.save(folder / path.name)
    words = [str(folder), "data.sources.0.masks=alpha", "data.held_out=0", f"base={tiny_base}", "--trigger", "tok"]
    assert main(["data", "show", *words, "--count", "2", "--out", str(tmp_path / "sheet.png")]) == 0
    del words[1]
    assert main(["data", "show", *words, "--count", "2", "--out", str(tmp_path / "b.png")]) == 0
    masked, plain = (Image.open(tmp_path / name).height for name in ("sheet.png", "b.png"))
    assert masked - plain >= 224

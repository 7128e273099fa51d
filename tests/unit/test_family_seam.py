"""No module outside ``family/`` knows a model by its name, its parts or its numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import veneer

ROOT = Path(veneer.__file__).parent
WORDS = re.compile(r"\bunet\b|UNet|CLIP\b|CLIP[A-Z]\w+|\b77\b|alphas_cumprod")
"""Names of one family's networks, its text's length, its noise."""
READERS: dict[str, re.Pattern[str]] = {
    # prefixes in adapter files are the formats' business
    "weights/formats": re.compile(r"\bunet\b"),
    # what other trainers call a key
    "config/spellings.py": re.compile(r"\bunet\b"),
    # CLIP as a judge of pictures, which is the user's and no part of a base
    "evaluate/score_models.py": re.compile(r"CLIP\b|CLIPModel"),
    "cli/evaluate.py": re.compile(r"CLIP\b"),
}


def findings(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    allowed = next((words for place, words in READERS.items() if name.startswith(place)), re.compile(r"(?!)"))
    lines = enumerate(path.read_text("utf-8").splitlines(), start=1)
    return [f"{name}:{number}: {line.strip()}" for number, line in lines if WORDS.search(allowed.sub("", line))]


def test_the_words_of_a_family_stay_inside_it() -> None:
    outside = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in ("family", "base")]
    assert len(outside) > 100
    assert [finding for path in outside for finding in findings(path)] == []


def test_presets_name_no_denoiser() -> None:
    presets = sorted((ROOT / "config" / "presets").glob("*.yaml"))
    assert presets and not [finding for path in presets for finding in findings(path)]


@pytest.mark.parametrize(
    "text", ["pipeline.unet", "UNet2DConditionModel", "a CLIP", "tokens = 77", "noise.alphas_cumprod"]
)
def test_the_words_are_found(text: str) -> None:
    assert WORDS.search(text)


@pytest.mark.parametrize("text", ["clip_grad_norm_", "1770", "unetched", "x.clip(0)"])
def test_other_words_are_not(text: str) -> None:
    assert not WORDS.search(text)

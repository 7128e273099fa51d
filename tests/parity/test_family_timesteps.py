"""The documented defaults of timesteps are those of the families, for each base that has a published configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from veneer.config.objective_config import ObjectiveConfig
from veneer.family.published import PUBLISHED, read_published
from veneer.family.registry import family_class
from veneer.objective.loss import Objective

DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
QUICK = ("flux-dev", "sd15")


def rows() -> dict[str, tuple[str, str]]:
    """Density and shift by base, as the table of docs/families.md has them."""
    table = DOCUMENT.read_text("utf-8").partition("| `veneer plan --base` | density |")[2].partition("\n\n")[0]
    found: dict[str, tuple[str, str]] = {}
    for line in table.splitlines()[2:]:
        bases, density, shift, _ = line.strip("| ").split(" | ")
        for base in re.findall(r"`([^`]+)`", bases):
            assert base not in found
            found[base] = (density, shift)
    return found


def test_every_row_is_of_published_bases() -> None:
    assert len(rows()) > 25 and set(rows()) <= set(PUBLISHED)


@pytest.mark.parametrize(
    "base", [base if base in QUICK else pytest.param(base, marks=pytest.mark.slow) for base in rows()]
)
def test_a_base_draws_its_timesteps_as_the_table_says(base: str) -> None:
    told = read_published(base)
    family = family_class(told.pipeline).abstract(told.parts, torch.float32)
    density = Objective.from_config(ObjectiveConfig(), family).density
    assert density.logit_mean == 0
    shape = "" if density.logit_std == 1 else f", deviation {density.logit_std:g}"
    shift = density.shift_of(family.resolution, family.resolution, 1)
    by_size = family.default_shift == "resolution"
    text = f"by size, {shift:.2f}" if by_size else "none" if shift == 1 else f"{shift:g}"
    assert rows()[base] == (density.name.replace("_", "-") + shape, text)

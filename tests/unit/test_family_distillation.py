"""Distilled bases are told by their files or their names, with what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from veneer.family.distillation import warn_of_distillation

PLAIN = SimpleNamespace(distilled=None)


@pytest.mark.parametrize(
    "place",
    [
        "stabilityai/sdxl-turbo",
        "Tongyi-MAI/Z-Image-Turbo",
        "models/FLUX.1-schnell/",
        "/m/z_image_turbo_bf16.safetensors",
        "SDXL-Lightning",
        "a/b-lcm",
        "x/Hyper-SD",
        "c:\\models\\Krea-2-Turbo",
        "HiDream-I1-Distilled",
        "/m/flux-2-klein-4b.safetensors",
    ],
)
def test_a_name_tells_of_a_distillation(place: str) -> None:
    text = warn_of_distillation(place, PLAIN)
    assert text is not None and "plain training undoes that" in text and "adapter.training_adapter" in text
    assert "\n" not in text and warn_of_distillation(place, PLAIN, Path("a.safetensors")) is None


@pytest.mark.parametrize(
    "place",
    [
        "bundled",
        "ostris/Z-Image-De-Turbo",
        "dev2pro-de-distilled",
        "hyperreal-xl",
        "turbot/base",
        "krea/Krea-2-Raw",
        "flux-2-klein-base-4b",
    ],
)
def test_other_names_do_not(place: str) -> None:
    assert warn_of_distillation(place, PLAIN) is None


def test_what_a_base_says_itself_comes_first() -> None:
    base = SimpleNamespace(distilled="the base is distilled: train another")
    text = warn_of_distillation("x-turbo", base)
    assert text is not None and text.startswith("the base is distilled: train another; or set adapter.training_adapter")

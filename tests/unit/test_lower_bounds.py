"""The oldest releases that are allowed, as the tool that tests them lists them."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

from tools.lower_bounds.__main__ import lower_bounds


def test_each_requirement_is_at_its_bound() -> None:
    asked = ["torch>=2.9", "peft>=0.18,<1", "rich", 'optuna>=5.0; extra == "search"', 'pytest>=9.2; extra == "test"']
    assert lower_bounds(asked) == ["peft==0.18", "pytest==9.2", "rich", "torch==2.9"]


def test_another_release_takes_the_place_of_the_bound() -> None:
    assert lower_bounds(["Torch>=2.9", "peft>=0.18"], ["torch==2.8.0"]) == ["peft==0.18", "torch==2.8.0"]


def test_every_dependency_of_veneer_has_a_lower_bound() -> None:
    pins = [Requirement(pin) for pin in lower_bounds(metadata.requires("veneer") or [])]
    assert {"torch", "diffusers", "peft"} <= {pin.name for pin in pins}
    assert all(str(pin.specifier).startswith("==") for pin in pins)

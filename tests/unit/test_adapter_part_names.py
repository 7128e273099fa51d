"""The names of methods' parts are understood without torch and peft."""

from __future__ import annotations

import subprocess
import sys

import pytest

from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.registry import METHODS


@pytest.mark.parametrize("module", ["veneer.adapter.part_names", "veneer.weights.formats.names"])
def test_names_are_parsed_without_torch(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'peft', 'pydantic'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_each_method_has_the_names_of_its_own_entry() -> None:
    assert list(PART_NAMES) == list(METHODS)
    assert all(METHODS[name].names is PART_NAMES[name] for name in METHODS)

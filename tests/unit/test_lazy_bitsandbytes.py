"""Libraries come without bitsandbytes, and have it once they ask for something of it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from veneer.lazy_bitsandbytes import bitsandbytes_is_imported, bitsandbytes_on_demand

LIBRARY = "bitsandbytes"
SPEC = importlib.util.find_spec("json")


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A library that is installed, and imported by none."""
    library: Any = ModuleType(LIBRARY)
    library.nn = object()
    monkeypatch.delitem(sys.modules, LIBRARY, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SPEC)
    monkeypatch.setattr(importlib, "import_module", lambda name: library)
    return library


def test_it_is_imported_once_something_of_it_is_asked_for(real: Any) -> None:
    with bitsandbytes_on_demand():
        stand_in: Any = sys.modules[LIBRARY]
        assert stand_in.__spec__ is SPEC
        assert stand_in.nn is real.nn
        assert LIBRARY not in sys.modules, "for the import of the real one"
    assert not bitsandbytes_is_imported()


@pytest.mark.usefixtures("real")
def test_whoever_looks_through_all_modules_does_not_import_it() -> None:
    with bitsandbytes_on_demand():
        inspect.getmodule(inspect.currentframe())
        assert not hasattr(sys.modules[LIBRARY], "__file__")
        assert LIBRARY in sys.modules
    assert not bitsandbytes_is_imported()


def test_what_is_imported_or_not_installed_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIBRARY, ModuleType(LIBRARY))
    before = sys.modules[LIBRARY]
    with bitsandbytes_on_demand():
        assert sys.modules[LIBRARY] is before
    monkeypatch.delitem(sys.modules, LIBRARY)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with bitsandbytes_on_demand():
        assert LIBRARY not in sys.modules


@pytest.mark.slow
def test_a_plan_imports_neither_it_nor_the_compiler() -> None:
    code = (
        "import sys; from veneer.cli.main import main;"
        "main(['plan', '--base', 'sd15', '--memory', '900GB']);"
        "print(sorted({'bitsandbytes', 'torch._inductor.compile_fx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""

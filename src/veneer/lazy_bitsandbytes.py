"""Import libraries without bitsandbytes, which several of them import for layers that hardly any network has.

It takes longer to import than most of them, for it brings PyTorch's compiler with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["bitsandbytes_is_imported", "bitsandbytes_on_demand"]

_LIBRARY = "bitsandbytes"


def bitsandbytes_is_imported() -> bool:
    """Tell whether it is imported; while it is not, no network has a layer of it."""
    return _LIBRARY in sys.modules


@contextmanager
def bitsandbytes_on_demand() -> Iterator[None]:
    """Within, importing bitsandbytes gives a module that imports it once something of it is asked for."""
    spec = None if bitsandbytes_is_imported() else importlib.util.find_spec(_LIBRARY)
    if spec is None:
        yield
        return
    stand_in: Any = ModuleType(_LIBRARY)
    stand_in.__spec__ = spec  # by which others find out whether it is installed

    def ask(name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # whoever looks through all modules asks for such names
            raise AttributeError(name)
        _remove(stand_in)
        return getattr(importlib.import_module(_LIBRARY), name)

    stand_in.__getattr__ = ask
    sys.modules[_LIBRARY] = stand_in
    try:
        yield
    finally:
        _remove(stand_in)


def _remove(stand_in: ModuleType) -> None:
    if sys.modules.get(_LIBRARY) is stand_in:
        del sys.modules[_LIBRARY]

"""peft looks for layers of bitsandbytes where something has imported it, and nowhere else."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from veneer.adapter import peft_library
from veneer.adapter.peft_library import without_quantized_layers

MODULE: Any = peft_library._lora_model


def test_peft_does_not_look_for_layers_that_nothing_can_have_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    before = MODULE.is_bnb_available
    with without_quantized_layers():
        assert not MODULE.is_bnb_available()
        assert not MODULE.is_bnb_4bit_available()
    assert MODULE.is_bnb_available is before


def test_peft_looks_for_them_where_the_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    before = MODULE.is_bnb_available
    with without_quantized_layers():
        assert MODULE.is_bnb_available is before

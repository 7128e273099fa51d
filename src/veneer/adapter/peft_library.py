"""What is used of peft, which is kept from importing bitsandbytes for layers that no network has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from veneer.lazy_bitsandbytes import bitsandbytes_is_imported, bitsandbytes_on_demand

with bitsandbytes_on_demand():
    from peft import LoraConfig, PeftConfig, PeftModel, inject_adapter_in_model
    from peft.tuners.lora import Conv2d as LoraConv2d
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora import model as _lora_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import merge_utils

__all__ = [
    "BaseTunerLayer",
    "LoraConfig",
    "LoraConv2d",
    "LoraLayer",
    "LoraLinear",
    "PeftConfig",
    "PeftModel",
    "inject_adapter_in_model",
    "merge_utils",
    "without_quantized_layers",
]

_CHECKS = ("is_bnb_available", "is_bnb_4bit_available")
"""What peft asks before it looks whether a layer is one of bitsandbytes'."""


@contextmanager
def without_quantized_layers() -> Iterator[None]:
    """Within, peft does not look for layers of bitsandbytes, unless something has imported it."""
    if bitsandbytes_is_imported():
        yield
        return
    module: Any = _lora_model
    before = {name: getattr(module, name) for name in _CHECKS if hasattr(module, name)}
    vars(module).update(dict.fromkeys(before, lambda: False))
    try:
        yield
    finally:
        vars(module).update(before)

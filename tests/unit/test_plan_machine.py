"""The memory of this machine and of this process."""

from __future__ import annotations

import torch

from veneer.plan.machine import free_memory, process_memory

CPU = torch.device("cpu")
MB = 10**6


def test_what_this_process_holds_is_its_own_to_use() -> None:
    assert free_memory(CPU) > process_memory() > 50 * MB

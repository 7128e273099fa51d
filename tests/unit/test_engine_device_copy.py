"""Copies to a GPU go through pinned memory and are not waited for; on the CPU there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from veneer.engine.device_copy import to_device


class Spy(torch.Tensor):
    """A tensor that notes how it is copied, and stays where it is."""

    notes: list[str]

    def pin_memory(self, device: Any = None) -> Spy:
        self.notes.append("pinned")
        return self

    def to(self, *given: Any, **named: Any) -> Spy:
        self.notes.append(f"to {given[0]} {'without' if named.get('non_blocking') else 'and'} wait")
        return self


def spy() -> Spy:
    tensor = torch.ones(3).as_subclass(Spy)
    tensor.notes = []
    return tensor


def test_to_a_gpu_it_goes_through_pinned_memory_and_nobody_waits() -> None:
    tensor = spy()
    to_device(tensor, torch.device("cuda", 0))
    assert tensor.notes == ["pinned", "to cuda:0 without wait"]


def test_where_the_system_pins_no_more_it_is_copied_from_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = spy()

    def refuse(self: Spy, device: Any = None) -> Spy:
        raise RuntimeError("CUDA error: OS call failed or operation not supported on this OS")

    monkeypatch.setattr(Spy, "pin_memory", refuse)
    to_device(tensor, torch.device("cuda", 0))
    assert tensor.notes == ["to cuda:0 without wait"]


def test_on_the_cpu_it_is_the_tensor_itself() -> None:
    tensor = torch.ones(3)
    assert to_device(tensor, torch.device("cpu")) is tensor

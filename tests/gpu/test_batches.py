"""Batches that are built while the GPU does the step before, through pinned memory: the same bits, no wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import veneer
from tests.gpu.sizes import Sizes
from veneer.config.schema import RunConfig
from veneer.engine.device_copy import to_device
from veneer.family.protocol import Family
from veneer.train.batches import BatchBuilder
from veneer.train.events import Finished
from veneer.train.loop import train

Record = Callable[[str, object], None]
STEPS = 4


def test_a_copy_has_the_bits_of_its_tensor_and_is_not_waited_for(device: torch.device, record_property: Record) -> None:
    tensors = [torch.randn(1 << 20, generator=torch.Generator().manual_seed(number)) for number in range(8)]
    busy = torch.ones(4096, 4096, device=device) if device.type == "cuda" else None
    for _ in range(50 if busy is not None else 0):
        busy = busy @ busy  # type: ignore[operator]
    copies = [to_device(tensor, device) for tensor in tensors]
    waits = torch.cuda.current_stream().query() if device.type == "cuda" else False
    record_property("the GPU was still busy when all copies were queued", not waits)
    assert all(torch.equal(copy.cpu(), tensor) for copy, tensor in zip(copies, tensors, strict=True))
    if device.type == "cuda":
        assert not waits


def test_batches_that_are_built_ahead_train_to_the_same_bits(
    device: torch.device, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a run in which each is built when its step begins, by copies that are waited for."""
    found: list[dict[str, Tensor]] = []
    built: list[int] = []
    whole = BatchBuilder.build_ahead
    for ahead in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(BatchBuilder, "build_ahead", _noted(whole, built) if ahead else lambda *_: None)
            if not ahead:
                patch.setattr("veneer.train.batches.to_device", lambda tensor, place: tensor.to(place))
            config = sizes.config(tmp_path, max_steps=STEPS)
            found.append(_trained(config, veneer.load_base(config.base)))
    one, other = found
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert device.type == "cpu" or built == [*range(1, STEPS)]


def _trained(config: RunConfig, family: Family) -> dict[str, Tensor]:
    """Return the adapter's tensors."""
    config = veneer.resolve(config, family)
    events = train(config, family, veneer.survey(config.data))
    (last,) = [event for event in events if isinstance(event, Finished)]
    layers = last.weights.items()
    return {f"{name}.{key}": tensor for name, layer in layers for key, tensor in layer.state_dict().items()}


def _noted(build: Callable[[BatchBuilder, int], None], built: list[int]) -> Callable[[BatchBuilder, int], None]:
    def noted(builder: BatchBuilder, step: int) -> None:
        build(builder, step)
        built.extend(number for number in builder._ahead if number == step)

    return noted

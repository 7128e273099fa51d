"""A recorder of passes that stands in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class Recorder:
    """What a CUDA graph does, by Python: the same work on the same tensors, into the same output."""

    def __init__(self, parameters: Sequence[nn.Parameter], fault: Exception | None = None) -> None:
        self.parameters, self.fault = parameters, fault
        self.counts = {"warm_up": 0, "record": 0, "replay": 0, "release": 0}

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        self.counts["warm_up"] += 1
        run()

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.counts["record"] += 1
        if self.fault is not None:
            raise self.fault
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        kept = [gradient.clone() for gradient in gradients]
        output = run().clone()
        for gradient, before in zip(gradients, kept, strict=True):  # nothing is done while it is recorded
            gradient.copy_(before)

        def replay() -> None:
            self.counts["replay"] += 1
            output.copy_(run())

        return replay, output

    def release(self) -> None:
        self.counts["release"] += 1

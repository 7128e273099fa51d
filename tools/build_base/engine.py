"""Where networks are trained and in which precision: by default on the CPU, as the bundled base was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from veneer.engine.cuda_graph import GraphedBackward

__all__ = ["Batch", "Engine", "Precision"]

_CPU = torch.device("cpu")

Batch: TypeAlias = Mapping[str, Tensor]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Engine:
    """A device and how it is used.

    Attributes:
        device: that networks, drawings and random numbers are on.
        precision: of multiplications; ``auto``: each network's own choice on the CPU, bfloat16 on a GPU.
        is_graphed: whether a step's two passes are one CUDA graph.
        is_compiled: whether losses are computed through ``torch.compile``.
    """

    device: torch.device = _CPU
    precision: Precision = "auto"
    is_graphed: bool = False
    is_compiled: bool = False

    @property
    def is_gpu(self) -> bool:
        """Whether the device is one of CUDA."""
        return self.device.type == "cuda"

    def begin(self) -> None:
        """Set what PyTorch has for a whole process: on a GPU TF32, and never cuDNN's attention."""
        if self.is_gpu:
            torch.backends.cuda.enable_cudnn_sdp(False)
            torch.set_float32_matmul_precision("high")

    @contextmanager
    def tuned(self) -> Iterator[None]:
        """Let cuDNN try its kernels while one shape is computed again and again; many shapes would take it long."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = before or self.is_gpu
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def autocast(self, is_own_choice: bool) -> torch.autocast:
        """Return the context of a network that would multiply in bfloat16 on the CPU if ``is_own_choice``."""
        is_on = self.is_gpu or is_own_choice if self.precision == "auto" else self.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_on)

    def generator(self, step: int, stream: int) -> torch.Generator:
        """Return the random numbers of a step; nothing carries over from step to step, so a restart changes nothing."""
        return torch.Generator(self.device).manual_seed(stream * 1_000_003 + step)

    def backward(
        self, loss_of: Callable[[Batch], Tensor], parameters: Sequence[nn.Parameter]
    ) -> Callable[[Batch], Tensor]:
        """Return what adds a batch's gradients to parameters and returns its loss, to be read before the next call."""
        forward = torch.compile(loss_of) if self.is_compiled else loss_of

        def backward(batch: Batch) -> Tensor:
            loss = forward(batch)
            torch.autograd.backward(loss)
            return loss.detach()

        return GraphedBackward(backward, parameters) if self.is_graphed else backward

    def wait(self) -> None:
        """Wait until the device has done all that it was asked for, so that a clock tells the truth."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

"""Forward and backward pass as one CUDA graph, recorded for each shape of input and replayed after.

A step of a small batch is a few thousand short kernels, which Python launches slower than a GPU does them. A graph
launches all of them at once, and so its time is the GPU's own. What is replayed are the very kernels that were
recorded, on the same addresses: inputs are copied to where they were, and gradients are where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["CudaRecorder", "GraphedBackward", "Recorder"]

Inputs: TypeAlias = "Mapping[str, Tensor]"
Signature: TypeAlias = "tuple[tuple[str, torch.Size, torch.dtype], ...]"


class Recorder(Protocol):
    """Records work on a device, and does it again."""

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        """Do the work once for nothing, since libraries set themselves up in their first calls."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record what ``run`` does, which is not done now; return what does it, and the output it is written to.

        Raises:
            RuntimeError: it cannot be recorded.
        """

    def release(self) -> None:
        """Give back the memory of all that was recorded, which nobody refers to any more."""


class CudaRecorder:
    """A ``Recorder`` of CUDA graphs, which share their memory: one is replayed at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        """Do the work in a stream of its own, as it will be recorded in one."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record work that neither waits for the GPU nor copies from memory that is not pinned."""
        graph = torch.cuda.CUDAGraph()
        # other threads may use the GPU meanwhile, such as those that watch over an exchange between processes
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        self._pool = graph.pool()
        return graph.replay, output

    def release(self) -> None:
        """Let others have the graphs' memory, other programs too."""
        self._pool = None
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Recorded:
    """A recorded pass.

    Attributes:
        inputs: what it reads.
        replay: does it again.
        losses: what it writes, beside gradients.
    """

    inputs: Inputs
    replay: Callable[[], None]
    losses: Tensor


class GraphedBackward:
    """Adds the gradients of micro-batches to parameters as ``backward`` does, by recorded passes where they can be.

    The results are those of the same kernels; only ``-0.0`` may become ``0.0``, since each sum begins at zero.

    Args:
        backward: computes losses (B,) from named inputs and adds the gradients to the parameters. It draws nothing at
            random, and all else that it reads stays where it is in memory until ``release``.
        parameters: those with gradients.
        recorder: records passes.

    Attributes:
        fault: why nothing is recorded any more, and ``backward`` called instead; None: nothing stands against it.
    """

    def __init__(
        self,
        backward: Callable[[Inputs], Tensor],
        parameters: Sequence[nn.Parameter],
        recorder: Recorder | None = None,
    ) -> None:
        self._backward, self._parameters = backward, parameters
        self._recorder: Recorder = CudaRecorder() if recorder is None else recorder
        self._recorded: dict[Signature, _Recorded] = {}
        self._inputs: dict[Signature, Tensor] = {}  # of passes of all shapes: captions are as long in most of them
        self._gradients: list[Tensor] = []
        self._addresses: list[int] = []
        self.fault: str | None = None

    def __call__(self, inputs: Inputs) -> Tensor:
        """Add the gradients of one micro-batch; return its losses, to be read before the next call."""
        if self.fault is not None:
            return self._backward(inputs)
        self._forget_moved()
        recorded = self._recorded.get(_signature(inputs)) or self._record(inputs)
        return self._backward(inputs) if recorded is None else self._replay(recorded, inputs)

    def release(self) -> None:
        """Give back the memory of all recorded passes; they are recorded again when they are needed."""
        if self._recorded or self._gradients:  # the latter alone where nothing could be recorded
            self._recorded.clear()
            self._inputs.clear()
            self._gradients.clear()
            self._recorder.release()

    def _forget_moved(self) -> None:
        """Forget what was recorded with the parameters elsewhere in memory."""
        addresses = [parameter.data_ptr() for parameter in self._parameters]
        if addresses != self._addresses:
            self.release()
            self._addresses = addresses

    def _record(self, inputs: Inputs) -> _Recorded | None:
        """Record the pass over inputs of this shape; None if that cannot be done."""
        own = {name: self._input_like(name, tensor) for name, tensor in inputs.items()}
        before = [parameter.grad for parameter in self._parameters]
        try:
            if not self._recorded:  # later ones do without: it would take a second pass's memory beside the recorded
                self._set_gradients([None] * len(before))
                self._recorder.warm_up(lambda: self._backward(own))
            self._attach_gradients(before)
            replay, losses = self._recorder.record(lambda: self._backward(own))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as fault:
            self.fault = str(fault).strip().partition("\n")[0]
            self.release()
            self._set_gradients(before)
            return None
        recorded = self._recorded[_signature(inputs)] = _Recorded(own, replay, losses)
        return recorded

    def _input_like(self, name: str, tensor: Tensor) -> Tensor:
        """Return where recorded passes read an input of this name and shape, with the tensor's numbers in it."""
        key = _signature({name: tensor})
        if key not in self._inputs:
            self._inputs[key] = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        return self._inputs[key].copy_(tensor)

    def _replay(self, recorded: _Recorded, inputs: Inputs) -> Tensor:
        self._attach_gradients([parameter.grad for parameter in self._parameters])
        for name, tensor in recorded.inputs.items():
            tensor.copy_(inputs[name])
        recorded.replay()
        return recorded.losses

    def _attach_gradients(self, current: Sequence[Tensor | None]) -> None:
        """Let the parameters have the gradients that recorded passes add to, with the values they have now."""
        if not self._gradients:
            self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        if unset := [own for own, other in zip(self._gradients, current, strict=True) if other is None]:
            torch._foreach_zero_(unset)
        for own, other in zip(self._gradients, current, strict=True):
            if other is not None and other is not own:
                own.copy_(other)
        self._set_gradients(self._gradients)

    def _set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient


def _signature(inputs: Inputs) -> Signature:
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())

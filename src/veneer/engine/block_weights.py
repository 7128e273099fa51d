"""The weights of one block, out of the device's memory, on their way to it, or there.

A weight's tensor stays one object with one storage. The storage is emptied and filled again, so whoever holds the
tensor or a view of it, as autograd does for the backward pass, sees the weight whenever it is there: PyTorch's FSDP
does the same. What is copied are bytes, so quantised weights are moved as they are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = [
    "AbstractWeights",
    "BlockWeights",
    "CpuWeights",
    "CudaWeights",
    "PinnedMemory",
    "is_abstract",
    "watch_storages",
]


class BlockWeights(Protocol):
    """The weights of a block on a device; ``begin`` and ``finish`` bring them there, ``release`` takes them away."""

    nbytes: int
    """Bytes of all of them."""

    def begin(self) -> None:
        """Begin to copy them to the device, while it computes."""

    def finish(self) -> None:
        """Let what is computed from now on see them."""

    def release(self) -> None:
        """Free their memory on the device, once what is being computed with them is done."""

    def restore(self) -> None:
        """Put them on the device for good."""


class CpuWeights:
    """Weights on the CPU, which are taken out of place for tests: nothing is saved by it.

    What is out of place is NaN, or in packed weights scales of NaN, so nothing can be computed with it unnoticed.

    Args:
        tensors: the weights; each gets memory of its own, and its old memory is kept as it is.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._masters = [tensor.data for tensor in tensors]
        self.nbytes = sum(map(_nbytes, tensors))
        self._begun = False
        for tensor in tensors:
            tensor.data = torch.empty_like(tensor.data)
        self.release()

    def begin(self) -> None:
        """Note that they were asked for: they come when they are waited for, as late as they may."""
        self._begun = True

    def finish(self) -> None:
        """Copy them.

        Raises:
            RuntimeError: nobody asked for them.
        """
        if not self._begun:
            raise RuntimeError("the weights of a block were not fetched")
        for tensor, master in zip(self._tensors, self._masters, strict=True):
            tensor.data.copy_(master)

    def release(self) -> None:
        """Write NaN over them."""
        self._begun = False
        for tensor in self._tensors:
            _bytes_of(tensor.data).fill_(0xFF)

    def restore(self) -> None:
        """Give each its old memory again."""
        for tensor, master in zip(self._tensors, self._masters, strict=True):
            tensor.data = master


class PinnedMemory:
    """CPU memory that a GPU copies from while it computes.

    PyTorch rounds each pinned block up to a power of two, which can double it (pytorch#150517); so blocks of such a
    size are taken, and weights laid into them one after another.

    Args:
        block: bytes of each.

    Attributes:
        unpinned: bytes that the system refused to pin; they are copied more slowly.
    """

    def __init__(self, block: int = 64 * 2**20) -> None:
        self._block, self._free = block, torch.empty(0, dtype=torch.uint8)
        self.unpinned = 0

    def store(self, data_N: Tensor) -> list[Tensor]:
        """Copy bytes; return the pieces that they lie in."""
        pieces = []
        while data_N.numel():
            if not self._free.numel():
                self._free = self._take()
            size = min(self._free.numel(), data_N.numel())
            pieces.append(self._free[:size].copy_(data_N[:size]))
            self._free, data_N = self._free[size:], data_N[size:]
        return pieces

    def _take(self) -> Tensor:
        try:
            return torch.empty(self._block, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the system's limit
            self.unpinned += self._block
            return torch.empty(self._block, dtype=torch.uint8)


class CudaWeights:
    """Weights that wait in pinned memory and are copied to a GPU by a stream of their own.

    Their memory on the GPU belongs to that stream. It is freed only after an event of the stream that computed with
    them, which the copying stream waits for, so that no later copy can overtake a computation.

    Args:
        tensors: the weights, on the CPU or the GPU.
        device: the GPU.
        stream: the copying stream, which all blocks share.
        pinned: where they wait.
    """

    def __init__(
        self, tensors: Sequence[Tensor], device: torch.device, stream: torch.cuda.Stream, pinned: PinnedMemory
    ) -> None:
        self._tensors, self._device, self._stream = list(tensors), device, stream
        self._pieces: list[list[Tensor]] = []
        self._copied = torch.cuda.Event()
        self.nbytes = sum(map(_nbytes, tensors))
        for tensor in tensors:
            own = _dense(tensor.data)
            self._pieces.append(pinned.store(_bytes_of(own)))
            empty = torch.empty_strided(own.size(), own.stride(), dtype=own.dtype, device=device)
            empty.untyped_storage().resize_(0)
            tensor.data = empty

    def begin(self) -> None:
        """Copy them in the copying stream."""
        with torch.cuda.stream(self._stream):
            for tensor, pieces in zip(self._tensors, self._pieces, strict=True):
                _fill(tensor, pieces)
            self._copied.record(self._stream)

    def finish(self) -> None:
        """Let the current stream wait for the copy."""
        torch.cuda.current_stream(self._device).wait_event(self._copied)

    def release(self) -> None:
        """Let the copying stream wait for the current one, and free the memory then."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for tensor in self._tensors:
            tensor.untyped_storage().resize_(0)

    def restore(self) -> None:
        """Copy them once more, to memory that belongs to the current stream."""
        self.release()
        for tensor, pieces in zip(self._tensors, self._pieces, strict=True):
            _fill(tensor, pieces)
        torch.cuda.current_stream(self._device).synchronize()  # the pinned memory may be freed now


class AbstractWeights:
    """Weights without data, of which only the memory is counted.

    Args:
        tensors: the weights.
        frees: whether the device that is planned for is a GPU; on the CPU nothing is freed.
    """

    def __init__(self, tensors: Sequence[Tensor], frees: bool) -> None:
        self._tensors = list(tensors) if frees else []
        self._sizes = [_nbytes(tensor) for tensor in self._tensors]
        self.nbytes = sum(map(_nbytes, tensors))
        self.release()

    def begin(self) -> None:
        """Count their memory."""
        self._resize(self._sizes)

    def finish(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Count it no more."""
        self._resize([0] * len(self._sizes))

    def restore(self) -> None:
        """Count it again."""
        self._resize(self._sizes)

    def _resize(self, sizes: Iterable[int]) -> None:
        for tensor, size in zip(self._tensors, sizes, strict=True):
            tensor.untyped_storage().resize_(size)
            for watcher in _WATCHERS:
                watcher(tensor)


_WATCHERS: list[Callable[[Tensor], None]] = []


@contextmanager
def watch_storages(watcher: Callable[[Tensor], None]) -> Iterator[None]:
    """Within, call ``watcher`` with each tensor without data whose storage was emptied or filled."""
    _WATCHERS.append(watcher)
    try:
        yield
    finally:
        _WATCHERS.remove(watcher)


def _fill(tensor: Tensor, pieces: Iterable[Tensor]) -> None:
    """Give an emptied storage its memory again, in the current stream, and copy the pieces into it."""
    storage, begin = tensor.untyped_storage(), 0
    storage.resize_(_nbytes(tensor))
    whole_N = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
    for piece_N in pieces:
        whole_N[begin : begin + piece_N.numel()].copy_(piece_N, non_blocking=True)
        begin += piece_N.numel()


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _dense(tensor: Tensor) -> Tensor:
    """Return a tensor whose numbers lie in one piece of memory, in whatever order."""
    is_dense = torch.empty_like(tensor, device="meta").stride() == tensor.stride()  # else PyTorch makes it so
    return tensor if is_dense else tensor.contiguous()


def _bytes_of(tensor: Tensor) -> Tensor:
    """Return the bytes of a dense tensor (N,), as they lie in memory."""
    return torch.as_strided(tensor, (tensor.numel(),), (1,), tensor.storage_offset()).view(torch.uint8)


def is_abstract(tensors: Iterable[Tensor]) -> bool:
    """Tell whether there are tensors without data among these."""
    return any(isinstance(tensor, FakeTensor) for tensor in tensors)

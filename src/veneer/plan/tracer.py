"""What a computation holds in memory at each moment, found by doing it with tensors that have no numbers.

The code that is accounted is the very code that trains: its operations run one after another on tensors that know
their shape, dtype and device and nothing else (PyTorch's ``FakeTensorMode``), in the order and with the lifetimes they
would have with numbers. So whatever the code does about memory, such as recomputing a block or saving less for the
backward pass, shows in the account without being told to it.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from veneer.plan.cpu.workspace import KERNEL, workspace

__all__ = ["Block", "MemoryTracer", "Moment", "Trace"]

T = TypeVar("T")
_ACTIVATIONS = "activations"
_BACKWARD = "backward pass"
"""What is made while gradients are computed: those of activations, and activations that are computed again."""
_CUDA_BLOCK = 512
"""Bytes that PyTorch's allocator for CUDA rounds up to."""

_KINDS = MappingProxyType(
    {
        **dict.fromkeys(("scaled_dot_product_attention", "softmax", "bmm", "baddbmm"), "attention"),
        **dict.fromkeys(("linear", "addmm", "mm", "matmul", "einsum"), "linear layers"),
        **dict.fromkeys(("conv1d", "conv2d", "convolution"), "convolutions"),
        **dict.fromkeys(("layer_norm", "group_norm", "rms_norm"), "norms"),
        **dict.fromkeys(("silu", "gelu", "relu", "sigmoid", "tanh", "mish"), "activation functions"),
    }
)
"""What an activation is, by the function that makes it; all others are sums, products and copies."""
_OTHER = "sums and copies"


@dataclass(frozen=True)
class Moment:
    """The moment of a phase at which most is held.

    Attributes:
        total: bytes.
        parts: the same by role; they sum to it.
    """

    total: int
    parts: Mapping[str, int]


class Block(NamedTuple):
    """What one number of a trace stands for, in bytes.

    Attributes:
        size: of a tensor; 0 for what is none.
        taken: from the C library; 0 for weights, which are there before anything is computed.
        read: of weights, when something is first computed with them.
    """

    size: int
    taken: int = 0
    read: int = 0


class Trace(NamedTuple):
    """All that happened, in its order.

    Attributes:
        events: ``n + 1`` takes block n, ``-n - 1`` gives it back.
        blocks: by number.
        phases: each name, with the number of events before it.
    """

    events: Sequence[int]
    blocks: Sequence[Block]
    phases: Sequence[tuple[str, int]]


class MemoryTracer:
    """Keeps account of every tensor that is made while it is open.

    Args:
        device: that the tensors without numbers are on, for those who ask.

    Each tensor has a role: the one that :meth:`claim` gives it, else what it was born as, e.g. ``activations: norms``.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._unread: set[int] = set()
        self._read: dict[int, int] = {}  # by a weight's number: what stands for its numbers since they were read
        self._kernels: set[object] = set()
        self._loaded = 0
        self._blocks: list[Block] = []
        self._roles: list[str] = []
        self._claimed: set[int] = set()
        self._calls = _Calls()
        self._events: list[int] = []  # as in a trace
        self._phases: list[tuple[str, int]] = []

    @contextmanager
    def open(self) -> Iterator[MemoryTracer]:
        """Within, tensors have no numbers, and each operation is entered."""
        with self._fake, _Operations(self, self._fake), self._calls:
            yield self

    def phase(self, name: str) -> None:
        """From now on, the phase of this name."""
        self._phases.append((name, len(self._events)))

    def claim(self, role: str, tensors: Iterable[Tensor]) -> None:
        """Say what tensors are for; an earlier claim stands."""
        for number in map(self.enter, tensors):
            if number not in self._claimed:
                self._roles[number] = role
                self._claimed.add(number)

    def claim_rest(self, role: str) -> None:
        """Say what everything is for that is held now and that nobody has claimed."""
        self._claim_rest(role)

    def claim_rest_as_weights(self, role: str) -> None:
        """The same of weights that were away and are back, none of which has been read since."""
        for number in self._claim_rest(role):
            self._blocks[number] = Block(self._blocks[number].size)
            self._unread.add(number)

    def _claim_rest(self, role: str) -> list[int]:
        rest = [number for number, _ in self._known.values() if number not in self._claimed]
        for number in rest:
            self._roles[number] = role
            self._claimed.add(number)
        return rest

    def without_numbers(self, thing: T) -> T:
        """A deep copy of anything, in which every tensor has lost its numbers."""
        with _Copies(self, self._fake):
            return copy.deepcopy(thing)

    def furnish(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Give a module that was made on the meta device a place on the ledger's, in place.

        Args:
            module: whose parameters and buffers are on the meta device.
            dtype: that its floating-point numbers shall have.
        """
        placed: dict[int, Tensor] = {}  # by the tensor before: what modules share stays shared
        with self._fake:
            for part in module.modules():
                for name, parameter in part._parameters.items():
                    if parameter is not None:
                        part._parameters[name] = cast(nn.Parameter, self._placed(parameter, dtype, placed))
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        part._buffers[name] = self._placed(buffer, dtype, placed)
        return module

    def _placed(self, tensor: Tensor, dtype: torch.dtype, placed: dict[int, Tensor]) -> Tensor:
        if id(tensor) not in placed:
            own = dtype if tensor.is_floating_point() else tensor.dtype
            here = torch.empty(tensor.shape, dtype=own, device=self.device)
            self.load(here)
            placed[id(tensor)] = nn.Parameter(here, requires_grad=False) if isinstance(tensor, nn.Parameter) else here
        return placed[id(tensor)]

    def enter(self, tensor: Tensor) -> int:
        """The number of a tensor's storage, which is entered if it is new."""
        size = self._size(tensor)
        return self._enter(tensor, Block(size, taken=size))

    def load(self, tensor: Tensor) -> None:
        """Enter a weight of the base."""
        number = self._enter(tensor, Block(self._size(tensor)))
        if number not in self._unread:
            self._unread.add(number)
            self._loaded += self._blocks[number].size

    def read(self, tensors: Iterable[Any]) -> None:
        """Something is computed with tensors; weights among them are read now, if they were not before."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                number, _ = self._known.get(tensor.untyped_storage()._cdata, (-1, None))
                if number in self._unread:
                    self._unread.remove(number)
                    self._read[number] = self._take(Block(0, read=self._blocks[number].size))

    @contextmanager
    def borrowed(self, sizes: Sequence[int], kernel: object) -> Iterator[None]:
        """Within, what an operation hands out is made; its workspace is given back before, but for the last block.

        Args:
            sizes: bytes of the blocks that it takes for itself.
            kernel: that it needs, which stays; None: no kernel of its own.
        """
        if kernel is not None and kernel not in self._kernels:
            self._kernels.add(kernel)
            self._take(Block(0, taken=KERNEL))
        numbers = [self._take(Block(0, taken=size)) for size in sizes]
        self._events += [-number - 1 for number in numbers[:-1]]
        yield
        self._events += [-number - 1 for number in numbers[-1:]]

    def _size(self, tensor: Tensor) -> int:
        here = tensor.device.type == self.device.type
        return _granted(tensor.untyped_storage().nbytes(), tensor.device) if here else 0

    def _enter(self, tensor: Tensor, block: Block) -> int:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return self._known[place][0]
        number = self._take(block)
        self._known[place] = number, weakref.ref(storage, self._leaving(place, number))
        return number

    def _take(self, block: Block) -> int:
        number = len(self._blocks)
        self._blocks.append(block)
        self._roles.append(self._born())
        self._events.append(number + 1)
        return number

    def _born(self) -> str:
        if torch._C._current_graph_task_id() != -1:
            return _BACKWARD
        return f"{_ACTIVATIONS}: {_KINDS.get(self._calls.now, _OTHER)}"

    def _leaving(self, place: int, number: int) -> Callable[[object], None]:
        def leave(_: object) -> None:
            self._events += [-gone - 1 for gone in (number, self._read.pop(number, None)) if gone is not None]
            del self._known[place]

        return leave

    @property
    def held(self) -> int:
        """Bytes held now."""
        return sum(self._blocks[number].size for number, _ in self._known.values())

    @property
    def loaded(self) -> int:
        """Bytes of all weights of the base."""
        return self._loaded

    @property
    def trace(self) -> Trace:
        """All that happened so far."""
        return Trace(self._events, self._blocks, self._phases)

    def moments(self) -> dict[str, Moment]:
        """The fullest moment of each phase, by the phase's name."""
        starts = [start for _, start in self._phases]
        totals = [0, *accumulate(self._signed(event) for event in self._events)]
        spans = zip(starts, [*starts[1:], len(self._events)], strict=True)
        fullest = [max(range(start, end + 1), key=totals.__getitem__) for start, end in spans]
        return {name: self._moment(place) for (name, _), place in zip(self._phases, fullest, strict=True)}

    def _signed(self, event: int) -> int:
        size = self._blocks[abs(event) - 1].size
        return size if event > 0 else -size

    def _moment(self, place: int) -> Moment:
        """What is held after the first ``place`` events."""
        held = Counter(abs(event) - 1 for event in self._events[:place])
        parts: Counter[str] = Counter()
        for number, times in held.items():
            if times % 2:  # made, and not gone yet
                parts[self._roles[number]] += self._blocks[number].size
        parts = +parts  # without what is no tensor
        return Moment(parts.total(), MappingProxyType(dict(parts)))


class _Operations(TorchDispatchMode):
    """Enters what each operation makes, and answers for the numbers that are not there."""

    def __init__(self, tracer: MemoryTracer, fake: FakeTensorMode) -> None:
        cast(Any, super()).__init__()  # it has no types
        self._tracer = tracer
        self._memo = fake.fake_tensor_converter.tensor_memo

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # asked for at every turn, so it must be quick
            return args[0].fake_device
        if func is torch.ops.aten._local_scalar_dense.default:
            return _number(args[0].dtype)
        kwargs = dict(kwargs or {})
        if "generator" in kwargs:  # it draws no numbers, and is of another device than a tensor without them
            kwargs["generator"] = None
        result = func(*args, **kwargs)
        # weak references in it would keep modules from being moved or cast
        self._memo.clear()
        if not func.is_view and func is not torch.ops.aten.embedding.default:  # which reads a few rows
            self._tracer.read(args)
        with self._tracer.borrowed(*workspace(func, args, result)):
            for made in (result,) if isinstance(result, Tensor) else tree_leaves(result):
                if isinstance(made, Tensor):
                    self._tracer.enter(made)
        return result


def _granted(size: int, device: torch.device) -> int:
    """Bytes that an allocator gives for ``size`` asked."""
    return -(-size // _CUDA_BLOCK) * _CUDA_BLOCK if device.type == "cuda" else size


def _number(dtype: torch.dtype) -> bool | int | float:
    """A number that nothing stumbles over: a loss or a norm that is finite, a count of steps that is not zero."""
    return 1.0 if dtype.is_floating_point else 1 if dtype != torch.bool else True


class _Calls(TorchFunctionMode):
    """Knows the function that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.now = ""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before, self.now = self.now, getattr(func, "__name__", "")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.now = before


class _Copies(TorchFunctionMode):
    """Within, a deep copy of a tensor is one without numbers."""

    def __init__(self, tracer: MemoryTracer, fake: FakeTensorMode) -> None:
        super().__init__()
        self._tracer, self._fake = tracer, fake

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch._C.TensorBase.clone:  # what a parameter's deep copy calls
            return self._without_numbers(args[0])
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, copied = args
        if id(tensor) not in copied:
            copied[id(tensor)] = self._without_numbers(tensor)
        return copied[id(tensor)]

    def _without_numbers(self, tensor: Tensor) -> Tensor:
        copied = self._fake.from_tensor(tensor, static_shapes=True)
        self._fake.fake_tensor_converter.tensor_memo.clear()
        self._tracer.load(copied)
        return copied

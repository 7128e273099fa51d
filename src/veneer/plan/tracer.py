"""The memory that a computation takes at each moment, found by running it on tensors without data.

The code that is measured is the very code that trains: its operations run one after another on tensors that know their
shape, dtype and device and nothing else (PyTorch's ``FakeTensorMode``), in the order and with the lifetimes that they
would have with data. So whatever the code does about memory, such as recomputing a block or saving less for the
backward pass, shows in the result without a model of it.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from veneer.engine.block_weights import watch_storages
from veneer.engine.placeholders import is_placeholder
from veneer.plan.cpu.workspace import KERNEL, Workspace, workspace
from veneer.plan.known_results import KnownResults
from veneer.plan.trace import Block, Peak, Repeats, Trace, peaks

__all__ = ["MemoryTracer"]

T = TypeVar("T")
_ACTIVATIONS = "activations"
_BACKWARD = "backward pass"
"""Role of what is made while gradients are computed: gradients of activations, and activations computed again."""
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
"""Kind of an activation by the function that makes it; all others are sums, products and copies."""
_OTHER = "sums and copies"


_DEVICE, _SCALAR = torch.ops.prim.device.default, torch.ops.aten._local_scalar_dense.default
_EMBEDDING = torch.ops.aten.embedding.default


def _nothing(thing: object) -> AbstractContextManager[None]:
    return nullcontext()


class MemoryTracer:
    """Records every tensor that is made while it traces.

    Args:
        device: the device whose memory is recorded.
        leave_out: takes parts out of what is copied without data, while it is copied.

    Each tensor has a role: the one that :meth:`label` gives it, else what it was made as, e.g. ``activations: norms``.

    Attributes:
        device: as above.
        owners: of each block of memory the block of a network that it belongs to, once one was claimed; -1: none.
        visits: the number of events before a block of a network begins to be computed, with its number.
    """

    def __init__(
        self, device: torch.device, leave_out: Callable[[object], AbstractContextManager[None]] = _nothing
    ) -> None:
        self.device = device
        self.owners: list[int] = []
        self.visits: list[tuple[int, int]] = []
        # the block of a network that is computed, forwards or backwards; whose the next tensors are
        self._forward = self._backward = self._making = -1
        self._leave_out, self._claims = leave_out, False
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._storages: dict[int, tuple[int, weakref.ref[Any]]] = {}  # by address: number and storage
        self._emptied: set[int] = set()  # blocks whose storage is there and has no memory
        self._unread: set[int] = set()  # weights that nothing was computed with yet
        self._mapped: dict[int, int] = {}  # by a weight's number: number of the block that reading it brought in
        self._kernels: set[object] = set()
        self._weight_bytes = 0
        self._blocks: list[Block] = []
        self._roles: list[str] = []
        self._labelled: set[int] = set()
        self._calls = _CurrentFunction()
        self._events: list[int] = []  # as in a trace
        self._phases: list[tuple[str, int]] = []

    @contextmanager
    def tracing(self) -> Iterator[MemoryTracer]:
        """Within, tensors have no data, and each operation is recorded."""
        with warnings.catch_warnings(), watch_storages(self.record_size), self._fake:
            # PyTorch's, of kernels that it would not take; none is run
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
            with _RecordOperations(self, self._fake), self._calls:
                yield self

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Within, tensors have no data, and nothing is recorded: for whoever needs the shape of a result alone."""
        with self._fake:
            yield
        self._fake.fake_tensor_converter.tensor_memo.clear()

    def begin_phase(self, name: str) -> None:
        """Count what follows towards the phase of this name."""
        self._phases.append((name, len(self._events)))
        if self.visits:
            self.visits.append((len(self._events), -1))

    def label(self, role: str, tensors: Iterable[Tensor]) -> None:
        """Give tensors a role, except those that have been given one before."""
        for number in map(self.record, tensors):
            self._label(number, role)

    def label_others(self, role: str) -> None:
        """Give a role to all tensors that are held now and have been given none."""
        self._label_others(role)

    def label_reloaded(self, role: str) -> None:
        """Give a role to weights that were offloaded and are back; none of them has been read since."""
        for number in self._label_others(role):
            self._blocks[number] = Block(self._blocks[number].tensor)
            self._unread.add(number)

    def _label_others(self, role: str) -> list[int]:
        others = [number for number, _ in self._storages.values() if number not in self._labelled]
        for number in others:
            self._label(number, role)
        return others

    def _label(self, number: int, role: str) -> None:
        if number not in self._labelled:
            self._roles[number] = role
            self._labelled.add(number)

    def without_data(self, thing: T) -> T:
        """Return a deep copy of anything in which tensors have no data; each of them is recorded as a weight.

        Tensors of the meta device are on this tracer's device in the copy, all others on their own.
        """
        with watch_storages(self.record_size), self._leave_out(thing), _CopyWithoutData(self, self._fake):
            return copy.deepcopy(thing)

    def claim(self, owner: int, tensors: Iterable[Tensor]) -> None:
        """Record tensors as those of a block of a network; what is made from them is its own too."""
        self._claims = True
        for number in map(self.record, tensors):
            self.owners[number] = owner

    def begin_block(self, owner: int) -> int:
        """Tell that a block of a network is computed from now on, or with -1 none; return the one before."""
        before, self._forward = self._forward, owner
        self._record_visit(owner)
        return before

    def begin_block_backward(self, owner: int) -> None:
        """Tell that a block's gradients are computed from now on, while autograd runs."""
        self._backward = owner
        self._record_visit(owner)

    def _record_visit(self, owner: int) -> None:
        """Record that a block is computed; after it, it is the last one until the next."""
        if owner >= 0 and owner != (self.visits[-1][1] if self.visits else -1):
            self.visits.append((len(self._events), owner))

    def _current_block(self) -> int:
        if self._forward >= 0:
            return self._forward
        return self._backward if torch._C._current_graph_task_id() != -1 else -1

    def _owner_of(self, value: object) -> int:
        """Return the block of a network that a tensor, or the first one of a list that has any, belongs to."""
        for tensor in _tensors(value):
            number = self._number_of(tensor)
            if number >= 0 and self.owners[number] >= 0:
                return self.owners[number]
        return -1

    def _number_of(self, tensor: Tensor) -> int:
        """Return the number of a tensor's storage; -1: it is not recorded."""
        known = self._storages.get(tensor.untyped_storage()._cdata)
        return -1 if known is None else known[0]

    def begin_making(self, args: object) -> int:
        """Tell that what is made belongs to the block that is computed, else to the one whose tensors these are.

        Returns:
            The one that it belonged to before, for :meth:`end_making`.
        """
        before = self._making
        if self._claims:
            current = self._current_block()
            self._making = current if current >= 0 else self._owner_of(args)
            self._record_visit(self._making)
        return before

    def end_making(self, before: int) -> None:
        """Tell that what is made belongs to the block that it belonged to before."""
        self._making = before

    def record(self, tensor: Tensor) -> int:
        """Record a tensor's storage unless it is recorded already, and return its number."""
        known = self._storages.get(tensor.untyped_storage()._cdata)
        if known is not None:
            return known[0]
        size = self._size(tensor)
        return self._record(tensor, Block(size, malloc=size))

    def record_weight(self, tensor: Tensor) -> None:
        """Record a weight of the base."""
        number = self._record(tensor, Block(self._size(tensor)))
        if number not in self._unread:
            self._unread.add(number)
            self._weight_bytes += self._blocks[number].tensor

    def record_size(self, tensor: Tensor) -> None:
        """Record that a tensor's storage was emptied, or filled again."""
        number, is_empty = self.record(tensor), tensor.untyped_storage().nbytes() == 0
        if is_empty and number not in self._emptied:
            self._emptied.add(number)
            self._events.append(-number - 1)
        elif not is_empty and number in self._emptied:
            self._emptied.remove(number)
            self._events.append(number + 1)

    def record_reads(self, values: Iterable[Any]) -> None:
        """Record the weights among an operation's arguments as read, if they were not before."""
        for value in values:
            if isinstance(value, Tensor):
                number = self._number_of(value)
                if number in self._unread:
                    self._unread.remove(number)
                    self._mapped[number] = self._take(Block(0, mapped=self._blocks[number].tensor))
                    self.owners[-1] = self.owners[number]

    def begin_operation(self, workspace: Workspace) -> Sequence[int]:
        """Record an operation's workspace, of which only the last block outlives its result.

        Args:
            workspace: what the operation takes for itself.

        Returns:
            The numbers of what is left of it, for :meth:`end_operation` once its result is recorded.
        """
        if workspace.kernel is not None and workspace.kernel not in self._kernels:
            self._kernels.add(workspace.kernel)
            self._take(Block(0, malloc=KERNEL))
        numbers = [self._take(Block(0, malloc=size)) for size in workspace.sizes]
        self._events += [-number - 1 for number in numbers[:-1]]
        return numbers[-1:]

    def end_operation(self, numbers: Sequence[int]) -> None:
        """Record that an operation's workspace is released."""
        self._events += [-number - 1 for number in numbers]

    def _size(self, tensor: Tensor) -> int:
        # asking a tensor without data for its device is an operation of its own
        device = tensor.fake_device if type(tensor) is FakeTensor else tensor.device
        here = device.type == self.device.type
        return _granted(tensor.untyped_storage().nbytes(), device) if here else 0

    def _record(self, tensor: Tensor, block: Block) -> int:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._storages:
            return self._storages[address][0]
        number = self._take(block)
        self._storages[address] = number, weakref.ref(storage, self._release(address, number))
        return number

    def _take(self, block: Block) -> int:
        number = len(self._blocks)
        self._blocks.append(block)
        self._roles.append(self._initial_role())
        self.owners.append(self._making)
        self._events.append(number + 1)
        return number

    def _initial_role(self) -> str:
        if torch._C._current_graph_task_id() != -1:
            return _BACKWARD
        return f"{_ACTIVATIONS}: {_KINDS.get(self._calls.name, _OTHER)}"

    def _release(self, address: int, number: int) -> Callable[[object], None]:
        def release(_: object) -> None:
            numbers = (None if number in self._emptied else number, self._mapped.pop(number, None))
            self._events += [-freed - 1 for freed in numbers if freed is not None]
            del self._storages[address]

        return release

    @property
    def held(self) -> int:
        """Bytes of all tensors that are held now."""
        numbers = (number for number, _ in self._storages.values() if number not in self._emptied)
        return sum(self._blocks[number].tensor for number in numbers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights of the base."""
        return self._weight_bytes

    @property
    def trace(self) -> Trace:
        """The record so far."""
        return Trace(self._events, self._blocks, self._phases)

    def peaks(self, repeats: Repeats | None = None) -> dict[str, Peak]:
        """Return the fullest moment of each phase, by the phase's name.

        Args:
            repeats: which blocks of memory stand for more; None: each is one.
        """
        return peaks(self.trace, self._roles, repeats)


class _RecordOperations(TorchDispatchMode):
    """Records what each operation makes, and answers where data is asked for that is not there."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell PyTorch that it need not keep its compiler away at each operation: nothing here is compiled."""
        return False

    def __init__(self, tracer: MemoryTracer, fake: FakeTensorMode) -> None:
        cast(Any, super()).__init__()  # it has no types
        self._tracer, self._results = tracer, KnownResults(fake)
        self._memo = fake.fake_tensor_converter.tensor_memo

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:  # called at every turn, so it must be quick
            return args[0].fake_device
        if func is _SCALAR:
            return _placeholder(args[0].dtype)
        kwargs = dict(kwargs or {})
        if "generator" in kwargs:  # it draws nothing, and is of another device than a tensor without data
            kwargs["generator"] = None
        result = self._results.call(func, args, kwargs)
        # weak references in it would keep modules from being moved or cast
        self._memo.clear()
        self._record(func, args, result)
        return result

    def _record(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        if not func.is_view and func is not _EMBEDDING:  # which reads a few rows
            self._tracer.record_reads(args)
        tracer = self._tracer
        before = tracer.begin_making(args)
        left = tracer.begin_operation(workspace(func, args, result))
        if isinstance(result, Tensor):
            tracer.record(result)
        else:
            self._record_all(tree_leaves(result), args)
        tracer.end_operation(left)
        tracer.end_making(before)

    def _record_all(self, results: Sequence[Any], args: tuple[Any, ...]) -> None:
        for source, tensor in zip(_sources(args, len(results)), results, strict=True):
            if isinstance(tensor, Tensor):
                before = self._tracer.begin_making(source)
                self._tracer.record(tensor)
                self._tracer.end_making(before)


def _sources(args: tuple[Any, ...], count: int) -> Sequence[object]:
    """Return what each of an operation's results is made from: of lists of tensors each from its own."""
    is_list = count > 1 and args and isinstance(args[0], list | tuple) and len(args[0]) == count
    return cast(Sequence[object], args[0]) if is_list else [args] * count


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield a tensor, or those in a list and in the lists in it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _granted(size: int, device: torch.device) -> int:
    """Return the bytes that an allocator gives for ``size`` bytes."""
    return -(-size // _CUDA_BLOCK) * _CUDA_BLOCK if device.type == "cuda" else size


def _placeholder(dtype: torch.dtype) -> bool | int | float:
    """Return a scalar that no code rejects: a loss or a norm that is finite, a count of steps that is not zero."""
    return 1.0 if dtype.is_floating_point else 1 if dtype != torch.bool else True


class _CurrentFunction(TorchFunctionMode):
    """Knows the name of the function that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before, self.name = self.name, getattr(func, "__name__", "")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.name = before


class _CopyWithoutData(TorchFunctionMode):
    """Within, a deep copy of a tensor has no data."""

    def __init__(self, tracer: MemoryTracer, fake: FakeTensorMode) -> None:
        super().__init__()
        self._tracer, self._fake = tracer, fake

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch._C.TensorBase.clone:  # what a parameter's deep copy calls
            return self._without_data(args[0])
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = self._without_data(tensor)
        return memo[id(tensor)]

    def _without_data(self, tensor: Tensor) -> Tensor:
        is_emptied = tensor.numel() > 0 and not tensor.is_meta and not tensor.untyped_storage().nbytes()
        if tensor.is_meta or is_placeholder(tensor) or is_emptied:  # of weights that are not read yet, or offloaded
            device = self._tracer.device if tensor.is_meta else tensor.device
            stride = torch.empty(tensor.shape, device="meta").stride() if is_placeholder(tensor) else tensor.stride()
            with self._fake:
                fake: Tensor = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=device)
        else:
            fake = self._fake.from_tensor(tensor, static_shapes=True)
            self._fake.fake_tensor_converter.tensor_memo.clear()
        self._tracer.record_weight(fake)
        return fake

"""Keep the frozen weights of blocks in CPU memory, and bring each to the GPU before it is needed.

Of the blocks that are offloaded two are on the GPU at any time: the one that is computed with, and the next one, which
is copied meanwhile. Which one is next is what came next the last time, so no order has to be known: forward, backward,
blocks that checkpointing computes again, painting. A wrong guess costs time and nothing else, since a block that is
needed and not there is fetched then. Weights that do not learn are only read, so nothing is ever copied back, and what
is computed has the same bits as without.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from veneer.adapter.layers import set_offloaded
from veneer.adapter.peft_library import BaseTunerLayer
from veneer.engine.block_weights import (
    AbstractWeights,
    BlockWeights,
    CpuWeights,
    CudaWeights,
    PinnedMemory,
    is_abstract,
)
from veneer.engine.blocks import repeated_blocks
from veneer.engine.placeholders import is_placeholder
from veneer.engine.recompute import forget_recipe
from veneer.errors import UserError

__all__ = ["ON_DEVICE", "BlockOffload", "Pass", "Prefetcher", "find_offload", "offload_blocks", "spread"]

Pass: TypeAlias = Literal["forward", "backward", "inference"]
"""What a block is needed for: a forward pass that a backward pass follows, that one, or a pass without gradients."""

ON_DEVICE = 2
"""How many of the offloaded blocks are on the device at a time."""
_HANDLE = "_veneer_offload"


class Prefetcher:
    """Decides when the weights of which block are fetched and released.

    Args:
        weights: of each block, in the order in which a forward pass is expected to need them; all are released.

    Attributes:
        present: numbers of the blocks that are on the device or on their way to it, at most ``ON_DEVICE``.
    """

    def __init__(self, weights: Sequence[BlockWeights]) -> None:
        self.present: set[int] = set()
        self._weights = list(weights)
        self._place: tuple[Pass, int] | None = None
        count = len(weights)
        self._next: dict[tuple[Pass, int], int] = {}
        for block in range(count):
            self._next["inference", block] = (block + 1) % count
            self._next["forward", block] = block + 1 if block + 1 < count else max(block - 1, 0)
            self._next["backward", block] = block - 1 if block else min(1, count - 1)

    def need(self, block: int, kind: Pass) -> None:
        """Have the weights of a block on the device for what is computed next, and begin to fetch those after it."""
        if self._place is not None and self._place[1] == block:
            return
        if self._place is not None:
            self._next[self._place] = block
        self._place = None  # until all has gone well
        self._release(self.present - {block})
        self._fetch(block)
        self._weights[block].finish()
        self._place = kind, block
        self._fetch(self._next[self._place])

    def clear(self) -> None:
        """Release all blocks."""
        self._release(set(self.present))
        self._place = None

    def _fetch(self, block: int) -> None:
        if block in self.present:
            return
        try:
            self._weights[block].begin()
        except BaseException:  # such as a lack of memory half-way
            self._weights[block].release()
            raise
        self.present.add(block)

    def _release(self, blocks: set[int]) -> None:
        for block in sorted(blocks):
            self.present.remove(block)
            self._weights[block].release()


class BlockOffload:
    """The handle of a network with offloaded blocks; made by :func:`offload_blocks`.

    Attributes:
        count: the number of offloaded blocks.
        nbytes: bytes of their weights, which wait in CPU memory.
        unpinned: bytes of them that the system refused to pin.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Mapping[str, nn.Module],
        make: Callable[[Sequence[Tensor]], BlockWeights],
        pinned: PinnedMemory,
    ) -> None:
        self.count, self._network, self._pinned = len(blocks), network, pinned
        shared = _shared_tensors(network, blocks.values())
        self._tensors = [[t for t in _tensors_of(block) if id(t) not in shared] for block in blocks.values()]
        self._weights: list[BlockWeights] = [make(tensors) for tensors in self._tensors]
        self._prefetcher = Prefetcher(self._weights)
        self._mark(True)
        self._hooks: list[Any] = []
        for number, block in enumerate(blocks.values()):
            self._hooks.append(block.register_forward_pre_hook(_BeforeForward(self, number)))
            self._hooks.append(block.register_forward_hook(_AfterForward(self, number)))
        vars(network)[_HANDLE] = self

    @property
    def nbytes(self) -> int:
        """Bytes of the offloaded weights."""
        return sum(weights.nbytes for weights in self._weights)

    @property
    def unpinned(self) -> int:
        """Bytes of CPU memory that could not be pinned, from which weights are copied more slowly."""
        return self._pinned.unpinned

    def need(self, number: int, kind: Pass) -> None:
        """Have a block's weights on the device."""
        self._prefetcher.need(number, kind)

    def undo(self) -> None:
        """Put all weights on the device for good; a second call does nothing."""
        if vars(self._network).get(_HANDLE) is not self:
            return
        del vars(self._network)[_HANDLE]
        for hook in self._hooks:
            hook.remove()
        self._prefetcher.clear()
        for weights in self._weights:
            weights.restore()
        self._mark(False)

    def _mark(self, is_offloaded: bool) -> None:
        for tensors in self._tensors:
            for tensor in tensors:
                set_offloaded(tensor, is_offloaded)

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockOffload:
        """Return a copy for a copy of the network whose tensors have no data: to plan with.

        Raises:
            UserError: they have data, which is not where a copy would look for it.
        """
        other = BlockOffload.__new__(BlockOffload)
        memo[id(self)] = other
        other.count, other._pinned = self.count, PinnedMemory()
        other._network = copy.deepcopy(self._network, memo)
        other._tensors = [[copy.deepcopy(tensor, memo) for tensor in tensors] for tensors in self._tensors]
        if not all(map(is_abstract, other._tensors)):
            what = "a network with offloaded blocks cannot be copied"
            raise UserError(what, code="engine.copied_offload", remedy="copy it before, or undo the offload")
        frees = not isinstance(self._weights[0], CpuWeights)
        other._weights = [AbstractWeights(tensors, frees) for tensors in other._tensors]
        other._prefetcher = Prefetcher(other._weights)
        other._hooks = []
        other._mark(True)
        return other


class _BeforeForward:
    """A forward pre-hook that has a block's weights on the device."""

    def __init__(self, offload: BlockOffload, number: int) -> None:
        self._offload, self._number = offload, number

    def __call__(self, block: nn.Module, arguments: object) -> None:
        vars(block)[_BEGIN] = torch._C._autograd._get_sequence_nr()
        self._offload.need(self._number, _current_pass())


_BEGIN = "_veneer_first_node"
"""The attribute of a block with the number that autograd gives the first node of its latest call."""


class _AfterForward:
    """A forward hook by which the backward pass, too, finds a block's weights on the device.

    Autograd does the nodes that were made last first, so all of a block's are done between the first gradient of its
    outputs and the first of the outputs of the block before it.
    """

    def __init__(self, offload: BlockOffload, number: int) -> None:
        self._offload, self._number = offload, number

    def __call__(self, block: nn.Module, arguments: object, output: object) -> None:
        begin = vars(block).pop(_BEGIN, None)
        if begin is None or _current_pass() != "forward":
            return
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                # what follows must not compute this block again, when its weights are away
                forget_recipe(tensor)
                node = cast(Any, tensor.grad_fn)
                if node is not None and node._sequence_nr() >= begin:  # else it is one of another block
                    node.register_prehook(self._before_backward)

    def _before_backward(self, gradients: object) -> None:
        self._offload.need(self._number, "backward")


def _current_pass() -> Pass:
    if torch._C._current_graph_task_id() != -1:
        return "backward"
    return "forward" if torch.is_grad_enabled() else "inference"


def offload_blocks(network: nn.Module, count: int, device: torch.device | None = None) -> BlockOffload:
    """Keep the weights of some of a network's repeated blocks in CPU memory from now on; the others stay.

    The offloaded ones are spread evenly, so that each is copied while those between it and the one before are computed.
    Adapters that are put in later stay on the device. It is not for ``torch.compile`` or CUDA graphs.

    Args:
        network: all its weights are frozen, on the CPU or a GPU; changed in place until ``undo``.
        count: the number of blocks that are offloaded; one or two free nothing.
        device: the GPU, which may be one that is only planned for; None: where the network is. On the CPU all of it is
            done too, which saves nothing.

    Raises:
        UserError: the network has not so many blocks, carries an adapter, or has no weights yet.
    """
    blocks = repeated_blocks(network)
    _check_count(count, len(blocks), network)
    chosen = dict(list(blocks.items())[place] for place in spread(count, len(blocks)))
    tensors = [tensor for block in chosen.values() for tensor in _tensors_of(block)]
    target = tensors[0].device if device is None else device
    pinned = PinnedMemory()
    return BlockOffload(network, chosen, _maker(is_abstract(tensors), target, pinned), pinned)


def _maker(
    without_data: bool, device: torch.device, pinned: PinnedMemory
) -> Callable[[Sequence[Tensor]], BlockWeights]:
    """Return what makes the weights of a block for a device."""
    if without_data:
        return partial(AbstractWeights, frees=device.type != "cpu")
    if device.type != "cuda":
        return CpuWeights
    return partial(CudaWeights, device=device, stream=torch.cuda.Stream(device), pinned=pinned)


def find_offload(network: nn.Module) -> BlockOffload | None:
    """Return the handle of a network with offloaded blocks; None: it has none."""
    return cast("BlockOffload | None", vars(network).get(_HANDLE))


def spread(count: int, total: int) -> list[int]:
    """Return ``count`` numbers below ``total``, evenly spread."""
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]


def _check_count(count: int, total: int, network: nn.Module) -> None:
    where, code = "train.offload_blocks", "engine.offload_blocks"
    if find_offload(network) is not None:
        raise UserError("blocks of the network are offloaded already", code=code, remedy="undo that first")
    if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise UserError(
            "the network carries an adapter already", code=code, remedy="offload blocks before it is put in"
        )
    if count > total:
        what = f"is {count}, but {type(network).__name__} has {total} repeated blocks"
        raise UserError(what, code=code, where=where, remedy=f"use {total} at most")
    if any(is_placeholder(parameter) for parameter in network.parameters()):
        what, remedy = "the network's weights are not read yet", "load_base(..., offload_blocks=N)"
        raise UserError(what, code=code, where=where, remedy=remedy)


def _tensors_of(block: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module that have numbers, each once."""
    tensors = chain(block.parameters(), block.buffers())
    return list({id(tensor): tensor for tensor in tensors if tensor.numel()}.values())


def _shared_tensors(network: nn.Module, blocks: Iterable[nn.Module]) -> set[int]:
    """Return the ids of the tensors that a block shares with another or with the rest, which stay where they are."""
    parts = [list(block.modules()) for block in blocks]
    inside = {id(module) for part in parts for module in part}
    parts.append([module for module in network.modules() if id(module) not in inside])
    uses = Counter(tensor for part in parts for tensor in {id(each) for module in part for each in _own(module)})
    return {tensor for tensor, count in uses.items() if count > 1}


def _own(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))

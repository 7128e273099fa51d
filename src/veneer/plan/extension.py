"""Rehearse a base with few of its equal blocks, and tell from these what all of them take.

A large transformer has dozens of blocks that are alike. Of each run of them five are rehearsed: the first two, one in
the middle, and the last two. What is held for a block between them is what is held for one of the five that is as far
along: while the last two are computed, one of the first two stands for it, and the other way round, so that what one
block hands to the next counts once. A sum over the five, with that one counted for all that were left out, is the
memory of the whole base at that moment; the moments of blocks that were left out are like those of their neighbours.

A tensor belongs to the block in which it was made, else to the block of the first tensor that it was made from: a
weight that is merged, the state of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from veneer.adapter.inject import find_matches
from veneer.adapter.registry import specs_of
from veneer.adapter.targets import blocks_of
from veneer.config.schema import RunConfig
from veneer.engine.block_offload import ON_DEVICE, find_offload, spread
from veneer.engine.blocks import repeated_blocks
from veneer.family.protocol import Family
from veneer.plan.trace import KEPT, Repeats
from veneer.plan.tracer import MemoryTracer

__all__ = ["Extension", "Offloaded", "Run", "find_runs", "weight_bytes"]

T = TypeVar("T")
_LEAST = 8
"""The length from which a run of blocks is shortened."""


@dataclass(frozen=True)
class Run:
    """Blocks of a list that follow each other and are alike: of the same modules, shapes, dtypes and adapted layers.

    Attributes:
        path: of the list, within the denoiser.
        first: number of the first block.
        count: how many there are.
    """

    path: str
    first: int
    count: int

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers of the blocks that are rehearsed."""
        last = self.first + self.count - 1
        return self.first, self.first + 1, self.first + 2, last - 1, last

    @property
    def left_out(self) -> range:
        """The numbers of those that are not."""
        return range(self.first + 3, self.first + self.count - 2)

    def block(self, number: int) -> str:
        """Return the path of a block."""
        return f"{self.path}.{number}"

    @property
    def example(self) -> str:
        """The path of a kept block that is like those that are left out."""
        return self.block(self.kept[2])


def find_runs(denoiser: nn.Module, adapted: Iterable[str] = ()) -> tuple[Run, ...]:
    """Return the runs of equal blocks with attention that are long enough to be shortened.

    Lists of other modules may be read by number, as a projection for each block is.

    Args:
        denoiser: the network.
        adapted: paths of its layers that an adapter changes.
    """
    inside = set(adapted)
    attending = {block.path for block in blocks_of(denoiser) if block.attends}
    blocks = {path: block for path, block in repeated_blocks(denoiser).items() if path in attending}
    kinds = {path: _kind(path, block, inside) for path, block in blocks.items()}
    runs = []
    for _, group in groupby(kinds, key=lambda path: (path.rpartition(".")[0], kinds[path])):
        paths = list(group)
        owner, _, first = paths[0].rpartition(".")
        if len(paths) >= _LEAST:
            runs.append(Run(owner, int(first), len(paths)))
    return tuple(runs)


def _kind(path: str, block: nn.Module, adapted: set[str]) -> tuple[object, ...]:
    """Return what blocks that are alike have in common."""
    modules = tuple((name, type(module), f"{path}.{name}" in adapted) for name, module in block.named_modules())
    tensors = [*block.named_parameters(), *block.named_buffers()]
    return modules, tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors)


@dataclass(frozen=True)
class Offloaded:
    """The offloaded blocks of a base that is rehearsed with fewer.

    Attributes:
        count: how many are offloaded in the rehearsal.
        waiting: bytes of all that are offloaded.
        resident: bytes of all others, which are on the device.
    """

    count: int = 0
    waiting: int = 0
    resident: int = 0


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))


@dataclass(eq=False)
class Extension:
    """What is left out of a base while it is copied for a rehearsal, and what the rehearsal says of the whole.

    Attributes:
        config: the run.
        runs: of the denoiser; empty until a base was copied, or if nothing is left out.
        whole: the base with all its blocks.
        tracer: of the rehearsal, once it watches.
    """

    config: RunConfig
    runs: tuple[Run, ...] = ()
    whole: Family | None = None
    tracer: MemoryTracer = field(init=False)

    @property
    def denoiser(self) -> str:
        """The denoiser's name."""
        return self.whole_base.denoiser

    @property
    def whole_base(self) -> Family:
        """The base with all its blocks, once it was copied."""
        assert self.whole is not None, "something was left out"
        return self.whole

    @contextmanager
    def shorten(self, thing: object) -> Iterator[None]:
        """Within, a base has no more than five blocks of each run; anything else stays as it is."""
        if not hasattr(thing, "denoiser"):
            yield
            return
        self.whole = family = cast(Family, thing)
        self.runs = self._find(family)
        with ExitStack() as stack:
            for run in self.runs:
                stack.enter_context(_left_out(family.networks[family.denoiser].get_submodule(run.path), run))
            yield

    def _find(self, family: Family) -> tuple[Run, ...]:
        denoiser = family.networks[family.denoiser]
        is_found = find_offload(denoiser) is not None or 0 < self.config.train.offload_blocks <= ON_DEVICE
        if is_found or self.config.adapter.training_adapter is not None or not find_runs(denoiser):
            return ()
        matches = find_matches(family.networks, specs_of(self.config.adapter, family))
        prefix = f"{family.denoiser}."
        modules = [module for match in matches for module in match.modules if module.startswith(prefix)]
        return find_runs(denoiser, (module.removeprefix(prefix) for module in modules))

    def watch(self, tracer: MemoryTracer, family: Family) -> None:
        """Have the tracer know whose each tensor of the blocks is, and when each of them is computed."""
        self.tracer = tracer
        for owner, block in self._kept(family):
            watch = _Watch(tracer, owner)
            block.register_forward_pre_hook(watch.before)
            block.register_forward_hook(watch.after, always_call=True)
        self.claim(family)

    def claim(self, family: Family, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Have the tracer know the tensors that have come into the blocks since.

        Args:
            family: the base that is rehearsed.
            optimizer: whose states of their parameters are the blocks' too.
        """
        states = {} if optimizer is None else optimizer.state
        for owner, block in self._kept(family):
            tensors = [*block.parameters(), *block.buffers()]
            own = [value for tensor in tensors for value in states.get(tensor, {}).values()]
            self.tracer.claim(owner, [*tensors, *(value for value in own if isinstance(value, Tensor))])

    def claim_named(self, tensors: Mapping[str, Tensor]) -> None:
        """Have the tracer know tensors that are named as the adapter's parameters are."""
        for number, run in enumerate(self.runs):
            for place, block in enumerate(run.kept):
                prefix = f"{self.denoiser}.{run.block(block)}."
                own = [tensor for name, tensor in tensors.items() if name.startswith(prefix)]
                self.tracer.claim(KEPT * number + place, own)

    def _kept(self, family: Family) -> Iterator[tuple[int, nn.Module]]:
        denoiser = family.networks[family.denoiser]
        for number, run in enumerate(self.runs):
            for place, block in enumerate(run.kept):
                yield KEPT * number + place, denoiser.get_submodule(run.block(block))

    def repeats(self, tracer: MemoryTracer) -> Repeats | None:
        """Return how often each kept block stands for others; None: nothing is left out."""
        further = [len(run.left_out) for run in self.runs]
        return Repeats(tracer.owners, tracer.visits, further) if further else None

    def further(self, family: Family, measure: Callable[[nn.Module], int]) -> int:
        """Return the sum of a measure over the blocks that are left out."""
        denoiser = family.networks[family.denoiser]
        return sum(len(run.left_out) * measure(denoiser.get_submodule(run.example)) for run in self.runs)

    def offloaded(self, family: Family) -> Offloaded:
        """Return how the blocks of the whole base are offloaded, where those of the short one are all.

        Of those that are offloaded two are on the device at a time, however many there are.
        """
        count = self.config.train.offload_blocks
        if not self.runs or not count:
            return Offloaded()
        short = {path: weight_bytes(block) for path, block in repeated_blocks(family.networks[family.denoiser]).items()}
        likes = {run.block(number): short[run.example] for run in self.runs for number in run.left_out}
        sizes = [(short | likes)[path] for path in repeated_blocks(self.whole_base.networks[self.denoiser])]
        if count > len(sizes):
            raise LookupError("more than there are")
        waiting = sum(sizes[place] for place in spread(count, len(sizes)))
        return Offloaded(len(short), waiting, sum(sizes) - waiting)

    def expand(self, by_path: Mapping[str, T]) -> dict[str, T]:
        """Return what is known by paths of layers for the whole base, of equal blocks the same."""
        values: dict[str, T] = {}
        for path, value in by_path.items():
            values[path] = value
            for run in self.runs:
                before, mark, after = path.partition(f"{self.denoiser}.{run.example}.")
                if mark:
                    others = (f"{self.denoiser}.{run.block(number)}." for number in run.left_out)
                    values |= {f"{before}{other}{after}": value for other in others}
        return values


@contextmanager
def _left_out(blocks: Any, run: Run) -> Iterator[None]:
    """Leave out the middle of a run of a list's blocks; the others keep their names."""
    members = blocks._modules
    blocks._modules = {name: block for name, block in members.items() if int(name) not in run.left_out}
    try:
        yield
    finally:
        blocks._modules = members


class _Watch:
    """Hooks that tell a tracer when a block is computed, forwards and backwards."""

    def __init__(self, tracer: MemoryTracer, owner: int) -> None:
        self._tracer, self._owner = tracer, owner
        self._begun: list[tuple[int, int]] = []

    def before(self, *_: object) -> None:
        """Tell that it begins."""
        self._begun.append((self._tracer.begin_block(self._owner), torch._C._autograd._get_sequence_nr()))

    def after(self, _: nn.Module, __: object, output: object) -> None:
        """Tell that it ends, and have autograd tell when its backward pass begins."""
        before, begin = self._begun.pop()
        self._tracer.begin_block(before)
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        for tensor in tree_leaves(output):
            node = cast(Any, tensor.grad_fn) if isinstance(tensor, Tensor) else None
            if node is not None and node._sequence_nr() >= begin:  # else it is one of another block
                node.register_prehook(self._before_backward)

    def _before_backward(self, gradients: Sequence[Tensor]) -> None:
        self._tracer.begin_block_backward(self._owner)

"""Layers that a model's own code keeps as one matrix, cut apart when a file is read and joined when one is written.

The code that a base was published with often has one matrix where diffusers has several: the query, key and value of an
attention, in FLUX also the first matrix of the block's MLP. Rows of the matrix are outputs of the layer, and an adapter
changes each row by itself, so that it is cut without any loss. diffusers also has the two halves of some layers the
other way round, which is the same thing with one part.

Slices are plain data: they need no torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from veneer.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from veneer.adapter.protocol import AdapterWeights, LayerAdapter, Method

__all__ = ["Slice", "cut", "join", "join_layers", "swapped_halves"]

_SHAPE = "weight_shape"  # of methods whose numbers do not tell it


@dataclass(frozen=True)
class Slice:
    """The rows of a larger layer that are one layer here.

    Attributes:
        name: of the larger layer in files, dotted, with the network's prefix.
        offset: its first row.
        length: number of rows; after the last row of the larger layer comes its first one again.
        total: number of rows of the larger layer.
    """

    name: str
    offset: int
    length: int
    total: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The rows as one stretch, or as two where they begin anew, each by its first row and its length."""
        before_end = min(self.length, self.total - self.offset)
        return [(self.offset, before_end), *([(0, self.length - before_end)] if before_end < self.length else [])]

    def take(self, tensor: Tensor) -> Tensor:
        """Return a copy of these rows of a tensor of the larger layer."""
        import torch

        return torch.cat([tensor.narrow(0, start, length) for start, length in self.spans])

    def in_rows(self, count: int) -> Slice | None:
        """Return the same slice of fewer rows, each of which stands for as many that follow one another.

        Args:
            count: number of these rows, of all of the larger layer.

        Returns:
            None: the slice begins or ends within one.
        """
        size, rest = divmod(self.total, count)
        if rest or self.offset % size or self.length % size:
            return None
        return Slice(self.name, self.offset // size, self.length // size, count)

    def put(self, rows: Tensor, whole: Tensor) -> None:
        """Write rows of the layer to where they are in a tensor of the larger layer."""
        done = 0
        for start, length in self.spans:
            whole.narrow(0, start, length).copy_(rows.narrow(0, done, length))
            done += length


def swapped_halves(name: str, total: int) -> Slice:
    """Return the slice of a layer whose second half comes first in files."""
    return Slice(name, total // 2, total, total)


def cut(adapter: LayerAdapter, slices: Mapping[str, Slice]) -> dict[str, LayerAdapter]:
    """Return the adapters of the layers that are slices of a larger layer, by the keys of ``slices``.

    Each has the larger one's rows, and all have what the rows are made of: for LoRA its rows of B, and A. Where B is
    block diagonal, so that each has rows of A to itself, each has only those: that undoes :func:`join`. A layer that
    then has none, because its rows are all zero, has no adapter.

    Args:
        adapter: of the larger layer.
        slices: of it, by anything that names them.

    Raises:
        UserError: the larger layer is of another size, or the method's adapters cannot be cut by rows.
    """
    _check_can_cut(adapter, slices)
    state, inner = adapter.state_dict(), adapter.method.row_parts
    slices = dict(sorted(slices.items(), key=lambda each: _first_row(each[1])))
    columns = _own_columns(state, inner, list(slices.values()))
    if columns is None:
        return {key: adapter.method.from_state(_state_of(state, inner, part)) for key, part in slices.items()}
    return {
        key: adapter.method.from_state(_state_of(state, inner, slices[key], own))
        for key, own in zip(slices, columns, strict=True)
        if own
    }


def _check_can_cut(adapter: LayerAdapter, slices: Mapping[str, Slice]) -> None:
    """Refuse an adapter of a larger layer that has other rows than its slices, or that is not told row by row."""
    one = next(iter(slices.values()))
    if adapter.shape[0] != one.total:
        what = f"the adapter is of another architecture: {one.name} has {adapter.shape[0]} outputs in it"
        remedy = "use the base that it was trained on"
        raise UserError(f"{what} and {one.total} in the base", code="adapter.other_architecture", remedy=remedy)
    if not _is_by_rows(adapter, slices.values()):
        what = f"its {adapter.method.title} of {one.name} cannot be cut into {', '.join(sorted(slices))}"
        remedy = "merge it into the base with the tool that made it, and extract a LoRA from that"
        raise UserError(what, code="adapter.cannot_cut", remedy=remedy)


def _own_columns(
    state: Mapping[str, Tensor], inner: Mapping[str, str | None], slices: Sequence[Slice]
) -> list[range] | None:
    """Return the columns of B that each slice has to itself; None: they share them."""
    factors = [state[part] for part, other in inner.items() if part in state and other is not None]
    ranks = {factor.shape[1] for factor in factors}
    if len(slices) == 1 or len(ranks) != 1 or any(factor.is_meta for factor in factors):
        return None
    used = [{column for factor in factors for column in _used(part.take(factor))} for part in slices]
    return _equal_blocks(used, ranks.pop()) or _blocks(used, factors[0].shape[1])


def _used(rows: Tensor) -> list[int]:
    """Return the columns that are not zero in all rows; further axes count as rows."""
    columns: list[int] = (rows != 0).transpose(0, 1).flatten(1).any(dim=1).nonzero().flatten().tolist()
    return columns


def _equal_blocks(used: Sequence[set[int]], rank: int) -> list[range] | None:
    """Return the blocks of a block diagonal where they are equally wide, as those of equal ranks are."""
    width, rest = divmod(rank, len(used))
    blocks = [range(each * width, (each + 1) * width) for each in range(len(used))]
    return blocks if not rest and all(own <= set(block) for own, block in zip(used, blocks, strict=True)) else None


def _blocks(used: Sequence[set[int]], rank: int) -> list[range] | None:
    """Return the blocks of a block diagonal whose parts have no column in common and follow one another.

    Parts without a column have empty blocks; columns that nobody uses belong to the block behind them.
    """
    if not any(used):
        return None
    last = max(part for part, own in enumerate(used) if own)
    blocks, start = [], 0
    for part, own in enumerate(used):
        if own and min(own) < start:
            return None
        stop = rank if part == last else (max(own) + 1 if own else start)
        blocks.append(range(start, stop))
        start = stop
    return blocks


def _state_of(
    state: Mapping[str, Tensor], inner: Mapping[str, str | None], part: Slice, columns: range | None = None
) -> dict[str, Tensor]:
    """Return the state of one slice's adapter: its rows, of a factor its columns alone, and all else as it is."""
    own = dict(state)
    for name, other in inner.items():
        if name not in state:
            continue
        own[name] = _required(part.in_rows(len(state[name]))).take(state[name])
        if columns is None or other is None:
            continue
        own[name] = own[name].narrow(1, columns.start, len(columns)).contiguous()
        own[other] = state[other].narrow(0, columns.start, len(columns)).contiguous()
        if (alpha := _alpha_of(state)) is not None:
            own[alpha] = state[alpha] * len(columns) / state[name].shape[1]
    return own


def _required(part: Slice | None) -> Slice:
    assert part is not None, "a slice within a row, which is checked before"
    return part


def _alpha_of(state: Mapping[str, Tensor]) -> str | None:
    """Return which part of a state is alpha; of an adapter within another, names have the method's in front."""
    return next((name for name in state if name.rpartition(":")[2] == "alpha"), None)


def join(parts: Mapping[Slice, LayerAdapter]) -> LayerAdapter:
    """Return the adapter of a larger layer from those of its slices; rows of slices that have none stay as they are.

    Where all slices are there and share what their rows are made of (LoRA's A and alpha), so does the larger layer, and
    no number changes. Else A is the rows of all A, and B is block diagonal. One alpha then tells one strength: where
    alpha/r differs among the slices, it is that of the largest, and the others' B are multiplied by the rest, which
    rounds them unless the ratio is a power of two.

    Raises:
        UserError: the slices have different methods, or one whose adapters cannot be joined.
    """
    from veneer.adapter.biased import BiasedAdapter

    biased = {part: adapter for part, adapter in parts.items() if isinstance(adapter, BiasedAdapter)}
    # a bias of B has B's strength, which joining may change
    parts = {**parts, **{part: adapter.with_difference() for part, adapter in biased.items()}}
    method, slices = _method_of(parts), sorted(parts, key=_first_row)
    states = [parts[part].state_dict() for part in slices]
    inner = {part: other for part, other in method.row_parts.items() if part in states[0]}
    shared = [name for name in states[0] if name not in inner]
    if _is_whole(slices) and all(_same(state[name], states[0][name]) for state in states[1:] for name in shared):
        rows = {name: _joined_rows(slices, [state[name] for state in states]) for name in inner}
        return method.from_state({**states[0], **rows})
    if set(shared) - {_alpha_of(states[0]), *inner.values()}:
        raise _cannot_join(slices[0].name, f"its {method.title} adapters have little in common")
    return method.from_state(_block_diagonal(slices, _of_one_strength(states, inner), inner))


def _method_of(parts: Mapping[Slice, LayerAdapter]) -> Method:
    """Return the method of a larger layer's parts.

    Raises:
        UserError: they have several, or one whose adapters cannot be joined.
    """
    name, adapters = next(iter(parts)).name, list(parts.values())
    method, names = adapters[0].method, adapters[0].state_dict().keys()
    if any(one.method.title != method.title or one.state_dict().keys() != names for one in adapters):
        titles = " and ".join(sorted({one.method.title for one in adapters}))
        raise _cannot_join(name, f"parts of it have {titles} adapters of different kinds")
    if not all(_is_by_rows(adapter, [Slice(name, 0, one.length, one.length)]) for one, adapter in parts.items()):
        raise _cannot_join(name, f"its {method.title} adapters are not told output by output")
    if not (_is_whole(list(parts)) or method.is_additive):
        raise _cannot_join(name, f"parts of it have no adapter, and {method.title} leaves no output as it is")
    return method


def _is_by_rows(adapter: LayerAdapter, slices: Iterable[Slice]) -> bool:
    """Return whether the outputs in each slice of a layer have rows of their own in an adapter."""
    method, state = adapter.method, adapter.state_dict()
    own = [len(state[part]) for part in method.row_parts if part in state]
    return (
        bool(own)
        and _SHAPE not in state
        and all(
            part.in_rows(count) is not None and (method.has_row_blocks or count == part.total)
            for count in own
            for part in slices
        )
    )


def _is_whole(slices: Sequence[Slice]) -> bool:
    """Return whether slices are all of the larger layer."""
    return sum(part.length for part in slices) == slices[0].total


def _cannot_join(name: str, why: str) -> UserError:
    what = f"the layers that are one in files of this kind, {name}, cannot be written as one: {why}"
    return UserError(what, code="adapter.cannot_join", remedy="save it in the format comfy, which has a name for each")


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal to the bit; those without numbers never are."""
    return not (one.is_meta or other.is_meta) and one.dtype == other.dtype and one.equal(other)


def _joined_rows(slices: Sequence[Slice], tensors: Sequence[Tensor]) -> Tensor:
    """Return the rows of all slices where they belong, zero where no slice is."""
    count = slices[0].total * len(tensors[0]) // slices[0].length
    whole = tensors[0].new_zeros(count, *tensors[0].shape[1:], dtype=_common_dtype(tensors))
    for part, rows in zip(slices, tensors, strict=True):
        _required(part.in_rows(count)).put(rows, whole)
    return whole


def _in_columns(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return factors of different columns, each with zeros where the others' columns are."""
    import torch

    width, start, widened = sum(tensor.shape[1] for tensor in tensors), 0, []
    for tensor in tensors:
        whole = torch.zeros_like(tensor[:, :1]).repeat(1, width, *[1] * (tensor.ndim - 2))
        whole.narrow(1, start, tensor.shape[1]).copy_(tensor)
        start += tensor.shape[1]
        widened.append(whole)
    return widened


def _common_dtype(tensors: Iterable[Tensor]) -> dtype:
    """Return the narrowest dtype that holds the numbers of all tensors."""
    import torch

    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _block_diagonal(
    slices: Sequence[Slice], states: Sequence[Mapping[str, Tensor]], inner: Mapping[str, str | None]
) -> dict[str, Tensor]:
    """Return the state of the larger layer's adapter: of each slice its rows, and its own columns."""
    import torch

    joined: dict[str, Tensor] = {}
    for name, other in inner.items():
        tensors = [state[name] for state in states]
        joined[name] = _joined_rows(slices, tensors if other is None else _in_columns(tensors))
        if other is not None:
            below = [state[other] for state in states]
            joined[other] = torch.cat([tensor.to(_common_dtype(below)) for tensor in below])
    if (alpha := _alpha_of(states[0])) is not None:
        joined[alpha] = torch.stack([state[alpha] for state in states]).sum()
    return joined


def _of_one_strength(
    states: Sequence[Mapping[str, Tensor]], inner: Mapping[str, str | None]
) -> Sequence[Mapping[str, Tensor]]:
    """Return the same adapters with one alpha/r, the largest; the others' B have the rest."""
    factor = next((name for name, other in inner.items() if other is not None), None)
    alpha = _alpha_of(states[0])
    if factor is None or alpha is None:
        return states
    scales = [float(state[alpha]) / state[factor].shape[1] for state in states]
    largest = max(scales, key=abs)
    if all(scale == largest for scale in scales):
        return states
    ratios = [scale / largest for scale in scales]
    is_exact = all(abs(math.frexp(ratio)[0]) in (0, 0.5) for ratio in ratios)
    scaled = []
    for state, ratio in zip(states, ratios, strict=True):
        wide = state if is_exact else _widened(state)
        product = (wide[factor].double() * ratio).to(wide[factor].dtype)
        scaled.append({**wide, factor: product, alpha: wide[alpha].new_tensor(largest * product.shape[1])})
    return scaled


def _widened(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state in float32 at least, in which a product is rounded by at most 1 in 16 million."""
    import torch

    return {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in state.items()}


def join_layers(weights: AdapterWeights, names: Mapping[str, str | Slice]) -> dict[str, LayerAdapter]:
    """Return an adapter by what files call its layers, slices of one larger layer joined.

    Args:
        weights: by full path.
        names: what files call layers, by full path; those that are not in it are called as they are.

    Raises:
        UserError: slices of a layer have different methods, or one whose adapters cannot be joined.
    """
    joined: dict[str, LayerAdapter] = {}
    parts: dict[str, dict[Slice, LayerAdapter]] = {}
    for path, adapter in weights.items():
        name = names.get(path, path)
        if isinstance(name, Slice):
            parts.setdefault(name.name, {})[name] = adapter
        else:
            joined[name] = adapter
    return joined | {name: join(own) for name, own in parts.items()}


def _first_row(part: Slice) -> int:
    return part.offset

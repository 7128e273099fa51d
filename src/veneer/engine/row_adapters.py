"""Add to one layer's output the low-rank updates of each row of a batch, which differ from row to row.

``h_b = W0 x_b + s_b B_b (A_b x_b)`` (Hu et al. 2021, eq. 3, a row at a time): the frozen product is one for the whole
batch, and the updates are added to it as batched matrix products over stacked factors. Factors are gathered by row as
in Punica (Chen et al. 2023), but in adjacent rows and with little padding, so that rows without an adapter cost
nothing and a row of rank 4 does not pay for its neighbour's 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from veneer.adapter.protocol import LowRank
from veneer.errors import UserError

__all__ = ["RowAdapterHook", "RowUpdates", "group_rows"]

RowUpdates: TypeAlias = "tuple[tuple[LowRank, float], ...]"
"""The updates of one row on one layer, with the strength of each; none: the base alone."""

_MAX_PADDING = 2
"""A row's rank is padded to this many times itself at most."""


@dataclass(frozen=True)
class _RowGroup:
    """Adjacent rows of a batch that are computed together.

    Attributes:
        first: the index of the first.
        length: how many rows there are.
        down_SRK: A, (S, r, in) or (S, r, in, kh, kw); S is the number of rows, or 1 where all have the same factors.
        up_SDR: B with its strength in it, (S, out, r).
    """

    first: int
    length: int
    down_SRK: Tensor
    up_SDR: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> _RowGroup:
        return _RowGroup(self.first, self.length, self.down_SRK.to(device, dtype), self.up_SDR.to(device, dtype))


def group_rows(ranks: Sequence[int]) -> list[range]:
    """Group the rows that are computed together: adjacent adapted ones, none padded to over twice its own rank."""
    groups: list[range] = []
    for row, rank in enumerate(ranks):
        group = groups[-1] if groups and groups[-1].stop == row else range(row, row)
        joined = [*(ranks[other] for other in group), rank]
        if group and max(joined) <= _MAX_PADDING * min(joined):
            groups[-1] = range(group.start, row + 1)
        elif rank:
            groups.append(range(row, row + 1))
    return groups


@torch.no_grad()
def _stack(rows: Sequence[RowUpdates], first: int) -> _RowGroup:
    """Stack the factors of adjacent rows; those of one row side by side, shorter ones padded with zeros."""
    different = rows if any(updates != rows[0] for updates in rows) else rows[:1]
    rank = max(_rank(updates) for updates in rows)
    example = rows[0][0][0]
    dtype = torch.promote_types(example.up.dtype, torch.float32)  # strengths are multiplied in before any rounding
    down = example.down.new_zeros(len(different), rank, *example.shape[1:], dtype=dtype)
    up = example.up.new_zeros(len(different), example.shape[0], rank, dtype=dtype)
    for row, updates in enumerate(different):
        start = 0
        for product, strength in updates:
            place = slice(start, start + product.rank)
            down[row, place] = product.down
            up[row, :, place] = product.up.flatten(1).to(dtype) * (strength * product.scale)
            start += product.rank
    return _RowGroup(first, len(rows), down, up)


def _rank(updates: RowUpdates) -> int:
    return sum(product.rank for product, _ in updates)


class RowAdapterHook:
    """A forward hook that adds rows' updates to the output of a linear layer or a convolution.

    Args:
        path: of the layer, for messages.
        rows: what each row of the batch has here.
        copies: how often the batch may repeat the rows, whole; any number from 1 to this is taken.
        is_folded: whether each row comes as several adjacent ones, as many as there are; of a linear layer.
    """

    def __init__(self, path: str, rows: Sequence[RowUpdates], copies: int, is_folded: bool = False) -> None:
        self._path, self._count, self._copies, self._is_folded = path, len(rows), copies, is_folded
        groups = group_rows([_rank(updates) for updates in rows])
        self._groups = [_stack(rows[group.start : group.stop], group.start) for group in groups]
        self._cast: dict[tuple[torch.device, torch.dtype], list[_RowGroup]] = {}

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """Return the layer's output with the adapters' part added, in place unless autograd records it."""
        x = args[0] if args else kwargs["input"]
        output = output.clone() if output.requires_grad else output
        if self._is_folded:  # adjacent rows (rows N, ..., D) are one long row of each (rows, N ..., D)
            x, rows = (x.reshape(self._count, -1, x.shape[-1]), output.view(self._count, -1, output.shape[-1]))
            self._add(layer, x, rows)
        else:
            self._add(layer, x, output)
        return output

    def _add(self, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        """Add the adapters' part to a layer's output in place."""
        self._check(len(x))
        x = x.to(output.dtype)  # under autocast the output has the narrower dtype, as both factors get
        add = _add_linear if isinstance(layer, nn.Linear) else _add_convolution
        for start in range(0, len(x), self._count):
            for group in self._on(output.device, output.dtype):
                rows = slice(start + group.first, start + group.first + group.length)
                add(layer, x[rows], output[rows], group)

    def _check(self, count: int) -> None:
        if count % self._count or count > self._count * self._copies:
            raise UserError(
                f"the batch has {count} rows, and adapters are set for {self._count}",
                code="adapter.other_batch_size",
                where=self._path,
                remedy="give one entry a row, and guidance=True where the pipeline doubles them for it",
            )

    def _on(self, device: torch.device, dtype: torch.dtype) -> list[_RowGroup]:
        if (device, dtype) not in self._cast:
            self._cast[device, dtype] = [group.to(device, dtype) for group in self._groups]
        return self._cast[device, dtype]


def _add_linear(layer: nn.Module, x: Tensor, output: Tensor, group: _RowGroup) -> None:
    """Add to output (N, ..., out) the updates of x (N, ..., in)."""
    sets = len(group.down_SRK)  # rows with the same factors are one long row
    low_rank = torch.bmm(x.reshape(sets, -1, x.shape[-1]), group.down_SRK.mT)
    output.view(sets, -1, output.shape[-1]).baddbmm_(low_rank, group.up_SDR.mT)


def _add_convolution(layer: nn.Module, x: Tensor, output: Tensor, group: _RowGroup) -> None:
    """Add to output (N, out, H', W') the updates of x (N, in, H, W): one convolution with each row's A as a group."""
    assert isinstance(layer, nn.Conv2d)
    sets, rank = group.down_SRK.shape[:2]
    grouped = x.reshape(-1, sets * x.shape[1], *x.shape[2:])
    down = group.down_SRK.flatten(0, 1)
    low_rank = functional.conv2d(grouped, down, None, layer.stride, layer.padding, layer.dilation, groups=sets)
    up = group.up_SDR.expand(len(x), -1, -1)
    output.view(*output.shape[:2], -1).baddbmm_(up, low_rank.reshape(len(x), rank, -1))

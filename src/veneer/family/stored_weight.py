"""A weight as a file has it: where it lies, in which dtype, and how it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.family.shards import WeightsFile
from veneer.family.single_file_layout import Place

__all__ = ["StoredWeight"]


@dataclass(frozen=True)
class StoredWeight:
    """A weight or a bias of a layer, as a file has it.

    Attributes:
        file: which has it.
        place: where in the file it lies.
        shape: of the weight.
        dtype: that it is stored in.
    """

    file: WeightsFile
    place: Place
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that its numbers take in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read_number(self) -> Tensor:
        """Read it as numbers of 16 bits or more: 8-bit floats are widened to float32, of which they are exact."""
        found = self.read()
        return found.float() if found.is_floating_point() and found.element_size() == 1 else found

    def read(self) -> Tensor:
        """Read it: in the dtype that it is stored in; 8-bit numbers with a scale are multiplied by it, in float32."""
        rows = self.place.rows
        if rows is None:
            found = self.file.read(self.place.tensor)
        else:  # torch has no cat for 8-bit floats, hence bytes
            runs = [self.file.read(self.place.tensor, (start, start + length)) for start, length in rows.spans]
            found = runs[0] if len(runs) == 1 else torch.cat([run.view(torch.uint8) for run in runs]).view(self.dtype)
        if (scale := self.file.read_scale(self.place.tensor)) is not None:
            found = found.float() * (scale if rows is None or scale.ndim == 0 else rows.take(scale))
        return (found.T.contiguous() if self.place.is_transposed else found).reshape(self.shape)

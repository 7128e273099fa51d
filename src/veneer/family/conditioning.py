"""What a denoiser is told beside the noisy latents, which nobody outside its family looks into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NO_REFERENCES", "Conditioning"]

_REFERENCE = "reference."


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a denoiser is told beside the noisy latents: named tensors whose first axis is the batch.

    What they mean is the family's business: hidden states of a text, a pooled vector, sizes. Texts of different lengths
    are joined by zeros behind the shorter ones, so a family whose texts have different lengths keeps a mask among the
    tensors: 1 where a token is.

    Attributes:
        tensors: by name, each (B, ...); also the form in which they are stored.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Join the rows of several, in order.

        Raises:
            ValueError: they have different names, or differ in another axis than the second.
        """
        names = parts[0].tensors.keys()
        if any(part.tensors.keys() != names for part in parts):
            raise ValueError(f"conditionings with {[sorted(part.tensors) for part in parts]} cannot be joined")
        return cls({name: torch.cat(_as_long([part.tensors[name] for part in parts])) for name in names})

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.tensors.values())))

    @classmethod
    def of_references(cls, tensors: Sequence[Tensor]) -> Conditioning:
        """Return encoded references, each (B, ...), under the names that :attr:`references` finds them by."""
        return cls({f"{_REFERENCE}{number}": tensor for number, tensor in enumerate(tensors)})

    @property
    def references(self) -> tuple[Tensor, ...]:
        """The encoded references, each (B, ...), in order; empty where there are none."""
        count = sum(name.startswith(_REFERENCE) for name in self.tensors)
        return tuple(self.tensors[f"{_REFERENCE}{number}"] for number in range(count))

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor by its name; for the family alone."""
        return self.tensors[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def rows(self, index: slice | Sequence[int]) -> Conditioning:
        """Take some rows, in the order of ``index``."""
        where = index if isinstance(index, slice) else list(index)
        return Conditioning({name: tensor[where] for name, tensor in self.tensors.items()})

    def expand(self, count: int) -> Conditioning:
        """Repeat the only row ``count`` times, without a copy."""
        return Conditioning({name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    def joined_to(self, tensors: Mapping[str, Tensor]) -> Conditioning:
        """Add further tensors of as many rows."""
        return Conditioning({**self.tensors, **tensors})

    def to(self, device: torch.device | str) -> Conditioning:
        """Move all tensors to a device."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()})


def _as_long(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Fill the second axis of each with zeros up to the longest one's length."""
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return list(tensors)
    if len({(tensor.ndim, *tensor.shape[2:]) for tensor in tensors}) != 1:
        raise ValueError(f"tensors of shapes {[tuple(tensor.shape) for tensor in tensors]} cannot be joined")
    longest = max(tensor.shape[1] for tensor in tensors)
    fill = [torch.Size((len(t), longest - t.shape[1], *t.shape[2:])) for t in tensors]
    return [torch.cat([tensor, tensor.new_zeros(shape)], dim=1) for tensor, shape in zip(tensors, fill, strict=True)]


NO_REFERENCES = Conditioning({})
"""The encoded references of pictures that have none."""

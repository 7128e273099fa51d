"""The singular value decomposition of an adapter's delta W, which is not formed where thin matrices make it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import LowRank
from veneer.rng import torch_generator

__all__ = ["Decomposition", "decompose", "decompose_dense"]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """delta W = U S V^T, with the largest singular values first.

    Attributes:
        left: U, (out, n).
        values: the diagonal of S, (n,), falling; all of them, or the largest.
        right: V^T, (n, in), or (n, in * kh * kw) of a convolution.
        shape: of delta W: (out, in) or (out, in, kh, kw).
    """

    left: Tensor
    values: Tensor
    right: Tensor
    shape: tuple[int, ...]

    def cut(self, rank: int, dtype: torch.dtype) -> LoraFactors:
        """Return the LoRA of a rank that is nearest to delta W in the Frobenius norm (Eckart and Young 1936).

        The singular values are shared evenly by both factors, and alpha is the rank, which makes the strength 1.

        Args:
            rank: of the factors; lower where delta W has no more singular values.
            dtype: of the factors.
        """
        rank = min(rank, len(self.values))
        root = self.values[:rank].sqrt()
        up = (self.left[:, :rank] * root).reshape(self.shape[0], rank, *[1] * (len(self.shape) - 2))
        down = (root[:, None] * self.right[:rank]).reshape(rank, *self.shape[1:])
        return LoraFactors(down.to(dtype).contiguous(), up.to(dtype).contiguous(), float(rank))


def decompose(product: LowRank) -> Decomposition:
    """Return the decomposition of s B A in float64.

    With B = Qb Rb and A^T = Qa Ra the singular values are those of the small matrix s Rb Ra^T, so that of two matrices
    d x r and r x k nothing larger than r x r is decomposed.
    """
    up_basis, up_rest = torch.linalg.qr(product.up.flatten(1).double())
    down_basis, down_rest = torch.linalg.qr(product.down.flatten(1).double().T)
    left, values, right = torch.linalg.svd(product.scale * up_rest @ down_rest.T, full_matrices=False)
    return Decomposition(up_basis @ left, values, right @ down_basis.T, product.shape)


def decompose_dense(delta: Tensor, rank: int | None = None) -> Decomposition:
    """Return the decomposition of a delta W that is there as a whole, in its own precision.

    Args:
        delta: (out, in) or (out, in, kh, kw).
        rank: how many of the largest singular values are wanted; None: all. Few of many are found by Lanczos' method,
            to the same precision, in a tenth of the time.
    """
    matrix = delta.flatten(1)
    if rank is not None and _MANY * rank < min(matrix.shape) and bool(matrix.any()):
        left, values, right = _leading(matrix, rank)
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return Decomposition(left, values, right, tuple(delta.shape))


_MANY = 16
"""Times as many singular values as are wanted, from which on finding these alone is faster."""


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (out, rank), the largest singular values, falling, and V^T (rank, in)."""
    from scipy.sparse.linalg import svds

    start = torch.randn(min(matrix.shape), generator=torch_generator(0, "svd"), dtype=torch.float64)
    left, values, right = svds(matrix.double().numpy(), k=rank, v0=start.numpy(), solver="arpack")
    falling = [torch.from_numpy(each.copy()).to(matrix.dtype) for each in (left[:, ::-1], values[::-1], right[::-1])]
    return falling[0], falling[1], falling[2]

"""The mathematics of LoRA as pure functions of tensors."""

from __future__ import annotations

from torch import Tensor

from veneer.adapter.spec import LoraFactors

__all__ = ["delta_weight"]


def delta_weight(factors: LoraFactors) -> Tensor:
    """Delta W = (alpha/r) B A (Hu et al. 2021, section 4.1), (out, in) or (out, in, kh, kw).

    A convolution's B is 1 x 1, so the product over r is taken at each place of A's kernel.
    """
    product = factors.up.flatten(1) @ factors.down.flatten(1)
    return factors.scale * product.reshape(factors.shape)

"""The numbers of a safetensors file as numpy arrays: numpy has neither bfloat16 nor floats of 8 bits, so bits are read.

Every float of at most 32 bits is some float32, so each is returned as that, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOATS", "Numbers", "decode_numbers"]

Numbers: TypeAlias = NDArray[Any]

_NATIVE: Mapping[str, str] = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"},
}
"""Types that numpy has, by the format's name."""
_EIGHT_BITS: Mapping[str, tuple[int, int, bool]] = {
    "F8_E4M3": (4, 7, False),
    "F8_E4M3FNUZ": (4, 8, True),
    "F8_E5M2": (5, 15, False),
    "F8_E5M2FNUZ": (5, 16, True),
}
"""Bits of the exponent, its bias, and whether the only number that is not finite is what would be minus zero."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16", *_EIGHT_BITS})
"""Types of floating point numbers, by the format's name."""


def decode_numbers(data: NDArray[np.uint8], dtype: str) -> Numbers:
    """Return the numbers that bytes are: floats in float32, of 64 bits in float64, integers and truth values as such.

    Args:
        data: (n,), as many bytes as whole numbers take, in the file's order (little endian).
        dtype: a key of ``header.ITEM_BYTES``.
    """
    if dtype == "BF16":
        # the upper half of a float32
        wide = data.view("<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype in _EIGHT_BITS:
        return _eight_bit_table(*_EIGHT_BITS[dtype])[data]
    native = data.view(_NATIVE[dtype])
    return native.astype(np.float32) if dtype == "F16" else native


def _eight_bit_table(exponent_bits: int, bias: int, one_nan: bool) -> NDArray[np.float32]:
    """Return the float32 that each byte is as a float of 8 bits (Micikevicius et al. 2022, "FP8 formats").

    Args:
        exponent_bits: bits of the exponent; one is the sign's, the rest the fraction's.
        bias: of the exponent.
        one_nan: whether 0x80 is the only number that is not finite, else all ones of the exponent (E5M2, with
            infinity) or of exponent and fraction (E4M3).
    """
    codes = np.arange(256)
    steps = 2 ** (7 - exponent_bits)
    sign, exponent, fraction = codes >> 7, codes % 128 // steps, codes % steps
    size = np.where(exponent, 1 + fraction / steps, fraction / steps) * 2.0 ** (np.maximum(exponent, 1) - bias)
    if one_nan:
        size = np.where(codes == 0x80, np.nan, size)
    elif exponent_bits == 5:
        size = np.where(exponent == 31, np.where(fraction, np.nan, np.inf), size)
    else:
        size = np.where(codes % 128 == 127, np.nan, size)
    return np.where(sign, -size, size).astype(np.float32)

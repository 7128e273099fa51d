"""The formats in which a frozen matrix is held: numbers of 16 bits, and those of bitsandbytes and torchao.

A format packs a matrix and reads it back. The libraries, each an extra, do both; this module chooses which of their
functions are used and keeps the result as plain bytes, which no cast of a network rounds and any device takes.

============ ======================================================================== ===============
format       a weight                                                                 bits a weight
============ ======================================================================== ===============
bfloat16     the nearest number of PyTorch's dtype of this name                       16
float16      the same                                                                 16
bnb_nf4      4 bits on the scale of a normal distribution, a scale for each 64 weights 4.13
             which is itself stored in 8 bits (Dettmers et al. 2023, QLoRA, section 3)
bnb_int8     8 bits, a scale for each row (Dettmers et al. 2022, LLM.int8(), eq. 2)   8 + 32 / in
torchao_int8 the same, by torchao, whose scale is that of 255 steps                   8 + 32 / in
torchao_fp8  8 bits with an exponent of 4 (E4M3), a scale for each row                8 + 32 / in
============ ======================================================================== ===============
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from veneer.engine.placeholders import is_placeholder, placeholder
from veneer.errors import UserError
from veneer.silence import silence_notices

__all__ = ["FORMATS", "NONE", "QuantizationFormat", "find_format"]

NONE = "none"
"""The name for weights that are not quantised."""
_BLOCK, _BLOCK_OF_SCALES = 64, 256
"""How many weights share a scale in nf4, and how many of those scales share one."""
_WHERE = "train.quantization"

Parts = Sequence[Tensor]
Shape = tuple[int, int]


@dataclass(frozen=True)
class QuantizationFormat:
    """A way to hold a matrix in few bits.

    Attributes:
        name: its name in the configuration.
        library: the library that packs and unpacks; its name on PyPI, and that of the extra. None: PyTorch does.
        part_sizes: computes the bytes of each part of a matrix (out, in).
        pack_float32: packs a float32 matrix into parts.
        unpack_parts: reads float32, float16 or bfloat16 numbers from the parts.
    """

    name: str
    library: str | None
    part_sizes: Callable[[Shape], tuple[int, ...]]
    pack_float32: Callable[[Tensor], Parts]
    unpack_parts: Callable[[Parts, Shape, torch.dtype], Tensor]

    @property
    def packs_kernels(self) -> bool:
        """Whether convolutions are packed as well: where nothing is lost that products in this precision would see."""
        return self.library is None

    def pack(self, weight_OI: Tensor) -> tuple[Tensor, ...]:
        """Pack a matrix into parts, each (bytes,) of uint8 on the matrix's device.

        Raises:
            UserError: the library is not installed.
        """
        shape = _shape(weight_OI)
        if weight_OI.is_meta or isinstance(weight_OI, FakeTensor):  # an abstract model has no numbers to pack
            return tuple(weight_OI.new_empty(size, dtype=torch.uint8) for size in self.part_sizes(shape))
        self.check_installed()
        with torch.no_grad():
            return tuple(map(_as_bytes, self.pack_float32(weight_OI.detach().to(torch.float32).contiguous())))

    def unpack(self, parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Read the matrix (out, in) back in ``dtype``, as its bits have it."""
        if parts[0].is_meta or isinstance(parts[0], FakeTensor):
            return parts[0].new_empty(shape, dtype=dtype)
        if is_placeholder(parts[0]):
            return placeholder(torch.Size(shape), dtype, parts[0].device)
        with torch.no_grad():
            if dtype == torch.float64:
                return self.unpack_parts(parts, shape, torch.float32).to(dtype)
            return self.unpack_parts(parts, shape, dtype)

    @property
    def is_installed(self) -> bool:
        """Whether the library is installed; it is not imported to find out, which would take memory."""
        return self.library is None or importlib.util.find_spec(self.library) is not None

    def check_installed(self) -> None:
        """Check that the library can be imported.

        Raises:
            UserError: it is not installed, or does not work here.
        """
        if self.library is None:
            return
        try:
            with silence_notices():  # both log which kernels for other hardware are missing
                importlib.import_module(self.library)
        except ImportError as fault:
            missing = isinstance(fault, ModuleNotFoundError) and fault.name == self.library
            what = "is not installed" if missing else f"cannot be imported: {str(fault).splitlines()[0]}"
            remedy = f"pip install 'veneer[{self.library}]'"
            message, code = f"{self.name} needs {self.library}, which {what}", "quantization.library_missing"
            raise UserError(message, code=code, where=_WHERE, remedy=remedy) from fault


def find_format(name: str) -> QuantizationFormat:
    """Return the format that the configuration names.

    Raises:
        UserError: there is none of this name.
    """
    if name not in FORMATS:
        what, remedy = f"{name!r} is no quantisation format", f"use {', '.join(FORMATS)}"
        raise UserError(what, code="quantization.unknown_format", where=_WHERE, remedy=remedy)
    return FORMATS[name]


def _shape(weight_OI: Tensor) -> Shape:
    outputs, inputs = weight_OI.shape
    return outputs, inputs


def _as_bytes(part: Tensor) -> Tensor:
    return part.detach().contiguous().reshape(-1).view(torch.uint8)


def _sizes_of_halves(shape: Shape) -> tuple[int, ...]:
    return (2 * shape[0] * shape[1],)


def _halves(name: str, dtype: torch.dtype) -> QuantizationFormat:
    """Return the format of numbers of a 16-bit dtype, which are products' own where they are computed in it."""

    def unpack(parts: Parts, shape: Shape, wanted: torch.dtype) -> Tensor:
        return parts[0].view(dtype).view(shape).to(wanted)

    return QuantizationFormat(name, None, _sizes_of_halves, lambda weight_OI: [weight_OI.to(dtype)], unpack)


def _nf4_sizes(shape: Shape) -> tuple[int, ...]:
    count = shape[0] * shape[1]
    blocks = -(-count // _BLOCK)
    return -(-count // 2), blocks, 4 * -(-blocks // _BLOCK_OF_SCALES), 4


def _pack_nf4(weight_OI: Tensor) -> Parts:
    library: Any = importlib.import_module("bitsandbytes.functional")
    packed, state = library.quantize_4bit(weight_OI, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
    return packed, state.absmax, state.state2.absmax, state.offset


def _unpack_nf4(parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
    library: Any = importlib.import_module("bitsandbytes.functional")
    packed, scales, scales_of_scales, offset = parts
    code, scale = _code(packed.device), scales_of_scales.view(torch.float32)
    inner = library.QuantState(absmax=scale, code=code, blocksize=_BLOCK_OF_SCALES, dtype=torch.float32)
    settings = {"blocksize": _BLOCK, "quant_type": "nf4", "offset": offset.view(torch.float32), "state2": inner}
    state = library.QuantState(absmax=scales, shape=torch.Size(shape), dtype=dtype, **settings)
    weight: Tensor = library.dequantize_4bit(packed.view(-1, 1), state)
    return weight.reshape(shape)


@lru_cache(maxsize=8)
def _code(device: torch.device) -> Tensor:
    """Make the 256 numbers (256,) that scales are rounded to, as bitsandbytes makes them."""
    library: Any = importlib.import_module("bitsandbytes.functional")
    code: Tensor = library.create_dynamic_map().to(device)
    return code


def _row_scaled_sizes(shape: Shape) -> tuple[int, ...]:
    return shape[0] * shape[1], 4 * shape[0]


def _pack_bnb_int8(weight_OI: Tensor) -> Parts:
    library: Any = importlib.import_module("bitsandbytes.functional")
    packed, scales, _ = library.int8_vectorwise_quant(weight_OI.to(torch.float16))  # all that its GPU kernel takes
    return packed, scales.to(torch.float32)


def _unpack_bnb_int8(parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
    library: Any = importlib.import_module("bitsandbytes.functional")
    packed, scales = parts[0].view(torch.int8).view(shape), parts[1].view(torch.float32)
    weight: Tensor = library.int8_vectorwise_dequant(packed, scales)
    return weight.to(dtype)


def _pack_torchao(tensor_class: str) -> Callable[[Tensor], Parts]:
    def pack(weight_OI: Tensor) -> Parts:
        library: Any = importlib.import_module("torchao.quantization")
        packed = getattr(library, tensor_class).from_hp(weight_OI, granularity=library.PerRow())
        return packed.qdata, packed.scale.to(torch.float32)

    return pack


def _unpack_scaled_rows(stored: torch.dtype) -> Callable[[Parts, Shape, torch.dtype], Tensor]:
    """Multiply each number by its row's scale, as torchao reads both of its formats."""

    def unpack(parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        numbers = parts[0].view(stored).view(shape).to(torch.float32)
        return numbers.mul_(parts[1].view(torch.float32).view(-1, 1)).to(dtype)

    return unpack


_ALL = (
    _halves("bfloat16", torch.bfloat16),
    _halves("float16", torch.float16),
    QuantizationFormat("bnb_nf4", "bitsandbytes", _nf4_sizes, _pack_nf4, _unpack_nf4),
    QuantizationFormat("bnb_int8", "bitsandbytes", _row_scaled_sizes, _pack_bnb_int8, _unpack_bnb_int8),
    QuantizationFormat(
        "torchao_int8", "torchao", _row_scaled_sizes, _pack_torchao("Int8Tensor"), _unpack_scaled_rows(torch.int8)
    ),
    QuantizationFormat(
        "torchao_fp8",
        "torchao",
        _row_scaled_sizes,
        _pack_torchao("Float8Tensor"),
        _unpack_scaled_rows(torch.float8_e4m3fn),
    ),
)
FORMATS: Mapping[str, QuantizationFormat] = {each.name: each for each in _ALL}
"""The formats by their names in ``train.quantization``."""

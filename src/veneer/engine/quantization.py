"""How bitsandbytes and torchao hold a frozen matrix in few bits; each of the two is an extra.

A form is a way to pack a matrix and to read it back. The libraries do both; here it is only named which of their ways
are used and what they are packed into: plain bytes, which no cast of a network rounds and any device takes.

============ ======================================================================== ===============
form         what a weight is                                                         bits a weight
============ ======================================================================== ===============
bnb_nf4      4 bits on the scale of a normal distribution, a scale for each 64 weights 4.13
             which is itself held in 8 bits (Dettmers et al. 2023, QLoRA, section 3)
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

from veneer.errors import UserError
from veneer.silence import silence_notices

__all__ = ["FORMS", "NONE", "Form", "form_named"]

NONE = "none"
"""The name of no form at all."""
_BLOCK, _BLOCK_OF_SCALES = 64, 256
"""Numbers that share a scale: of nf4's weights, and of their scales."""
_WHERE = "train.quantization"

Parts = Sequence[Tensor]
Shape = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """One way to hold a matrix.

    Attributes:
        name: as the configuration has it.
        library: that packs and reads; its name on PyPI, and that of the extra.
        sizes: bytes of each part, of a matrix (out, in).
        packed: the parts of a float32 matrix.
        read: float32, float16 or bfloat16 numbers from the parts.
    """

    name: str
    library: str
    sizes: Callable[[Shape], tuple[int, ...]]
    packed: Callable[[Tensor], Parts]
    read: Callable[[Parts, Shape, torch.dtype], Tensor]

    def pack(self, weight_OI: Tensor) -> tuple[Tensor, ...]:
        """A matrix as parts, each (bytes,) of uint8 on its device.

        Raises:
            UserError: the library is not there.
        """
        shape = _shape(weight_OI)
        if isinstance(weight_OI, FakeTensor):  # a plan's: there are no numbers to pack
            return tuple(weight_OI.new_empty(size, dtype=torch.uint8) for size in self.sizes(shape))
        self.check()
        with torch.no_grad():
            return tuple(_as_bytes(part) for part in self.packed(weight_OI.detach().to(torch.float32).contiguous()))

    def unpack(self, parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The matrix again, as the bits have it, (out, in) in ``dtype``."""
        if isinstance(parts[0], FakeTensor):
            return parts[0].new_empty(shape, dtype=dtype)
        with torch.no_grad():
            if dtype == torch.float64:
                return self.read(parts, shape, torch.float32).to(dtype)
            return self.read(parts, shape, dtype)

    @property
    def is_installed(self) -> bool:
        """Whether the library is there; it is not imported for that, which takes memory."""
        return importlib.util.find_spec(self.library) is not None

    def check(self) -> None:
        """See that the library is there.

        Raises:
            UserError: it is not, or it does not work here.
        """
        try:
            with silence_notices():  # both tell of kernels for hardware that is not here
                importlib.import_module(self.library)
        except ImportError as fault:
            missing = isinstance(fault, ModuleNotFoundError) and fault.name == self.library
            what = "is not installed" if missing else f"cannot be imported: {str(fault).splitlines()[0]}"
            remedy = f"pip install 'veneer[{self.library}]'"
            raise UserError(f"{self.name} needs {self.library}, which {what}", where=_WHERE, remedy=remedy) from fault


def form_named(name: str) -> Form:
    """The form that the configuration names.

    Raises:
        UserError: there is none of this name.
    """
    if name not in FORMS:
        raise UserError(f"{name!r} is no form to hold weights in", where=_WHERE, remedy=f"use {', '.join(FORMS)}")
    return FORMS[name]


def _shape(weight_OI: Tensor) -> Shape:
    outputs, inputs = weight_OI.shape
    return outputs, inputs


def _as_bytes(part: Tensor) -> Tensor:
    return part.detach().contiguous().reshape(-1).view(torch.uint8)


def _nf4_sizes(shape: Shape) -> tuple[int, ...]:
    count = shape[0] * shape[1]
    blocks = -(-count // _BLOCK)
    return -(-count // 2), blocks, 4 * -(-blocks // _BLOCK_OF_SCALES), 4


def _nf4_packed(weight_OI: Tensor) -> Parts:
    library: Any = importlib.import_module("bitsandbytes.functional")
    packed, state = library.quantize_4bit(weight_OI, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
    return packed, state.absmax, state.state2.absmax, state.offset


def _nf4_read(parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
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
    """The 256 numbers that scales of scales are rounded to, (256,); made as bitsandbytes makes them."""
    library: Any = importlib.import_module("bitsandbytes.functional")
    code: Tensor = library.create_dynamic_map().to(device)
    return code


def _row_sizes(shape: Shape) -> tuple[int, ...]:
    return shape[0] * shape[1], 4 * shape[0]


def _bnb_int8_packed(weight_OI: Tensor) -> Parts:
    library: Any = importlib.import_module("bitsandbytes.functional")
    packed, scales, _ = library.int8_vectorwise_quant(weight_OI.to(torch.float16))  # all that its GPU kernel takes
    return packed, scales.to(torch.float32)


def _bnb_int8_read(parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
    library: Any = importlib.import_module("bitsandbytes.functional")
    packed, scales = parts[0].view(torch.int8).view(shape), parts[1].view(torch.float32)
    weight: Tensor = library.int8_vectorwise_dequant(packed, scales)
    return weight.to(dtype)


def _torchao_packed(kind: str) -> Callable[[Tensor], Parts]:
    def packed(weight_OI: Tensor) -> Parts:
        library: Any = importlib.import_module("torchao.quantization")
        held = getattr(library, kind).from_hp(weight_OI, granularity=library.PerRow())
        return held.qdata, held.scale.to(torch.float32)

    return packed


def _by_row(kind: torch.dtype) -> Callable[[Parts, Shape, torch.dtype], Tensor]:
    """A number times its row's scale, as torchao reads both of its forms."""

    def read(parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        numbers = parts[0].view(kind).view(shape).to(torch.float32)
        return numbers.mul_(parts[1].view(torch.float32).view(-1, 1)).to(dtype)

    return read


FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("bnb_nf4", "bitsandbytes", _nf4_sizes, _nf4_packed, _nf4_read),
        Form("bnb_int8", "bitsandbytes", _row_sizes, _bnb_int8_packed, _bnb_int8_read),
        Form("torchao_int8", "torchao", _row_sizes, _torchao_packed("Int8Tensor"), _by_row(torch.int8)),
        Form("torchao_fp8", "torchao", _row_sizes, _torchao_packed("Float8Tensor"), _by_row(torch.float8_e4m3fn)),
    )
}
"""By name, as ``train.quantization`` has them."""

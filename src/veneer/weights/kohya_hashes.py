"""The hashes that kohya's scripts write into a file of itself, as A1111, Forge and Civitai look files up by them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from veneer.weights.hashes import LEGACY_BYTES, LEGACY_START, legacy_hash
from veneer.weights.safetensors import encoded_header, in_file_order

__all__ = ["file_hashes", "with_file_hashes"]


def with_file_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a file's metadata with the hashes of its tensors.

    ``sshs_model_hash`` is the SHA-256 of all bytes behind the header; its first 12 digits are Civitai's AutoV3, and
    modelspec has it with ``0x`` before it. ``sshs_legacy_hash`` is of 64 KiB at 1 MiB in the file as it is with the
    ``ss_*`` keys alone (``precalculate_safetensors_hashes`` of sd-scripts), so that other keys may change later.
    """
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    own = file_hashes(encoded_header(tensors, training), _data(tensors))
    spec = {"modelspec.hash_sha256": f"0x{own['sshs_model_hash']}"} if "modelspec.sai_model_spec" in metadata else {}
    return {**metadata, **own, **spec}


def file_hashes(header: bytes, data: Iterable[bytes | memoryview]) -> dict[str, str]:
    """Return kohya's two hashes of a file.

    Args:
        header: of the file with the ``ss_*`` keys alone, with its length before it.
        data: what lies behind it, in pieces.
    """
    whole, window, place = hashlib.sha256(), bytearray(), 0
    for is_data, piece in chain([(False, header)], ((True, piece) for piece in data)):
        if is_data:
            whole.update(piece)
        window += piece[max(LEGACY_START - place, 0) : max(LEGACY_START + LEGACY_BYTES - place, 0)]
        place += len(piece)
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": legacy_hash(window)}


def _data(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of each tensor as they lie in a file."""
    for name in in_file_order(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        content: Any = flat.view(torch.uint8).numpy()
        yield memoryview(content)

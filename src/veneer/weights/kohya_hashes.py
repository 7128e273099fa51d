"""The hashes that kohya's scripts write into a file of itself, as A1111, Forge and Civitai look files up by them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from veneer.weights.safetensors import encode

__all__ = ["legacy_hash", "with_file_hashes"]

_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000


def with_file_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a file's metadata with the hashes of its tensors.

    ``sshs_model_hash`` is the SHA-256 of all bytes behind the header; its first 12 digits are Civitai's AutoV3, and
    modelspec has it with ``0x`` before it. ``sshs_legacy_hash`` is of 64 KiB at 1 MiB in the file as it is with the
    ``ss_*`` keys alone (``precalculate_safetensors_hashes`` of sd-scripts), so that other keys may change later.
    """
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = memoryview(encode(tensors, training))
    start = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[start:]).hexdigest()
    own = {"sshs_model_hash": digest, "sshs_legacy_hash": legacy_hash(content[_LEGACY_START:])}
    spec = {"modelspec.hash_sha256": f"0x{digest}"} if "modelspec.sai_model_spec" in metadata else {}
    return {**metadata, **own, **spec}


def legacy_hash(content: bytes | memoryview) -> str:
    """Return A1111's old hash, 8 hex digits of SHA-256.

    Args:
        content: of a file from 1 MiB on; what comes after the first 64 KiB of it is not looked at.
    """
    return hashlib.sha256(content[:_LEGACY_BYTES]).hexdigest()[:8]

"""Cut an adapter file to a lower rank."""

from __future__ import annotations

from pathlib import Path

from veneer.adapter.resize import resize
from veneer.errors import UserError
from veneer.family.loading import load_base
from veneer.files import opens_paths
from veneer.run.folder import base_beside
from veneer.weights.file import AdapterFile, file_in, info, load, save

__all__ = ["resize_adapter"]

_RESIZED = "veneer.resized.rank"
_SOURCE = "veneer.resized.from.sha256"


@opens_paths
def resize_adapter(file: Path, rank: int, out: Path | None = None, *, base: str | None = None) -> Path:
    """Cut an adapter file to a rank.

    Args:
        file: the adapter, or the folder of its run.
        rank: lower than the adapter's.
        out: the new file; default: beside the old one, with the rank in its name.
        base: the adapter's; asked only where the names in the file mean something beside a base alone, as kohya's do.

    Raises:
        UserError: the rank is not lower, the file cannot be read, or the new one is there already.
    """
    content, path = info(file), file_in(file)
    out = out or path.with_name(f"{path.stem}-rank{rank}.safetensors")
    if out.exists():
        raise UserError("is there already", code="output.exists", where=out, remedy="choose another --out")
    adapter = _load_with_base(file, base) if content.needs_base else load(file)
    try:
        weights = resize(adapter.weights, rank)
    except UserError as fault:
        raise UserError(fault.what, code=fault.code, where=file, remedy=fault.remedy) from None
    save(AdapterFile(weights, {**adapter.metadata, _RESIZED: str(rank), _SOURCE: content.sha256}), out)
    return out


def _load_with_base(file: Path, base: str | None) -> AdapterFile:
    """Load an adapter whose names mean something beside its base alone."""
    family = load_base(base or base_beside(file))
    return load(file, family.networks)

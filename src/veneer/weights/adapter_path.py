"""What the files of adapters are called, and which of them a path means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from veneer.errors import UserError
from veneer.files import public_name
from veneer.weights.formats.names import NETWORKS
from veneer.weights.formats.strength import FILE_NAME as PEFT_NAME

__all__ = ["BEST", "FILE_NAME", "FILE_NAMES", "adapter_name", "adapters_in", "file_in", "files_in", "named_file"]

FILE_NAME = "pytorch_lora_weights.safetensors"
"""The name that ``load_lora_weights`` looks for in a folder."""
BEST = "best.safetensors"
"""The adapter with the lowest held-out loss of those that ``validation.every`` asked for."""
FILE_NAMES: Mapping[str, str] = MappingProxyType(
    {"diffusers": FILE_NAME, "kohya": "{name}.safetensors", "comfy": "{name}_comfyui.safetensors", "peft": "peft"}
)
"""What a format's file, or folder of files, is called; ``{name}`` stands for the adapter's own name."""
_ENDING = ".safetensors"
_TAKEN = tuple(name.removesuffix(_ENDING) for name in (FILE_NAME, PEFT_NAME, BEST))


def named_file(format_name: str, name: str) -> str:
    """Return what an adapter's file in a format is called."""
    return FILE_NAMES[format_name].replace("{name}", name)


def adapter_name(folder: Path) -> str:
    """Return the own name of an adapter that is trained into a folder, by which programs will list it."""
    name = public_name(folder.resolve().name, "adapter")
    return f"{name}_lora" if name in _TAKEN else name


def adapters_in(folder: Path) -> dict[str, Path]:
    """Return the files, or folders of files, that a run's adapter has in its folder, by format."""
    name = adapter_name(folder)
    places = {format_name: folder / named_file(format_name, name) for format_name in FILE_NAMES}
    return {format_name: place for format_name, place in places.items() if place.is_file() or _in_peft(place)}


def file_in(path: Path) -> Path:
    """Return the adapter file that a path means: itself, or in a folder the one that :func:`files_in` finds.

    Raises:
        UserError: the folder has none, or the adapter has a file for each of several networks.
    """
    first, *others = files_in(path)
    if others:
        what = f"holds a file for each of {len(others) + 1} networks"
        remedy = f"name one, such as {first.relative_to(path)}"
        raise UserError(what, code="weights.several_files", where=path, remedy=remedy)
    return first


def files_in(path: Path) -> dict[Path, str | None]:
    """Return the files of an adapter, each with the network that its folder's name tells; None: it tells none.

    In a folder they are the first that there are of: diffusers' file, peft's, peft's in a folder for each network,
    those that a run writes, and the only safetensors file beside a run's best adapter.

    Raises:
        UserError: the folder has none.
    """
    if not path.is_dir():
        return {path: None}
    if (path / FILE_NAME).is_file():
        return {path / FILE_NAME: None}
    if found := _in_peft(path):
        return found
    for place in adapters_in(path).values():
        return _in_peft(place) or {place: None}
    others = [file for file in path.glob(f"*{_ENDING}") if file.name != BEST and file.is_file()]
    if len(others) == 1:
        return {others[0]: None}
    what = f"holds neither {FILE_NAME} nor {PEFT_NAME}"
    raise UserError(what, code="weights.no_adapter_file", where=path, remedy="name the file itself")


def _in_peft(folder: Path) -> dict[Path, str | None]:
    """Return the files in a folder of peft's: one, or one in a folder for each network."""
    if (folder / PEFT_NAME).is_file():
        return {folder / PEFT_NAME: None}
    return {folder / name / PEFT_NAME: name for name in NETWORKS if (folder / name / PEFT_NAME).is_file()}

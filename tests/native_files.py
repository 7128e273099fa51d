"""Files of transformers under the names that their authors gave the layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["write_native_file"]


def write_native_file(folder: Path, file: Path, names: Callable[[Any], Any], stem: str = "", part: str = "") -> Path:
    """Write the transformer of a diffusers folder into one file.

    Args:
        folder: of the base.
        file: to write.
        names: of the family, as its adapters' files have them.
        stem: what all names begin with.
        part: the network's folder; empty: ``transformer``.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from veneer.weights.formats.fused import Slice

    own = load_file(folder / (part or "transformer") / "diffusion_pytorch_model.safetensors")
    layers = {name.rpartition(".")[0]: len(tensor) for name, tensor in own.items() if name.endswith(".weight")}
    table, found = names(layers), dict[str, Any]()
    for name, tensor in own.items():
        layer, _, kind = name.rpartition(".")
        native = table.get(layer, layer)
        if isinstance(native, Slice):
            whole = f"{stem}{native.name}.{kind}"
            native.put(tensor, found.setdefault(whole, torch.zeros(native.total, *tensor.shape[1:])))
        else:
            found[f"{stem}{native}.{'scale' if native.endswith(('query_norm', 'key_norm')) else kind}"] = tensor
    save_file(found, file)
    return file

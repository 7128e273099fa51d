"""kohya's format: ``lora_unet_PATH_IN_UNDERSCORES.lora_down.weight``, the strength in ``.alpha``.

Underscoring loses information, so names are made with the base's list of layers at hand. Some families' files have
other names for the layers than diffusers: their family says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from veneer.adapter.layers import fit_to_layers
from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.errors import UserError
from veneer.weights.adapter_path import named_file
from veneer.weights.formats.fused import Slice, join_layers
from veneer.weights.formats.layers import LayerIndex, require_base
from veneer.weights.formats.names import file_path
from veneer.weights.formats.protocol import STEM, BaseNames, FormatFile
from veneer.weights.formats.tensors import named_tensors

__all__ = ["KOHYA", "KohyaFormat", "dotted_name", "kohya_tensors", "underscored_name", "write_named"]

_ROOTS = {
    "unet": ("lora_unet",),
    "transformer": ("lora_unet",),
    "text_encoder": ("lora_te", "lora_te1"),
    "text_encoder_2": ("lora_te2",),
    "text_encoder_3": ("lora_te3",),
}
"""What files call each network; of several the first is written for a base of one text encoder, else the last."""


class KohyaFormat:
    """What kohya's sd-scripts and LyCORIS write, and A1111, Forge and ComfyUI read."""

    name = "kohya"
    metadata_keys = ("format",)

    def file_name(self, stem: str) -> str:
        """Return the adapter's own name: the programs that read such files list them by it."""
        return named_file(self.name, stem)

    def write(self, weights: AdapterWeights, base: BaseNames | None = None, stem: str = STEM) -> tuple[FormatFile, ...]:
        """Return one file, with each layer's alpha among its tensors.

        Raises:
            UserError: as of :func:`write_named`.
        """
        tensors = write_named(weights, base, self.name, dotted_name, underscored_name)
        return (FormatFile(self.file_name(stem), tensors, {"format": "pt"}),)


def write_named(
    weights: AdapterWeights,
    base: BaseNames | None,
    format_name: str,
    dotted: Callable[[str, BaseNames], str | Slice],
    spelled: Callable[[str, BaseNames], str],
    tensors_of: Callable[[str, LayerAdapter], Mapping[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Return an adapter's tensors under names that are made of its base's.

    Args:
        weights: the adapter.
        base: whose layers it is of.
        format_name: of the format that is written.
        dotted: gives what the format calls a layer of a full path, with dots, or which rows of a larger one it is.
        spelled: gives how a file spells such a name.
        tensors_of: gives the tensors of a layer by its name in the file; None: with kohya's endings.

    Raises:
        UserError: there is no base, the adapter is not of it, a layer's name would mean another layer too, or its
            method has no names in this format or cannot be joined to a larger layer.
    """
    base = require_base(base, format_name, list(weights))
    index = LayerIndex(base)
    tensors: dict[str, Tensor] = {}
    fitted = fit_to_layers(weights, index.layers)
    for path, adapter in join_layers(fitted, {path: dotted(path, base) for path in fitted}).items():
        name = spelled(path, base)
        if len(index.meanings(name)) > 1:
            what = f"the name {name} would mean {' and '.join(sorted(index.find(name)))}"
            raise UserError(what, code="weights.ambiguous_layer", remedy="save it in diffusers' format")
        if format_name in (method := adapter.method).names.unread_by:
            what = (
                f"{path} has a {method.title} adapter, which the programs do not read that {format_name} files are for"
            )
            raise UserError(what, code="weights.method_not_in_format", remedy="save it in another format")
        tensors |= (tensors_of or kohya_tensors)(name, adapter)
    return tensors


def kohya_tensors(name: str, adapter: LayerAdapter) -> dict[str, Tensor]:
    """Return a layer's tensors with kohya's endings, its alpha among them."""
    return named_tensors(name, adapter, KOHYA.name)


def dotted_name(path: str, base: BaseNames) -> str | Slice:
    """Return what kohya's files call a layer of a full path, before its dots are written as underscores."""
    return base.key_names.get(KOHYA.name, {}).get(path, file_path(path))


def underscored_name(name: str, base: BaseNames) -> str:
    """Return how kohya's files spell the dotted name of a layer."""
    network, _, inner = name.partition(".")
    roots = _ROOTS[network]
    root = roots[-1] if "text_encoder_2" in base.networks else roots[0]
    return f"{root}_{inner.replace('.', '_')}"


KOHYA = KohyaFormat()

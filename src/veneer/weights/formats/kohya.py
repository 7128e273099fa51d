"""kohya's format: ``lora_unet_PATH_IN_UNDERSCORES.lora_down.weight``, the strength in ``.alpha``.

Underscoring loses information, so names are made and resolved with the base's list of layers at hand, never by
replacing characters back. Some families' files have other names for the layers than diffusers: their family says which.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor

from veneer.adapter.layers import fit_to_layers, layers_of
from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.errors import UserError
from veneer.weights.formats.names import file_path, require_base, resolve, spellings
from veneer.weights.formats.protocol import BaseNames, FileContent
from veneer.weights.formats.tensors import adapters_of, named_tensors

__all__ = ["KOHYA", "KohyaFormat"]

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
    _naming = "kohya"

    def detects(self, names: Collection[str]) -> bool:
        """Return whether a name begins with what kohya calls a network."""
        return any(self.network_of(name) is not None for name in names)

    def read(self, content: FileContent) -> dict[str, LayerAdapter]:
        """Return each layer's adapter; where there is no alpha, the strength is 1.

        Raises:
            UserError: the file is not whole.
        """
        return adapters_of(content.tensors, self._naming, lambda layer: None)

    def network_of(self, layer: str) -> str | None:
        """Return the network that a name begins with; of denoisers, which share a root, the first one."""
        return next((net for net, roots in _ROOTS.items() if any(layer.startswith(f"{r}_") for r in roots)), None)

    def paths(self, layers: Collection[str], base: BaseNames | None) -> dict[str, str]:
        """Return the layers of a base that these names may stand for.

        Raises:
            UserError: there is no base, or not exactly one of its layers has such a name.
        """
        return resolve(layers, _aliases(require_base(base, self.name, layers)))

    def write(self, weights: AdapterWeights, base: BaseNames | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors, among them each layer's alpha.

        Raises:
            UserError: there is no base, the adapter is not of it, a layer's name would mean another layer too, or its
                method has no names in this format.
        """
        base = require_base(base, self.name, list(weights))
        fitted, aliases = fit_to_layers(weights, layers_of(base.networks)), _aliases(base)
        tensors: dict[str, Tensor] = {}
        for path, adapter in fitted.items():
            name = _name(path, base)
            if len(aliases[name]) > 1:
                what = f"the name {name} would mean {' and '.join(sorted(aliases[name]))}"
                raise UserError(what, code="weights.ambiguous_layer", remedy="save it in diffusers' format")
            tensors |= named_tensors(name, adapter, self._naming)
        return tensors, {"format": "pt"}


def _name(path: str, base: BaseNames) -> str:
    """Return what a file calls a layer."""
    network, _, inner = base.key_names.get(KOHYA.name, {}).get(path, file_path(path)).partition(".")
    roots = _ROOTS[network]
    root = roots[-1] if "text_encoder_2" in base.networks else roots[0]
    return f"{root}_{inner.replace('.', '_')}"


def _aliases(base: BaseNames) -> dict[str, set[str]]:
    """Return the layers that each name may mean."""
    aliases: dict[str, set[str]] = {}
    for full in layers_of(base.networks):
        for name in _names(full, base):
            aliases.setdefault(name, set()).add(full)
    return aliases


def _names(full: str, base: BaseNames) -> Iterator[str]:
    """Yield each name that files may have for a layer."""
    for dotted in {full, base.key_names.get(KOHYA.name, {}).get(full, full)}:
        network, _, path = dotted.partition(".")
        for root in _ROOTS.get(network, ()):
            yield from (f"{root}_{spelling.replace('.', '_')}" for spelling in spellings(path))


KOHYA = KohyaFormat()

"""A base's layers by every name that files may have for them.

Underscoring loses information: names with underscores are compared with the underscored names of the base's layers, and
never turned back into names with dots.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from veneer.adapter.layers import fit_to_layer, weighted_layers_of
from veneer.adapter.protocol import LayerAdapter, WeightedLayer
from veneer.errors import UserError
from veneer.weights.formats.names import NETWORKS, Reading, readings
from veneer.weights.formats.protocol import BaseNames

__all__ = ["LayerIndex", "require_base", "spellings"]

_LEVEL = "text_model."
_ATTENTION = {".to_out.0": ".to_out"}
_TEXT_ATTENTION = {".q_proj": ".to_q", ".k_proj": ".to_k", ".v_proj": ".to_v", ".out_proj": ".to_out"}
"""What diffusers' first adapters called the layers of an attention, by what they are called."""


def spellings(path: str) -> set[str]:
    """Return how a layer's path within its network may be written: as it is, with and without the optional level."""
    return {path, path.removeprefix(_LEVEL), f"{_LEVEL}{path}"}


class LayerIndex:
    """The layers of a base, to be found by a file's names.

    Attributes:
        layers: each by its full path.
    """

    def __init__(self, base: BaseNames) -> None:
        self.layers: Mapping[str, WeightedLayer] = weighted_layers_of(base.networks)
        self._dotted: dict[str, set[str]] = {}
        self._underscored: dict[str, set[str]] = {}
        for full in self.layers:
            for name in _names(full, base):
                self._dotted.setdefault(name, set()).add(full)
                self._underscored.setdefault(name.replace(".", "_"), set()).add(full)

    def find(self, layer: str) -> set[str]:
        """Return the full paths that a file's name for a layer may mean: the first reading that means any counts."""
        for reading in readings(layer):
            if found := self._matching(reading):
                return found
        return set()

    def resolve(self, layers: Mapping[str, tuple[int, ...]], origin: str | None = None) -> dict[str, str]:
        """Return the one path that each of a file's names for layers means.

        Args:
            layers: the names, each with the shape of the weight that its adapter changes.
            origin: the family of bases that the file is of, where that is known.

        Raises:
            UserError: a name means none of the base's layers, or several of them that its adapter fits.
        """
        return {layer: self._one(layer, shape, origin) for layer, shape in layers.items()}

    def fit(self, path: str, adapter: LayerAdapter) -> LayerAdapter:
        """Return an adapter as a layer needs it: one base has a linear layer where another has a convolution of 1 x 1.

        What has another size is returned as it is, for :meth:`check_shapes` to refuse.

        Raises:
            UserError: it changes a bias that the layer does not have.
        """
        layer = self.layers[path]
        fits = adapter.fitted(tuple(layer.weight.shape)) is not None
        return fit_to_layer(path, adapter, layer) if fits else adapter

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]], origin: str | None = None) -> None:
        """Refuse adapters that do not fit their layers.

        Args:
            shapes: of the weights that they change, by the layers' full paths.
            origin: the family of bases that the file is of, where that is known.

        Raises:
            UserError: the first that does not fit.
        """
        for path, shape in shapes.items():
            if (own := tuple(self.layers[path].weight.shape)) != shape:
                what = f"the adapter is of another architecture: {path} is {shape} in it and {own} in the base"
                raise UserError(what, code="adapter.other_architecture", remedy=_remedy(origin))

    def _one(self, layer: str, shape: tuple[int, ...], origin: str | None) -> str:
        found = self.find(layer)
        if len(found) > 1:
            found = {path for path in found if tuple(self.layers[path].weight.shape) == shape} or found
        if len(found) == 1:
            return next(iter(found))
        what = f"its name {layer} means {' and '.join(sorted(found)) or 'no layer'} of the base"
        code = "weights.ambiguous_layer" if found else "weights.unknown_layer"
        raise UserError(what, code=code, remedy=_remedy(origin))

    def _matching(self, reading: Reading) -> set[str]:
        found = self._dotted.get(reading.path, set()) if reading.has_dots else set()
        if not found and "." not in reading.path:
            found = self._underscored.get(reading.path, set())
        return {full for full in found if _fits(reading.network, full.partition(".")[0])}


def _remedy(origin: str | None) -> str:
    return (
        f"it is an adapter of {origin}: use the base that it was trained on"
        if origin
        else "use the base that it was trained on"
    )


def _fits(told: str | None, network: str) -> bool:
    """Return whether a network may be the one that a name tells; a base has one denoiser, whatever it is called."""
    text_encoders = NETWORKS[2:]
    return told in (None, network) or (told not in text_encoders and network not in text_encoders)


def _names(full: str, base: BaseNames) -> Iterator[str]:
    """Yield each name that files may have for a layer within its network, with dots."""
    network = full.partition(".")[0]
    for own in {full, *(names.get(full, full) for names in base.key_names.values())}:
        for path in spellings(own.partition(".")[2]):
            yield path
            for ending, old in (_TEXT_ATTENTION if network.startswith("text_encoder") else _ATTENTION).items():
                if path.endswith(ending):
                    yield path.removesuffix(ending) + old


def require_base(base: BaseNames | None, format_name: str, layers: Collection[str]) -> BaseNames:
    """Return the base, without which a file's names do not say which layers they mean.

    Raises:
        UserError: there is none.
    """
    if base is None:
        what = f"its {format_name} names, such as {next(iter(layers))}, need a base to tell which layers they are"
        raise UserError(what, code="weights.needs_base", remedy="name the base as well: --base, or networks in Python")
    return base

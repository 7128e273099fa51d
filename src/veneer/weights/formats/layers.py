"""A base's layers by every name that files may have for them.

Underscoring loses information: names with underscores are compared with the underscored names of the base's layers, and
never turned back into names with dots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from veneer.adapter.layers import fit_to_layer, weighted_layers_of
from veneer.adapter.protocol import LayerAdapter, WeightedLayer
from veneer.errors import UserError
from veneer.weights.formats.fused import Slice, cut
from veneer.weights.formats.left_out import LeftOut
from veneer.weights.formats.names import TEXT_ENCODERS, Reading, readings
from veneer.weights.formats.protocol import BaseNames

__all__ = ["LayerIndex", "Meaning", "check_once", "require_base", "spellings"]

_LEVEL = "text_model."
_ATTENTION = {".to_out.0": ".to_out"}
_TEXT_ATTENTION = {".q_proj": ".to_q", ".k_proj": ".to_k", ".v_proj": ".to_v", ".out_proj": ".to_out"}
"""What diffusers' first adapters called the layers of an attention, by what they are called."""


def spellings(path: str) -> set[str]:
    """Return how a layer's path within its network may be written: as it is, with and without the optional level."""
    return {path, path.removeprefix(_LEVEL), f"{_LEVEL}{path}"}


@dataclass(frozen=True)
class Meaning:
    """What a file's name for a layer means: one of the base's layers, or a larger one of which several are slices.

    Attributes:
        slices: what of the file's layer each of the base's is, by full path; None: all of it.
        shape: of the weight of the file's layer.
    """

    slices: Mapping[str, Slice | None]
    shape: tuple[int, ...]

    def cut(self, adapter: LayerAdapter) -> dict[str, LayerAdapter]:
        """Return the adapters of the base's layers, by full path, from that of the file's layer.

        Raises:
            UserError: it is of another size, or its method's adapters cannot be cut.
        """
        slices = {path: part for path, part in self.slices.items() if part is not None}
        return cut(adapter.fitted(self.shape) or adapter, slices) if slices else dict.fromkeys(self.slices, adapter)


class LayerIndex:
    """The layers of a base, to be found by a file's names.

    Attributes:
        layers: each by its full path.
    """

    def __init__(self, base: BaseNames) -> None:
        self.layers: Mapping[str, WeightedLayer] = weighted_layers_of(base.networks)
        self._dotted: dict[str, set[_Name]] = {}
        self._underscored: dict[str, set[_Name]] = {}
        for full in self.layers:
            for name in _names(full, base):
                self._dotted.setdefault(name.path, set()).add(name)
                self._underscored.setdefault(name.path.replace(".", "_"), set()).add(name)
        self._networks = {name.network for names in self._dotted.values() for name in names}
        text_encoders = sorted(self._networks.intersection(TEXT_ENCODERS))
        self._first_text_encoder = text_encoders[0] if text_encoders else TEXT_ENCODERS[0]

    def find(self, layer: str) -> set[str]:
        """Return the full paths that a file's name for a layer may mean, or that are slices of what it means."""
        return {path for meaning in self.meanings(layer) for path in meaning.slices}

    def meanings(self, layer: str) -> list[Meaning]:
        """Return what a file's name for a layer may mean: the first reading that means any counts."""
        for reading in readings(layer):
            if found := self._matching(reading):
                return found
        return []

    def place(
        self,
        layers: Mapping[str, LayerAdapter],
        origin: str | None = None,
        left_out: list[LeftOut] | None = None,
    ) -> dict[str, LayerAdapter]:
        """Return the adapter of each of the base's layers, by its full path, once each is known to fit.

        Args:
            layers: adapters by a file's names for layers.
            origin: the family of bases that the file is of, where that is known.
            left_out: is given the layers that the base lacks and can do without; None: they are refused as all others.

        Raises:
            UserError: a name means none of the base's layers, or several of them that its adapter fits, two names mean
                one layer, or an adapter is of another size.
        """
        if left_out is not None:
            layers = self._without_lacking(layers, left_out)
        meanings = {layer: self._one(layer, adapter, origin) for layer, adapter in layers.items()}
        check_once(path for meaning in meanings.values() for path in meaning.slices)
        cuts = [meaning.cut(layers[layer]) for layer, meaning in meanings.items()]
        fitted = {path: self.fit(path, adapter) for own in cuts for path, adapter in own.items()}
        self.check_shapes({path: adapter.shape for path, adapter in fitted.items()}, origin)
        return fitted

    def _without_lacking(
        self, layers: Mapping[str, LayerAdapter], left_out: list[LeftOut]
    ) -> Mapping[str, LayerAdapter]:
        """Return the layers without those that the base lacks and can do without, unless that is all of them."""
        lacking: dict[str, list[str]] = {}
        for layer, adapter in layers.items():
            if not self.meanings(layer) and (why := self._why_lacking(layer, adapter)) is not None:
                lacking.setdefault(why, []).append(layer)
        gone = {layer for own in lacking.values() for layer in own}
        if len(gone) == len(layers):
            return layers
        left_out += [LeftOut(tuple(own), why) for why, own in lacking.items()]
        return {layer: adapter for layer, adapter in layers.items() if layer not in gone}

    def _why_lacking(self, layer: str, adapter: LayerAdapter) -> str | None:
        """Return why a layer that is not the base's can be left out; None: it cannot."""
        network = [reading.network for reading in readings(layer)][-1]
        if network in TEXT_ENCODERS and network not in self._networks:
            return f"the base has no {network}"
        return "the base has no such layer, and its numbers change nothing" if adapter.is_untrained else None

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

    def _one(self, layer: str, adapter: LayerAdapter, origin: str | None) -> Meaning:
        found = self.meanings(layer)
        if len(found) > 1:
            found = [meaning for meaning in found if adapter.fitted(meaning.shape) is not None] or found
        if len(found) == 1:
            return found[0]
        paths = sorted(path for meaning in found for path in meaning.slices)
        what = f"its name {layer} means {' and '.join(paths) or 'no layer'} of the base"
        code = "weights.ambiguous_layer" if found else "weights.unknown_layer"
        raise UserError(what, code=code, remedy=_remedy(origin))

    def _matching(self, reading: Reading) -> list[Meaning]:
        found = self._dotted.get(reading.path, set()) if reading.has_dots else set()
        if not found and "." not in reading.path:
            found = self._underscored.get(reading.path, set())
        # the first is called so whatever its number is, as the only one of SDXL's refiner is
        told = self._first_text_encoder if reading.network == TEXT_ENCODERS[0] else reading.network
        layers: dict[str, dict[str, Slice | None]] = {}
        for name in found:
            if _fits(told, name.network):
                layers.setdefault(name.layer if name.part is None else _whole_layer(name), {})[name.layer] = name.part
        return [Meaning(slices, self._shape_of(slices)) for slices in layers.values()]

    def _shape_of(self, slices: Mapping[str, Slice | None]) -> tuple[int, ...]:
        """Return the shape of the weight of which these are slices."""
        path, part = next(iter(slices.items()))
        shape = tuple(self.layers[path].weight.shape)
        return shape if part is None else (part.total, *shape[1:])


def check_once(paths: Iterable[str]) -> None:
    """Refuse two names for one layer.

    Raises:
        UserError: a path is there twice.
    """
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        what = f"has {twice[0]} twice, under two names"
        raise UserError(what, code="weights.layer_twice", remedy="remove the one that is not meant")


def _remedy(origin: str | None) -> str:
    return (
        f"it is an adapter of {origin}: use the base that it was trained on"
        if origin
        else "use the base that it was trained on"
    )


def _fits(told: str | None, network: str) -> bool:
    """Return whether a network may be the one that a name tells; a base has one denoiser, whatever it is called."""
    return told in (None, network) or (told not in TEXT_ENCODERS and network not in TEXT_ENCODERS)


class _Name(NamedTuple):
    """What a file may call a layer: the layer's full path, the network, the path within it, and its part of that."""

    layer: str
    network: str
    path: str
    part: Slice | None


def _whole_layer(name: _Name) -> str:
    """Return which layer of a file a name is a part of: programs that call the denoiser differently mean the same."""
    network = name.network if name.network in TEXT_ENCODERS else ""
    return f"{network}.{name.path}"


def _names(full: str, base: BaseNames) -> Iterator[_Name]:
    """Yield each name that files may have for a layer, with dots."""
    for own in {full, *(names.get(full, full) for names in base.key_names.values())}:
        name, part = (own.name, own) if isinstance(own, Slice) else (own, None)
        network, _, inner = name.partition(".")
        attention = _TEXT_ATTENTION if network.startswith("text_encoder") else _ATTENTION
        for path in spellings(inner):
            yield _Name(full, network, path, part)
            for ending, old in attention.items():
                if path.endswith(ending):
                    yield _Name(full, network, path.removesuffix(ending) + old, part)


def require_base(base: BaseNames | None, format_name: str, layers: Collection[str]) -> BaseNames:
    """Return the base, without which a file's names do not say which layers they mean.

    Raises:
        UserError: there is none.
    """
    if base is None:
        what = f"its {format_name} names, such as {next(iter(layers))}, need a base to tell which layers they are"
        raise UserError(what, code="weights.needs_base", remedy="name the base as well: --base, or networks in Python")
    return base

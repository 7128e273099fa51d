"""Batches whose rows go through the same networks with different adapters, for inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from veneer.adapter.layers import fit_to_layers, is_compiled, is_wrapped, layers_of
from veneer.adapter.protocol import AdapterWeights, Layer, LowRank, check_strength, low_rank_of, method_without_low_rank
from veneer.engine.row_adapters import RowAdapterHook, RowUpdates
from veneer.errors import UserError

__all__ = ["AdapterBank", "Row"]

Row: TypeAlias = "str | tuple[str, float] | Mapping[str, float] | None"
"""Adapters of one row of a batch: one by its name, one with a strength, several with a strength each, or none."""


class AdapterBank:
    """Named adapters of one set of networks, any of which any row of a batch may have.

    The adapters' updates must be products of two thin matrices, as LoRA's are. Adding and removing moves no numbers:
    the factors stay where they are given, in the dtype they have (``adapter.to("cuda", torch.float16)`` of each layer
    keeps them on a GPU). What a batch needs is stacked when its rows are set, padded to the ranks of that batch and not
    to the largest in the bank. The networks are never changed; while rows are set, hooks on the adapted layers add to
    their outputs, so whatever calls the networks sees the adapters: a diffusers pipeline, a loop of one's own. Adapters
    merged into the weights, or injected, count as the base.

    Args:
        networks: the base's networks by name, as ``family.networks``.

    Raises:
        UserError: one is wrapped in ``DataParallel``.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._networks = dict(networks)
        self._layers = layers_of(networks)
        for prefix, network in networks.items():
            if is_wrapped(network, (nn.DataParallel,)):
                what = f"{prefix} is in DataParallel, which splits a batch up, so that its rows cannot be told apart"
                raise UserError(what, code="adapter.wrapped_network", remedy="give the network as it was before")
        self._adapters: dict[str, dict[str, LowRank]] = {}
        self._set = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order they were added."""
        return tuple(self._adapters)

    def add(self, name: str, weights: AdapterWeights) -> None:
        """Add an adapter under a name.

        Raises:
            UserError: the name is taken, the adapter is of another architecture or of a method that a batch cannot mix,
                or it changes a layer whose rows cannot be told apart.
        """
        if name in self._adapters:
            what, remedy = f"an adapter {name!r} is in the bank already", "remove it, or use another name"
            raise UserError(what, code="adapter.name_taken", remedy=remedy)
        if (method := method_without_low_rank(weights)) is not None:
            what = f"a {method.title} adapter cannot be one of several in a batch"
            raise UserError(what, code="adapter.cannot_batch", remedy="merge it, and sample with it alone")
        fitted = fit_to_layers(weights, self._layers)
        for path in fitted:
            _check_layer(path, self._layers[path])
        self._adapters[name] = low_rank_of(fitted)

    def remove(self, name: str) -> None:
        """Forget an adapter; rows that are set keep it."""
        self._check(name)
        del self._adapters[name]

    @contextmanager
    def rows(self, rows: Sequence[Row], *, guidance: bool = False, folded: tuple[str, ...] = ()) -> Iterator[None]:
        """Give each row of the batches inside adapters of its own: row b of a network's input has ``rows[b]``.

        Args:
            rows: one entry a row; ``"a"``, ``("a", 0.5)``, ``{"a": 0.5, "b": 1.0}``, or None for the base alone.
            guidance: the batch may also be these rows twice, one whole after the other, as diffusers' pipelines have it
                for classifier-free guidance (Ho and Salimans 2022): rows b and b + B are of one picture.
            folded: beginnings of the paths of layers that get each row as several adjacent ones.

        Raises:
            UserError: a row is none of these, an adapter is not in the bank, a strength is no finite number, or rows
                are set already; and inside, when a batch has another number of rows.
        """
        if self._set:
            raise UserError("rows are set already", code="adapter.rows_set", remedy="leave that block first")
        strengths = [self._strengths(row) for row in rows]
        paths = {path for row in strengths for name in row for path in self._adapters[name]}
        self._check_compiled({path.partition(".")[0] for path in paths})
        hooks = {
            path: RowAdapterHook(path, self._on_layer(path, strengths), 1 + guidance, path.startswith(folded))
            for path in sorted(paths)
        }
        with ExitStack() as stack:
            for path, hook in hooks.items():
                stack.callback(self._layers[path].register_forward_hook(hook, with_kwargs=True).remove)
            self._set = True
            stack.callback(setattr, self, "_set", False)
            yield

    def _strengths(self, row: Row) -> dict[str, float]:
        """Return the strength of each of a row's adapters that does something, by name."""
        named = _strengths_by_name(row)
        for name, strength in named.items():
            self._check(name)
            check_strength(strength, f"adapter {name!r}")
        return {name: strength for name, strength in named.items() if strength}

    def _on_layer(self, path: str, rows: list[dict[str, float]]) -> list[RowUpdates]:
        return [
            tuple((self._adapters[name][path], s) for name, s in row.items() if path in self._adapters[name])
            for row in rows
        ]

    def _check(self, name: str) -> None:
        if name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            what, remedy = f"no adapter {name!r} is in the bank", f"in it: {known}"
            raise UserError(what, code="adapter.unknown_name", remedy=remedy)

    def _check_compiled(self, prefixes: set[str]) -> None:
        """Refuse compiled networks: their forward pass does not see later hooks, and would leave the adapters out."""
        for prefix in sorted(prefixes):
            if is_compiled(self._networks[prefix]):
                what = f"{prefix} is compiled, which leaves no place for adapters"
                raise UserError(what, code="adapter.compiled", remedy="do not compile it")


def _strengths_by_name(row: object) -> dict[str, float]:
    """Return a row's strengths by name, as it gives them."""
    match row:
        case None:
            return {}
        case str():
            return {row: 1.0}
        case (str() as name, strength) if isinstance(row, tuple):
            return {name: strength}  # type: ignore[dict-item]  # checked where all strengths are
        case Mapping():
            return dict(row)
    remedy = "give a name, (name, strength), {name: strength, ...}, or None"
    raise UserError(f"a row is {row!r}", code="adapter.bad_row", remedy=remedy)


def _check_layer(path: str, layer: Layer) -> None:
    if isinstance(layer, NonDynamicallyQuantizableLinear):  # of nn.MultiheadAttention, which reads its weight alone
        what = f"{path} is never called by itself, so its rows cannot be told apart"
        raise UserError(what, code="adapter.layer_not_called", remedy="merge the adapter")
    if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros"):
        what = f"{path} is a convolution with groups or padding other than zeros"
        raise UserError(what, code="adapter.unsupported_convolution", remedy="merge the adapter")

"""Several adapters on one base: added, weighed, swapped, removed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from veneer.adapter.layers import fit_to_layers, weighted_layers_of
from veneer.adapter.merge import merge
from veneer.adapter.protocol import AdapterWeights, check_strength
from veneer.errors import UserError

__all__ = ["AdapterStack"]


class AdapterStack:
    """Named adapters merged into networks; after each change the weights are W0 + sum of w_i delta W_i.

    Each change starts from the original weights, so nothing drifts, and an empty stack is the base to the bit.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._networks = networks
        self._adapters: dict[str, tuple[AdapterWeights, float]] = {}
        self._merged = merge(networks, [])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order they were added."""
        return tuple(self._adapters)

    def add(self, name: str, weights: AdapterWeights, strength: float = 1.0) -> None:
        """Put an adapter on top.

        Raises:
            UserError: the name is taken, the adapter is of another architecture, or the strength is no finite number;
                the stack is as it was then.
        """
        if name in self._adapters:
            what, remedy = f"an adapter {name!r} is loaded already", "remove it first, or use another name"
            raise UserError(what, code="adapter.name_taken", remedy=remedy)
        check_strength(strength, f"adapter {name!r}")
        fitted = fit_to_layers(weights, weighted_layers_of(self._networks))
        self._merge({**self._adapters, name: (fitted, strength)})

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        """Set the strength of some adapters; those not named keep theirs.

        Raises:
            UserError: one is not loaded, or its strength is no finite number; the stack is as it was then.
        """
        for name, strength in strengths.items():
            self._check(name)
            check_strength(strength, f"adapter {name!r}")
        self._merge({name: (weights, strengths.get(name, old)) for name, (weights, old) in self._adapters.items()})

    def remove(self, name: str) -> None:
        """Take one adapter off.

        Raises:
            UserError: it is not loaded.
        """
        self._check(name)
        self._merge({other: adapter for other, adapter in self._adapters.items() if other != name})

    def clear(self) -> None:
        """Take all off, which gives the base, bit for bit."""
        self._merge({})

    def _check(self, name: str) -> None:
        if name not in self._adapters:
            loaded = ", ".join(self._adapters) or "none"
            raise UserError(f"no adapter {name!r} is loaded", code="adapter.unknown_name", remedy=f"loaded: {loaded}")

    def _merge(self, adapters: dict[str, tuple[AdapterWeights, float]]) -> None:
        self._merged.undo()
        try:
            self._merged = merge(self._networks, list(adapters.values()))
        except UserError:
            self._merged = merge(self._networks, list(self._adapters.values()))
            raise
        self._adapters = adapters

"""Several adapters on one base: added, weighted, swapped, removed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from veneer.adapter.layers import fit, layers_of
from veneer.adapter.merge import merge
from veneer.adapter.protocol import AdapterWeights, check_weight
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
        """Of the adapters, in the order they were added."""
        return tuple(self._adapters)

    def add(self, name: str, factors: AdapterWeights, weight: float = 1.0) -> None:
        """Put an adapter on top.

        Raises:
            UserError: the name is taken, the adapter is of another architecture, or the weight is no finite number; the
                stack is as it was then.
        """
        if name in self._adapters:
            raise UserError(f"an adapter {name!r} is loaded already", remedy="remove it first, or use another name")
        check_weight(weight, f"adapter {name!r}")
        fitted = fit(factors, layers_of(self._networks))
        self._become({**self._adapters, name: (fitted, weight)})

    def weights(self, weights: Mapping[str, float]) -> None:
        """Set the strength of some adapters; those not named keep theirs.

        Raises:
            UserError: one is not loaded, or its weight is no finite number; the stack is as it was then.
        """
        for name, weight in weights.items():
            self._check(name)
            check_weight(weight, f"adapter {name!r}")
        self._become({name: (f, weights.get(name, old)) for name, (f, old) in self._adapters.items()})

    def remove(self, name: str) -> None:
        """Take one adapter off."""
        self._check(name)
        self._become({other: adapter for other, adapter in self._adapters.items() if other != name})

    def clear(self) -> None:
        """Take all off: the base, bit for bit."""
        self._become({})

    def _check(self, name: str) -> None:
        if name not in self._adapters:
            loaded = ", ".join(self._adapters) or "none"
            raise UserError(f"no adapter {name!r} is loaded", remedy=f"loaded: {loaded}")

    def _become(self, adapters: dict[str, tuple[AdapterWeights, float]]) -> None:
        self._merged.undo()
        self._merged = merge(self._networks, list(adapters.values()))
        self._adapters = adapters

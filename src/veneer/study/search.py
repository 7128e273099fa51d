"""Points of a search, proposed by Optuna."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from veneer.errors import UserError
from veneer.study.config import RangeConfig, SearchConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

__all__ = ["Proposer", "changes_of", "params_of", "space_of"]


class Proposer:
    """Proposes points one after another, each by the losses of those before it.

    The same seed and the same losses give the same proposals. So a search that was interrupted is resumed by asking
    and reporting all over again: trials that are done are not trained again.

    Args:
        search: its space.
        seed: of the sampler.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, search: SearchConfig, seed: int) -> None:
        self._space = space_of(search)
        import optuna

        sampler = optuna.samplers.TPESampler(seed=seed % 2**32)  # NumPy's old generator takes no more
        self._study = optuna.create_study(direction="minimize", sampler=sampler)

    def ask(self) -> tuple[Trial, dict[str, Any]]:
        """Return the trial that the next point's loss is to be reported for, and the point's changes."""
        trial = self._study.ask(fixed_distributions=self._space)
        return trial, changes_of(trial.params)

    def report(self, trial: Trial, loss: float | None) -> None:
        """Report a point's loss; None: it failed, which the sampler takes for worse than any loss."""
        from optuna.trial import TrialState

        if loss is None:
            # the sampler ignores failed trials, and would propose similar points again
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, loss)


def space_of(search: SearchConfig) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each key.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        from optuna import distributions, logging
    except ImportError:
        raise UserError(
            "a search needs Optuna", code="study.optuna_missing", remedy="pip install 'veneer[search]'"
        ) from None
    logging.set_verbosity(logging.WARNING)
    space: dict[str, BaseDistribution] = {}
    for key, values in search.space.items():
        if not isinstance(values, RangeConfig):
            # Optuna chooses among texts and numbers only, while a choice here may be a list
            space[key] = distributions.CategoricalDistribution([json.dumps(value) for value in values])
        elif isinstance(values.low, int) and isinstance(values.high, int):
            space[key] = distributions.IntDistribution(values.low, values.high, log=values.log)
        else:
            space[key] = distributions.FloatDistribution(values.low, values.high, log=values.log)
    return space


def changes_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that Optuna's parameters stand for."""
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in params.items()}


def params_of(changes: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> dict[str, Any] | None:
    """Return the parameters that stand for changes; None if these are outside the space."""
    from optuna.distributions import CategoricalDistribution

    if set(changes) != set(space):
        return None
    params = {k: json.dumps(v) if isinstance(space[k], CategoricalDistribution) else v for k, v in changes.items()}
    inside = (distribution._contains(distribution.to_internal_repr(params[k])) for k, distribution in space.items())
    try:
        return params if all(inside) else None
    except ValueError:  # a choice that the space no longer has
        return None

"""Average an adapter over its training, which is steadier than its last step.

An exponential moving average (Polyak and Juditsky 1992; for diffusion models Ho et al. 2020, appendix B), in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from veneer.errors import UserError

__all__ = ["ExponentialMovingAverage", "decay_at"]

_KIND = "average."


def decay_at(decay: float, step: int) -> float:
    """Return the decay in ``step``, counted from 1: less at first, so that the average soon forgets its start.

    The warm-up is TensorFlow's (``tf.train.ExponentialMovingAverage`` with ``num_updates``); diffusers' ``EMAModel``
    has it too.
    """
    return min(decay, (1 + step) / (10 + step))


class ExponentialMovingAverage:
    """The average of parameters: ``average = d average + (1 - d) parameter`` after each step.

    Args:
        parameters: by name.
        decay: d after its warm-up; None: there is no average, and every method does nothing.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float | None) -> None:
        self._parameters, self._decay = parameters, decay
        self._averages: dict[str, Tensor] = {}
        self._in_place = False
        self._begin()

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The averages by their parameters' names; none if the config asks for none."""
        return self._averages

    def update(self, step: int) -> None:
        """Add the parameters as they are after ``step``, counted from 1."""
        if self._decay is not None:
            current = [self._parameters[name].detach() for name in self._averages]
            torch._foreach_lerp_(list(self._averages.values()), current, 1 - decay_at(self._decay, step))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the parameters the average's values; afterwards they have their own bits again."""
        own = {name: self._parameters[name].detach().clone() for name in self._averages}
        self._assign(self._averages)
        self._in_place = True
        try:
            yield
        finally:
            self._in_place = False
            self._assign(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies on the CPU, fit for safetensors; empty where there is no average."""
        assert not self._in_place, "a state is saved of the parameters' own values"
        return {f"{_KIND}{name}": average.to("cpu", copy=True) for name, average in self._averages.items()}

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Check that ``load`` can take a state.

        Raises:
            UserError: it holds an average of other parameters.
        """
        given = {name: tensor.shape for name, tensor in state.items() if name.startswith(_KIND)}
        shapes = {f"{_KIND}{name}": average.shape for name, average in self._averages.items()}
        differing = sorted(name for name in given.keys() | shapes.keys() if given.get(name) != shapes.get(name))
        # all or none: a run may have been allowed to begin with an average now, or to do without from now on
        if given and shapes and differing:
            what = f"the saved state is of another run: {differing[0]} is missing on one side, or of another shape"
            raise UserError(what, code="checkpoint.other_run", remedy="resume with the config it was made with")

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``, or begin at the parameters as they are if it holds no average."""
        self._begin()
        for name, average in self._averages.items():
            average.copy_(state.get(f"{_KIND}{name}", average))

    def _begin(self) -> None:
        if self._decay is not None:
            self._averages = {n: p.detach().to(torch.float32, copy=True) for n, p in self._parameters.items()}

    def _assign(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._parameters[name].copy_(value)

"""How far two right computations may be from each other: by the dtype and the operations, not by one machine.

Another processor, another number of threads or another library adds a sum's terms in another order, and so rounds
otherwise. Where a tolerance was measured on one machine, a test fails on the next.

- A sum of K products of rounded numbers: roundings of both signs add like a random walk, so the error is at most
  ``SIGMAS * sqrt(K) * u`` of the sum of the products' absolute values (Higham and Mary 2019, theorem 3.1), u being half
  of the dtype's ``eps``. :func:`sum_error` gives it, whatever cancels.
- A network, its gradients too: how much it magnifies roundings is found in float64, whose own roundings do not count:
  each weight is moved by a share far below float32's roundings, in a random direction, and what comes of it is divided
  by that share. In the networks of the tests a computation in float32 or bfloat16 is between 0.03 and 3 times that
  number times u off. :func:`rounding` allows ``ROUNDINGS`` times.
- Two computations in one dtype, of which neither is to be worse: :func:`distance` from the truth, a mean over all
  numbers, for the largest error alone is one number's luck. ``AS_NEAR`` times is allowed: where as few as ten
  independent errors decide, the ratio of two such means is beyond it once in a thousand (F distribution, 10 and 10
  degrees of freedom).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.networks import worst
from veneer.engine import undo

__all__ = ["AS_NEAR", "ROUNDINGS", "SIGMAS", "distance", "output_error", "rounding", "sum_error", "unit_roundoff"]

SIGMAS = 4.0
"""Standard deviations of a random walk that an error may reach: one in 16,000 is beyond."""
ROUNDINGS = 8.0
"""Roundings of the size of one of each weight: 64 independent ones for each."""
AS_NEAR = 3.0
"""Mean errors of two right computations in one dtype, one over the other."""
_SHARE = 2.0**-30

Results = tuple[Tensor, dict[str, Tensor]]
Result = TypeVar("Result")


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding a number to this dtype."""
    return float(torch.finfo(dtype).eps) / 2


def sum_error(magnitude: Tensor, terms: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The error of sums of ``terms`` products, by their magnitude: the same sums of the products' absolute values."""
    return SIGMAS * (terms + 1) ** 0.5 * unit_roundoff(dtype) * magnitude.double()


def distance(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """The root of the mean over tensors of their squared relative errors."""
    assert found.keys() == truth.keys()
    shares = [(found[name].double() - true.double()).norm() / true.double().norm() for name, true in truth.items()]
    return float(torch.stack(shares).square().mean().sqrt())


def rounding(
    run: Callable[[nn.Module], Results], model: nn.Module, dtype: torch.dtype = torch.float32
) -> tuple[float, float]:
    """How far a model's output and gradients in a dtype may be from the truth, as ``worst`` measures it.

    Args:
        run: gives a float64 model's output and its gradients; the same each time.
        model: of any dtype; a copy of it is used.
        dtype: of the computation.
    """
    (output, gradients), (moved_output, moved_gradients) = _moved(run, model)
    moved = worst({"": moved_output}, {"": output}), worst(moved_gradients, gradients)
    scale = ROUNDINGS * unit_roundoff(dtype) / _SHARE
    return scale * moved[0], scale * moved[1]


def output_error(run: Callable[[Any], Tensor], model: nn.Module, dtype: torch.dtype) -> float:
    """How far outputs of two right ways through a model may be from each other in a dtype, as ``distance`` measures it.

    Below float32, by two roundings of each weight on either way, for sums are added up in float32 and rounded once; in
    float32, whose sums are rounded at each term, by ``ROUNDINGS``.
    """
    output, moved = _moved(run, model)
    roundings = 2 * ROUNDINGS if dtype == torch.float32 else 4.0
    return roundings * unit_roundoff(dtype) * distance({"": moved}, {"": output}) / _SHARE


def _moved(run: Callable[[Any], Result], model: nn.Module) -> tuple[Result, Result]:
    """What a model gives in float64, and what it gives when each weight is moved by a share of itself."""
    wide = copy.deepcopy(model).double()
    undo(wide)
    before = run(wide)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in wide.parameters():
            signs = 2.0 * torch.randint(0, 2, parameter.shape, generator=generator).double() - 1
            parameter.mul_(1 + _SHARE * signs)
    return before, run(wide)

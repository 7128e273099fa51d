"""Save and restore all that a run must remember between two steps: adapter, moments, loss scale, step.

There is no state of a random generator in it, nor a place in the data: both follow from the step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from veneer.errors import UserError

__all__ = ["restore", "snapshot"]

_STEP = "step"


def snapshot(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, step: int
) -> dict[str, Tensor]:
    """Return copies of a run's state on the CPU, fit for safetensors.

    Args:
        parameters: of the adapter, by name.
        optimizer: over them; each of its states is saved as ``optimizer.<state>.<parameter>``.
        scaler: of float16's loss; in other precisions it has no state.
        step: steps done.
    """
    tensors = {_STEP: torch.tensor(step)}
    for name, parameter in parameters.items():
        tensors[f"adapter.{name}"] = _copy(parameter)
        tensors |= {f"optimizer.{kind}.{name}": _copy(value) for kind, value in optimizer.state[parameter].items()}
    return tensors | {f"scaler.{what}": torch.tensor(value) for what, value in scaler.state_dict().items()}


def restore(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> int:
    """Restore a snapshot; return the number of steps that were done.

    Raises:
        UserError: it is of another adapter or another precision; nothing has been changed then.
    """
    moments = _moments(tensors)
    _check(tensors, moments, parameters, scaler)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"adapter.{name}"])
            optimizer.state[parameter] = _on_device(moments.get(name, {}), parameter, optimizer)
    if scaler.is_enabled():
        scaler.load_state_dict({what: tensors[f"scaler.{what}"].item() for what in scaler.state_dict()})
    return int(tensors[_STEP])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _moments(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the optimiser's state by parameter."""
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            what, _, name = rest.partition(".")
            moments.setdefault(name, {})[what] = tensor
    return moments


def _on_device(
    moments: Mapping[str, Tensor], parameter: nn.Parameter, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Copy to where PyTorch keeps them: the parameter's device, but the count of steps, unless one kernel does all."""
    counts = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
    return {what: t.to(counts if what == "step" else parameter.device, copy=True) for what, t in moments.items()}


def _check(
    tensors: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]],
    parameters: Mapping[str, nn.Parameter],
    scaler: torch.amp.GradScaler,
) -> None:
    shapes = {f"adapter.{name}": parameter.shape for name, parameter in parameters.items()}
    shapes |= {f"scaler.{what}": torch.Size() for what in scaler.state_dict()}
    given = {name: tensor.shape for name, tensor in tensors.items() if name.startswith(("adapter.", "scaler."))}
    differing = sorted(name for name in given.keys() | shapes.keys() if given.get(name) != shapes.get(name))
    # before the first step an optimiser has no state at all; after it, one of each parameter
    if moments and moments.keys() != parameters.keys():
        differing += [f"optimizer.{name}" for name in sorted(moments.keys() ^ parameters.keys())]
    if _STEP not in tensors:
        differing.append(_STEP)
    if differing:
        what = f"the saved state is of another run: {differing[0]} is missing on one side, or of another shape"
        raise UserError(what, code="checkpoint.other_run", remedy="resume with the config it was made with")

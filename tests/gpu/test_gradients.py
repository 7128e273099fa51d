"""Every memory level has peft's gradients on the GPU, element by element, in each dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import models
from tests.gpu.sizes import Sizes
from tests.networks import NETWORKS, Network, adapt, worst
from tests.tolerance import AS_NEAR, distance
from veneer.engine import MemoryLevel, prepare
from veneer.engine.attention import trusted_attention
from veneer.engine.precision import Precision

OWN: tuple[MemoryLevel, ...] = ("lean", "leaner", "checkpoint")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Record = Callable[[str, object], None]


def _moves_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """A hook before the forward pass: the networks of tests/networks are called with tensors of the CPU."""
    device = next(module.parameters()).device
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), (args, kwargs))  # type: ignore[return-value]


def _on(device: torch.device, model: nn.Module) -> nn.Module:
    model.register_forward_pre_hook(_moves_inputs, with_kwargs=True)
    return model.to(device)


def _gradients(network: Network, model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """One step's gradients under autocast to a dtype narrower than float32, of a fixed weighting of the output."""
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    narrow = dtype not in (torch.float32, torch.float64)
    with trusted_attention():
        with Precision(dtype if narrow else torch.float32, device).autocast():
            output = network.call(model, torch.float32 if narrow else dtype)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).to(device)
        wide = output if output.dtype == torch.float64 else output.float()
        torch.autograd.backward((wide * weight).sum())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_as_near_to_the_truth_as_peft(kind: str, precision: str, device: torch.device, record_property: Record) -> None:
    network, dtype = NETWORKS[kind], DTYPES[precision]
    model = _on(device, adapt(network))
    truth = _gradients(network, _on(device, adapt(network)).double(), torch.float64)
    reference = _gradients(network, model, dtype)
    error = distance(reference, truth)
    found = {}
    for memory in OWN:
        prepared = prepare(model, memory)
        found[memory] = _gradients(network, model, dtype)
        prepared.undo()
    errors = {memory: distance(gradients, truth) for memory, gradients in found.items()}
    record_property("over peft's error", {memory: round(own / error, 2) for memory, own in errors.items()})
    for memory, gradients in found.items():
        assert errors[memory] <= AS_NEAR * error, memory
        assert worst(gradients, truth) <= AS_NEAR * worst(reference, truth), memory


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_denoiser_of_full_size(precision: str, sizes: Sizes, unet: Any, record_property: Record) -> None:
    """Against peft in float32 without TF32: no level is further from it than peft in the same arithmetic."""
    dtype, pixels = DTYPES[precision], 512 if sizes.is_full else 64
    with _exact_float32():
        truth = _unet_gradients(models.adapted(unet), torch.float32, pixels)
    reference = _unet_gradients(models.adapted(unet), dtype, pixels)
    error = distance(reference, truth)
    record_property("peft's error", f"{error:.1e}")
    for memory in OWN:
        model = models.adapted(unet)
        prepare(model, memory)
        own = distance(_unet_gradients(model, dtype, pixels), truth)
        record_property(memory, f"{own:.1e}")
        assert own <= max(AS_NEAR * error, 1e-4), memory


def _unet_gradients(model: Any, dtype: torch.dtype, pixels: int) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    with trusted_attention():
        with Precision(dtype, device).autocast():
            loss = models.squared_error(model, 1, pixels)
        torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _exact_float32() -> Any:
    """Convolutions in float32 proper; cuDNN takes TF32 for them by default."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)

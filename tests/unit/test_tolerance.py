"""The tolerances pass another order of the same sums, and no fault of the kinds that they guard against."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.networks import NETWORKS, adapt, gradients, worst
from tests.tolerance import AS_NEAR, distance, rounding, sum_error

KINDS = ["sd", "flux", "clip"]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("terms", [3, 40, 1000])
def test_sums_in_any_order_are_within_and_products_of_rounded_numbers_beyond(terms: int) -> None:
    x, y = numbers(20, terms), numbers(terms, 30, seed=1)
    truth, allowed = x.double() @ y.double(), sum_error(x.abs() @ y.abs(), terms)
    for seed in range(20):
        order = torch.randperm(terms, generator=torch.Generator().manual_seed(seed))
        assert ((x[:, order] @ y[order] - truth).abs() <= allowed).all()
    for fault in (x.bfloat16().float() @ y, (1 + 1e-4) * x @ y, x.half().float() @ y):
        assert ((fault - truth).abs() > allowed).any()


def with_fault(model: Any, fault: Any) -> nn.Module:
    """One linear layer of the network computes something else."""
    layers = [module for module in model.modules() if type(module) is nn.Linear and not module.weight.requires_grad]
    layers[len(layers) // 2].register_forward_hook(lambda layer, arguments, output: fault(layer, arguments[0], output))
    return model


FAULTS = {
    "a product in bfloat16": lambda layer, x, y: y.bfloat16().float(),
    "a strength that is off by a thousandth": lambda layer, x, y: 1.001 * y,
    "a weight that was rounded to bfloat16": lambda layer, x, y: nn.functional.linear(
        x, layer.weight.bfloat16().float(), layer.bias
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_one_layer_is_beyond_the_rounding_of_a_network(kind: str, fault: str) -> None:
    network = NETWORKS[kind]
    model = adapt(network)
    _, allowed = rounding(lambda wide: gradients(network, wide, torch.float64), model)
    _, truth = gradients(network, adapt(network).double(), torch.float64)
    assert worst(gradients(network, model)[1], truth) <= allowed
    assert worst(gradients(network, with_fault(model, FAULTS[fault]))[1], truth) > 2 * allowed


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_eight_bits_are_not_as_near_to_the_truth_as_bfloat16(kind: str) -> None:
    network = NETWORKS[kind]
    truth = gradients(network, adapt(network).double(), torch.float64)[1]
    plain = distance(gradients(network, adapt(network), autocast=True)[1], truth)
    rough = adapt(network)
    for parameter in rough.parameters():
        if not parameter.requires_grad and parameter.dim() > 1:
            parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    assert distance(gradients(network, rough, autocast=True)[1], truth) > AS_NEAR * plain

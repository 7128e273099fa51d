"""Networks of every supported kind train at every level of memory as they do with diffusers, transformers and peft."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.saved_tensors import saved_bytes_by_layer, saved_tensor_bytes
from tests.networks import NETWORKS, UNEVEN, Network, adapt, gradients, worst
from tests.tolerance import AS_NEAR, distance, rounding
from veneer.engine import MemoryLevel, prepare

LEVELS: tuple[MemoryLevel, ...] = ("exact", "lean", "leaner", "checkpoint")
OWN = LEVELS[1:]


def test_the_count_of_bytes_is_what_autograd_asks_for() -> None:
    network = NETWORKS["sd"]
    model = adapt(network)

    def forward() -> torch.Tensor:
        return network.call(model, torch.float32).square().mean()

    asked = sum(saved_bytes_by_layer(forward, model.parameters()).values())
    assert saved_tensor_bytes(forward) == pytest.approx(asked, rel=0.02)


@pytest.mark.parametrize("kind", [*NETWORKS, pytest.param("sd, uneven", marks=pytest.mark.slow)])
def test_gradients_are_peft_s_within_float32_rounding(kind: str) -> None:
    """Against the truth in float64: no level is further from it than float32 is, nor than peft is, but for luck."""
    network = NETWORKS.get(kind, UNEVEN)
    model = adapt(network)
    output_error, error = allowed(network, model)
    truth_output, truth = gradients(network, adapt(network).double(), torch.float64)
    _, reference = gradients(network, model)
    assert 0 < worst(reference, truth) <= error
    for memory in LEVELS:
        prepared = prepare(model, memory)
        found_output, found = gradients(network, model)
        prepared.undo()
        assert worst({"": found_output}, {"": truth_output}) <= output_error, memory
        assert worst(found, truth) <= error, memory
        assert distance(found, truth) <= AS_NEAR * distance(reference, truth), memory


def allowed(network: Network, model: nn.Module) -> tuple[float, float]:
    """How far output and gradients in float32 may be from the truth."""
    return rounding(lambda wide: gradients(network, wide, torch.float64), model)


@pytest.mark.parametrize("kind", [*NETWORKS, pytest.param("sd, uneven", marks=pytest.mark.slow)])
def test_own_levels_have_one_another_s_bits(kind: str) -> None:
    """So a run that ran out of memory goes on at the next level as if nothing had happened."""
    network = NETWORKS.get(kind, UNEVEN)
    results = []
    for memory in OWN:
        model = adapt(network, dropout=0.3)
        prepare(model, memory)
        results.append(gradients(network, model))
    for output, found in results[1:]:
        assert torch.equal(output, results[0][0])
        assert all(torch.equal(found[name], gradient) for name, gradient in results[0][1].items())


@pytest.mark.parametrize("kind", ["sd, all of it", "flux", "clip"])
@pytest.mark.parametrize("memory", OWN)
def test_dropout_draws_peft_s_masks(kind: str, memory: MemoryLevel) -> None:
    network = NETWORKS[kind]
    model = adapt(network, dropout=0.5)
    output, reference = gradients(network, model)
    without = gradients(network, adapt(network))[1]
    output_error, error = allowed(network, model)
    prepare(model, memory)
    found_output, found = gradients(network, model)
    assert worst({"": found_output}, {"": output}) <= 2 * output_error
    assert worst(found, reference) <= 2 * error < 1e-2 < worst(without, reference)


@pytest.mark.parametrize("kind", ["sd", "sd, all of it", "sdxl", "sd3", "clip", "t5"])
@pytest.mark.parametrize("memory", OWN)
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_autocast(kind: str, memory: MemoryLevel, base: torch.dtype) -> None:
    """In bfloat16 with float32 adapters, on a base of either precision, as near to the truth as peft is."""
    network = NETWORKS[kind]
    model = adapt(network)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(base)
    truth = gradients(network, _widened(model, network), torch.float64)
    output, reference = gradients(network, model, base, autocast=True)
    prepare(model, memory)
    found_output, found = gradients(network, model, base, autocast=True)
    assert found_output.dtype == output.dtype
    assert {name: g.dtype for name, g in found.items()} == {name: g.dtype for name, g in reference.items()}
    assert distance({"": found_output}, {"": truth[0]}) <= AS_NEAR * distance({"": output}, {"": truth[0]})
    assert distance(found, truth[1]) <= AS_NEAR * distance(reference, truth[1])


def _widened(model: nn.Module, network: object) -> nn.Module:
    """The same weights in float64."""
    import copy

    return copy.deepcopy(model).double()


@pytest.mark.parametrize("memory", OWN)
@pytest.mark.parametrize("kind", NETWORKS)
def test_each_level_keeps_less_than_peft(kind: str, memory: MemoryLevel) -> None:
    network = NETWORKS[kind]
    model = adapt(network)

    def forward() -> torch.Tensor:
        return network.call(model, torch.float32).square().mean()

    before = saved_tensor_bytes(forward)
    prepare(model, memory)
    assert saved_tensor_bytes(forward) < {"lean": 0.7, "leaner": 0.55, "checkpoint": 0.2}[memory] * before

"""Blends against peft's add_weighted_adapter, and against sums that are taken on the full matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.biased import BiasedAdapter
from veneer.adapter.blend import BlendPart, Pruning, PruningMethod, blend
from veneer.adapter.dora import DoraFactors
from veneer.adapter.full import FullDifference, NormDifference
from veneer.adapter.loha import LohaFactors
from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.adapter.protocol import AdapterWeights
from veneer.rng import key

RANKS, ALPHAS, STRENGTHS = (3, 2), (6.0, 1.0), (0.8, -0.5)
PEFT = {"ties": "ties_svd", "dare": "dare_linear_svd", "dare_ties": "dare_ties_svd", "magnitude": "magnitude_prune_svd"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(10, 8)
        self.two = nn.Conv2d(4, 6, 3)
        self.three = nn.Conv2d(4, 6, 1)


@pytest.fixture(scope="module")
def model() -> Any:
    """peft's model with two adapters of different ranks and strengths."""
    torch.manual_seed(0)
    targets = ["one", "two", "three"]
    configs = [LoraConfig(r=r, lora_alpha=a, target_modules=targets) for r, a in zip(RANKS, ALPHAS, strict=True)]
    model = get_peft_model(Net(), configs[0], adapter_name="a")
    model.add_adapter("b", configs[1])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter)
    return model


def adapter(model: Any, name: str, alpha: float) -> AdapterWeights:
    """Read one of the model's adapters as ours."""
    net = model.base_model.model
    layers = {path: getattr(net, path) for path in ("one", "two", "three")}
    return {
        f"net.{path}": LoraFactors(layer.lora_A[name].weight.data, layer.lora_B[name].weight.data, alpha)
        for path, layer in layers.items()
    }


def parts(model: Any) -> list[BlendPart]:
    return [
        BlendPart(adapter(model, name, alpha), strength, name)
        for name, alpha, strength in zip("ab", ALPHAS, STRENGTHS, strict=True)
    ]


def peft_deltas(model: Any, kind: str, seeds: dict[str, int] | None = None, **settings: Any) -> dict[str, Tensor]:
    """What peft makes of the two; with seeds its random numbers are keyed by the layer, as ours are."""
    if "result" in model.peft_config:
        model.delete_adapter("result")
    model.add_weighted_adapter(["a", "b"], list(STRENGTHS), "result", combination_type=kind, **settings)
    found = {}
    for path in ("one", "two", "three"):
        layer = getattr(model.base_model.model, path)
        if seeds is not None:
            torch.manual_seed(seeds[path])
            factors = layer.lora_A["result"].weight, layer.lora_B["result"].weight
            down, up = model.base_model._svd_generalized_task_arithmetic_weighted_adapter(
                kind, ["a", "b"], list(STRENGTHS), settings["svd_rank"], layer, *factors, settings["density"], "total"
            )
            layer.lora_A["result"].weight.data, layer.lora_B["result"].weight.data = down, up
        found[path] = layer.get_delta_weight("result").detach()
    return found


def assert_equal(ours: AdapterWeights, expected: dict[str, Tensor]) -> None:
    assert set(ours) == {f"net.{path}" for path in expected}
    for path, delta in expected.items():
        torch.testing.assert_close(delta_weight(ours[f"net.{path}"].low_rank()), delta, rtol=1e-4, atol=1e-5)


def test_the_sum_is_pefts_concatenation(model: Any) -> None:
    blended = blend(parts(model))
    assert blended.retained == 1.0
    assert {layer.hyperparameters["rank"] for layer in blended.weights.values()} == {5}
    assert_equal(blended.weights, peft_deltas(model, "cat"))


def test_the_sum_cut_to_a_rank_is_pefts_svd(model: Any) -> None:
    blended = blend(parts(model), rank=2)
    assert_equal(blended.weights, peft_deltas(model, "svd", svd_rank=2))
    assert 0 < blended.retained < 1


@pytest.mark.parametrize("method", ["ties", "magnitude"])
@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_pruning_is_pefts_own(model: Any, method: PruningMethod, rank: int, density: float) -> None:
    blended = blend(parts(model), rank=rank, pruning=Pruning(method, density))
    assert_equal(blended.weights, peft_deltas(model, PEFT[method], svd_rank=rank, density=density))


def test_the_sign_can_be_elected_by_count(model: Any) -> None:
    blended = blend(parts(model), rank=4, pruning=Pruning("ties", 0.5, "frequency"))
    expected = peft_deltas(model, "ties_svd", svd_rank=4, density=0.5, majority_sign_method="frequency")
    assert_equal(blended.weights, expected)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_random_pruning_is_pefts_with_numbers_of_each_layer_s_own(model: Any, method: PruningMethod) -> None:
    blended = blend(parts(model), rank=4, pruning=Pruning(method, 0.6, seed=7))
    seeds = {path: key(7, "blend", f"net.{path}") for path in ("one", "two", "three")}
    assert_equal(blended.weights, peft_deltas(model, PEFT[method], seeds, svd_rank=4, density=0.6))


def test_random_pruning_is_the_same_each_time_and_leaves_torchs_numbers_alone(model: Any) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second, other = (
        blend(parts(model), rank=4, pruning=Pruning("dare", 0.6, seed=seed)).weights for seed in (7, 7, 8)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    for path, layer in first.items():
        states = [each[path].state_dict() for each in (first, second, other)]
        assert all(torch.equal(states[0][part], states[1][part]) for part in layer.state_dict())
        assert not torch.equal(states[0]["up"], states[2]["up"])


def test_without_a_rank_a_pruned_sum_has_the_highest_of_its_parts(model: Any) -> None:
    blended = blend(parts(model), pruning=Pruning("ties", 0.5))
    assert {layer.hyperparameters["rank"] for layer in blended.weights.values()} == {3}


def test_pruning_does_not_hang_on_how_delta_w_is_written(model: Any) -> None:
    """B A = (B R^-1)(R A): peft's kinds without SVD give another result for each R, and ours give one."""
    turned = []
    for part in parts(model):
        weights = {}
        for path, layer in part.weights.items():
            assert isinstance(layer, LoraFactors)
            turn = torch.linalg.qr(torch.randn(layer.rank, layer.rank))[0]
            down = (turn @ layer.down.flatten(1)).reshape(layer.down.shape)
            up = (layer.up.flatten(1) @ turn.T).reshape(layer.up.shape)
            weights[path] = LoraFactors(down, up, layer.alpha)
        turned.append(BlendPart(weights, part.strength, part.name))
    pruning = Pruning("ties", 0.3)
    plain, other = (blend(each, rank=4, pruning=pruning).weights for each in (parts(model), turned))
    for path in plain:
        deltas = [delta_weight(each[path].low_rank()) for each in (plain, other)]
        torch.testing.assert_close(deltas[0], deltas[1], rtol=1e-3, atol=1e-4)


def test_a_layer_of_one_adapter_keeps_its_own_strength(model: Any) -> None:
    first, second = parts(model)
    weights = {path: layer for path, layer in second.weights.items() if path != "net.two"}
    blended = blend([first, BlendPart(weights, second.strength, "b", {"net.one": 0.0})]).weights
    for path in ("net.one", "net.two"):  # the second one's is weighed with 0, or is not there
        assert blended[path].hyperparameters["rank"] == 3
        delta = delta_weight(first.weights[path].low_rank())
        torch.testing.assert_close(delta_weight(blended[path].low_rank()), 0.8 * delta)


def dense_sum(parts: list[BlendPart], path: str) -> Tensor:
    """The weighted sum of a layer's delta W, each formed in full."""
    return sum(
        (
            part.strength_of(path) * part.weights[path].delta_weight(torch.empty(0))
            for part in parts
            if path in part.weights
        ),
        torch.zeros(()),
    )


def loha(seed: int, out: int = 8, into: int = 10, rank: int = 2) -> LohaFactors:
    random = torch.Generator().manual_seed(seed)
    shapes = {"hada_w1_a": (out, rank), "hada_w1_b": (rank, into), "hada_w2_a": (out, rank), "hada_w2_b": (rank, into)}
    tensors = {part: torch.randn(*shape, generator=random) for part, shape in shapes.items()}
    fitted = LohaFactors(tensors, {"alpha": 1.0}).fitted((out, into))
    assert fitted is not None
    return fitted


def test_full_differences_add_up_exactly_with_what_is_beside_them(model: Any) -> None:
    lora = {path: layer for path, layer in adapter(model, "a", 6.0).items() if path != "net.two"}
    full = {"net.one": FullDifference({"diff": torch.randn(8, 10), "diff_b": torch.randn(8)}, {})}
    full |= {"net.four": NormDifference({"w_norm": torch.randn(5), "b_norm": torch.randn(5)}, {})}
    parts = [BlendPart(lora, 0.8, "a"), BlendPart(full, -0.5, "b"), BlendPart(full, 0.25, "c")]
    blended = blend(parts).weights
    assert {path: type(layer) for path, layer in blended.items()} == {
        "net.one": FullDifference,
        "net.three": LoraFactors,
        "net.four": NormDifference,
    }
    for path in ("net.one", "net.four"):
        found, bias = blended[path], full[path].delta_bias(torch.empty(0))
        torch.testing.assert_close(found.delta_weight(torch.empty(0)), dense_sum(parts, path), rtol=1e-5, atol=1e-6)
        assert bias is not None and found.bias_size == len(bias)
        torch.testing.assert_close(found.delta_bias(torch.empty(0)), -0.25 * bias)


def test_biases_are_added_and_never_cut(model: Any) -> None:
    biased = {
        path: BiasedAdapter(layer, torch.randn(layer.shape[0])) for path, layer in adapter(model, "a", 6.0).items()
    }
    only = {
        "net.one": FullDifference({"diff_b": torch.randn(8)}, {}),
        "net.five": FullDifference({"diff_b": torch.ones(3)}, {}),
    }
    parts = [BlendPart(biased, 0.8, "a"), BlendPart(adapter(model, "b", 1.0), -0.5, "b"), BlendPart(only, 2.0, "c")]
    for blended in (blend(parts).weights, blend(parts, rank=1, pruning=Pruning("ties", 0.5)).weights):
        bias = blended["net.one"].delta_bias(torch.empty(0))
        assert bias is not None
        torch.testing.assert_close(bias, 0.8 * biased["net.one"].bias + 2 * only["net.one"].tensors["diff_b"])
        torch.testing.assert_close(blended["net.two"].delta_bias(torch.empty(0)), 0.8 * biased["net.two"].bias)
        assert blended["net.five"].state_dict()["diff_b"].tolist() == [2, 2, 2]
    whole = blend(parts).weights["net.two"]
    assert isinstance(whole, BiasedAdapter) and isinstance(whole.inner, LoraFactors) and whole.inner.rank == 5


def test_other_methods_become_a_lora_of_a_rank(model: Any) -> None:
    """A LoHa of rank 2 has a delta W of rank 4 at most: at that rank nothing is lost, beside a LoRA's 3."""
    lora = {"net.one": adapter(model, "a", 6.0)["net.one"]}
    parts = [BlendPart({"net.one": loha(1)}, 0.7, "loha"), BlendPart(lora, 0.8, "lora")]
    with raises_code("adapter.cannot_combine", "net.one has a LoHa adapter", match="name a --rank"):
        blend(parts)
    blended = blend(parts, rank=7)
    (layer,) = blended.weights.values()
    assert isinstance(layer, LoraFactors) and blended.retained == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(delta_weight(layer), dense_sum(parts, "net.one"), rtol=1e-4, atol=1e-5)
    assert 0.1 < blend(parts, rank=2).retained < 1
    full = BlendPart({"net.one": FullDifference({"diff": torch.randn(8, 10)}, {})}, 1.0, "full")
    (layer,) = blend([*parts, full]).weights.values()
    assert isinstance(layer, FullDifference)
    torch.testing.assert_close(layer.tensors["diff"], dense_sum([*parts, full], "net.one"), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_blended_is_refused(model: Any) -> None:
    first, second = parts(model)
    other = {"net.one": LoraFactors(torch.ones(1, 9), torch.ones(8, 1), 1.0)}
    with raises_code("adapter.different_architectures", "net.one is (8, 10) in a and (8, 9) in c"):
        blend([first, BlendPart(other, 1.0, "c")])
    dora = {"net.one": DoraFactors(LoraFactors(torch.ones(1, 10), torch.ones(8, 1), 1.0), torch.ones(8, 1))}
    with raises_code("adapter.cannot_combine", "d is a DoRA adapter, whose change"):
        blend([first, BlendPart(dora, 1.0, "d")], rank=2)
    with raises_code("adapter.empty_blend"):
        blend([BlendPart(first.weights, 0.0), BlendPart(second.weights, 0.0)])
    with raises_code("adapter.bad_rank"):
        blend([first, second], rank=0)
    with raises_code("adapter.bad_strength"):
        blend([BlendPart(first.weights, float("nan"))])
    with raises_code("adapter.bad_density"):
        Pruning("ties", 0.0)

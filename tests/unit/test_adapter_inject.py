"""Injection: what it matches, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.inject import Injection, Match, inject
from veneer.adapter.lora import LoraFactors, LoraSpec
from veneer.adapter.protocol import AdapterWeights


class Attention(nn.Module):
    """A stand-in for a block: three layers and one that cannot be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 6)
        self.to_out = nn.ModuleList([nn.Linear(6, 6), nn.Dropout(0.0)])
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0](self.norm(self.to_q(x)))


class Net(nn.Module):
    """Two blocks and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2, 6, 3, padding=1)
        self.attn1, self.attn2 = Attention(), Attention()

    def forward(self, x: Tensor) -> Tensor:
        return self.attn2(self.attn1(self.conv_in(x).flatten(2).transpose(1, 2)))


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"unet": Net(), "text_encoder": Attention()}


def spec(*targets: str, rank: int = 2, alpha: float = 2.0, dropout: float = 0.0) -> LoraSpec:
    return LoraSpec(rank, alpha, targets, dropout)


def picture() -> Tensor:
    return torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def fill(injection: Injection) -> None:
    with torch.no_grad():
        for name, parameter in injection.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(2))


def same(one: AdapterWeights, other: AdapterWeights) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[n].down, other[n].down) and torch.equal(one[n].up, other[n].up) for n in one
    )


def test_reports_what_each_target_matched(networks: dict[str, nn.Module]) -> None:
    injection = inject(networks, {"unet": spec("to_q", "attn1.to_out.0", "conv_in"), "text_encoder": spec("to_q")}, 0)
    assert injection.matches == (
        Match("unet", "to_q", ("unet.attn1.to_q", "unet.attn2.to_q")),
        Match("unet", "attn1.to_out.0", ("unet.attn1.to_out.0",)),
        Match("unet", "conv_in", ("unet.conv_in",)),
        Match("text_encoder", "to_q", ("text_encoder.to_q",)),
    )
    factors = injection.weights()
    assert set(factors) == {path for match in injection.matches for path in match.modules}
    assert factors["unet.conv_in"].shape == (6, 2, 3, 3)
    assert len(injection.parameters()) == 10
    assert len(injection.by_network("text_encoder")) == 2
    assert injection.by_network("vae") == []


def test_a_target_is_a_whole_name_not_an_ending_of_letters(networks: dict[str, nn.Module]) -> None:
    with raises_code("adapter.target_matches_nothing"):
        inject(networks, {"unet": spec("o_q")}, 0)


def test_the_same_layer_gets_the_same_a_whatever_else_is_targeted(networks: dict[str, nn.Module]) -> None:
    alone = inject(copy.deepcopy(networks), {"unet": spec("attn2.to_q")}, 7).weights()
    specs = {"text_encoder": spec("to_q"), "unet": spec("conv_in", "to_q")}
    among = inject(copy.deepcopy(networks), specs, 7).weights()
    other = inject(copy.deepcopy(networks), {"unet": spec("attn2.to_q")}, 8).weights()
    path = "unet.attn2.to_q"
    assert torch.equal(alone[path].down, among[path].down)
    assert not torch.equal(alone[path].down, other[path].down)
    assert not torch.equal(among[path].down, among["unet.attn1.to_q"].down)


def test_draws_nothing_from_the_global_generator(networks: dict[str, nn.Module]) -> None:
    before = torch.get_rng_state()
    inject(networks, {"unet": spec("to_q", "conv_in")}, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_adapter_is_float32_on_a_bfloat16_base(networks: dict[str, nn.Module]) -> None:
    unet = networks["unet"].to(torch.bfloat16)
    injection = inject(networks, {"unet": spec("to_q", "conv_in")}, 0)
    assert {parameter.dtype for parameter in injection.parameters()} == {torch.float32}
    assert unet(picture().bfloat16()).dtype == torch.bfloat16
    single = inject({"unet": Net()}, {"unet": spec("to_q", "conv_in")}, 0)
    assert same(injection.weights(), single.weights())


def test_freezes_every_network_by_identity(networks: dict[str, nn.Module]) -> None:
    networks["unet"].lora_lookalike = nn.Parameter(torch.ones(2))  # a name proves nothing
    injection = inject(networks, {"unet": spec("to_q")}, 0)
    trained = {id(parameter) for parameter in injection.parameters()}
    for network in networks.values():
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad == (id(parameter) in trained), name


def test_eject_puts_the_very_modules_back(networks: dict[str, nn.Module]) -> None:
    unet = networks["unet"]
    unet.attn1.to_q.weight.requires_grad_(False)
    modules, state = dict(unet.named_modules()), {k: v.clone() for k, v in unet.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
    attributes = set(vars(unet))
    before = unet(picture())
    injection = inject(networks, {"unet": spec("to_q", "to_out.0", "conv_in")}, 0)
    fill(injection)
    changed, factors = unet(picture()), injection.weights()
    injection.eject()
    assert not torch.equal(changed, before)
    assert torch.equal(unet(picture()), before)
    assert list(dict(unet.named_modules())) == list(modules)
    assert all(module is modules[name] for name, module in unet.named_modules())
    assert {name: parameter.requires_grad for name, parameter in unet.named_parameters()} == flags
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())
    assert set(vars(unet)) == attributes
    assert same(injection.weights(), factors)


def test_eject_twice_leaves_a_newer_adapter_alone(networks: dict[str, nn.Module]) -> None:
    first = inject(networks, {"unet": spec("to_q")}, 0)
    first.eject()
    second = inject(networks, {"unet": spec("to_q")}, 1)
    fill(second)
    adapted = networks["unet"](picture())
    first.eject()
    assert torch.equal(networks["unet"](picture()), adapted)
    assert all(parameter.requires_grad for parameter in second.parameters())


def test_disabled_is_the_base(networks: dict[str, nn.Module]) -> None:
    before = networks["unet"](picture())
    injection = inject(networks, {"unet": spec("to_q", "conv_in")}, 0)
    fill(injection)
    injection.parameters()[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in injection.parameters()]
    adapted = networks["unet"](picture())
    with pytest.raises(RuntimeError, match="inside"), injection.disabled():
        assert torch.equal(networks["unet"](picture()), before)
        raise RuntimeError("inside")
    assert torch.equal(networks["unet"](picture()), adapted)
    assert [parameter.requires_grad for parameter in injection.parameters()] == flags


def test_disabled_within_disabled_stays_so(networks: dict[str, nn.Module]) -> None:
    before = networks["unet"](picture())
    injection = inject(networks, {"unet": spec("to_q")}, 0)
    fill(injection)
    with injection.disabled():
        with injection.disabled():
            pass
        assert torch.equal(networks["unet"](picture()), before)
    assert not torch.equal(networks["unet"](picture()), before)


def test_dropout_is_active_in_training_only(networks: dict[str, nn.Module]) -> None:
    networks["unet"].eval()
    injection = inject(networks, {"unet": spec("to_q", dropout=0.5)}, 0)
    fill(injection)
    assert torch.equal(networks["unet"](picture()), networks["unet"](picture()))
    networks["unet"].train()
    assert not torch.equal(networks["unet"](picture()), networks["unet"](picture()))


def test_alpha_over_rank_is_the_strength(networks: dict[str, nn.Module]) -> None:
    def change(alpha: float) -> Tensor:
        unet = copy.deepcopy(networks["unet"])
        base = unet(picture())
        injection = inject({"unet": unet}, {"unet": spec("attn2.to_out.0", alpha=alpha)}, 0)
        fill(injection)
        return unet(picture()) - base

    torch.testing.assert_close(change(8.0), 4 * change(2.0), rtol=1e-4, atol=1e-5)


def test_load_takes_the_strength_of_the_file(networks: dict[str, nn.Module]) -> None:
    injection = inject(networks, {"unet": spec("to_q", "conv_in", alpha=6.0)}, 0)
    fill(injection)
    adapted, factors = networks["unet"](picture()), injection.weights()
    injection.eject()
    other = inject(networks, {"unet": spec("to_q", "conv_in", alpha=1.5)}, 9)
    other.load(factors)
    assert torch.equal(networks["unet"](picture()), adapted)  # a ratio of four, so B keeps its bits
    assert {each.alpha for each in other.weights().values()} == {1.5}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (
            lambda f: f.pop("unet.attn1.to_q"),
            "adapter.other_layers",
            "nothing for unet.attn1.to_q, which is adapted here (1 such layers)",
        ),
        (
            lambda f: f.update({"unet.attn1.to_out.0": f["unet.attn1.to_q"]}),
            "adapter.other_layers",
            "changes unet.attn1.to_out.0, which is not adapted here",
        ),
        (
            lambda f: f.update({"unet.attn9.to_q": f["unet.attn1.to_q"]}),
            "adapter.other_architecture",
            "changes unet.attn9.to_q (6, 6), which the base lacks",
        ),
        (
            lambda f: f.update({"unet.attn1.to_q": LoraFactors(torch.ones(2, 7), torch.ones(6, 2), 1.0)}),
            "adapter.other_architecture",
            "unet.attn1.to_q is (6, 7) in it and (6, 6) in the base",
        ),
        (
            lambda f: f.update({"unet.attn1.to_q": LoraFactors(torch.ones(3, 6), torch.ones(6, 3), 1.0)}),
            "adapter.other_rank",
            "unet.attn1.to_q has rank 3 in the adapter and 2 here",
        ),
    ],
)
def test_load_is_strict_both_ways(networks: dict[str, nn.Module], change: object, code: str, words: str) -> None:
    injection = inject(networks, {"unet": spec("to_q")}, 0)
    before, given = injection.weights(), injection.weights()
    change(given)  # type: ignore[operator]
    with raises_code(code, words):
        injection.load(given)
    assert same(injection.weights(), before)


def refused(networks: Mapping[str, nn.Module], specs: Mapping[str, LoraSpec], code: str) -> str:
    """Check that specs are refused with this code and nothing was changed; return the message."""
    modules = {prefix: dict(network.named_modules()) for prefix, network in networks.items()}
    with raises_code(code) as error:
        inject(networks, specs, 0)
    for prefix, network in networks.items():
        assert dict(network.named_modules()) == modules[prefix]
        assert all(parameter.requires_grad for parameter in network.parameters())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refuses_a_target_that_matches_nothing(networks: dict[str, nn.Module]) -> None:
    message = refused(networks, {"unet": spec("to_q"), "text_encoder": spec("to_qq")}, "adapter.target_matches_nothing")
    assert message == "target 'to_qq' matches nothing in text_encoder; did you mean to_q or to_out.0?"
    assert "attn1.to_out.0" in refused(networks, {"unet": spec("attn1.to_out.1.0")}, "adapter.target_matches_nothing")


def test_says_so_when_a_target_has_no_neighbour(networks: dict[str, nn.Module]) -> None:
    assert refused(networks, {"text_encoder": spec("xyz")}, "adapter.target_matches_nothing").endswith(
        "did you mean to_out.0 or to_q?"
    )


def test_refuses_a_target_of_another_kind(networks: dict[str, nn.Module]) -> None:
    assert "LayerNorm in unet, which is neither Linear nor Conv2d" in refused(
        networks, {"unet": spec("attn1.norm")}, "adapter.target_is_no_layer"
    )
    message = refused(networks, {"unet": spec("attn1")}, "adapter.target_is_no_layer")
    assert message.endswith("which is neither Linear nor Conv2d; name layers inside, as attn1.to_q attn1.to_out.0")
    message = refused(networks, {"unet": spec("to_out")}, "adapter.target_is_no_layer")
    assert "names ModuleList in unet" in message and message.endswith("as to_out.0")


def test_leaves_layers_of_another_kind_under_the_same_name_alone() -> None:
    network = nn.ModuleDict({"to_q": nn.Linear(3, 3), "deep": nn.ModuleDict({"to_q": nn.LayerNorm(3)})})
    injection = inject({"unet": network}, {"unet": spec("to_q")}, 0)
    assert injection.matches == (Match("unet", "to_q", ("unet.to_q",)),)
    assert type(network["deep"]["to_q"]) is nn.LayerNorm


def test_refuses_targets_that_overlap(networks: dict[str, nn.Module]) -> None:
    message = refused(networks, {"unet": spec("to_q", "attn1.to_q")}, "adapter.targets_overlap")
    assert message == "targets 'to_q' and 'attn1.to_q' both name unet.attn1.to_q; keep one"
    assert "both name" in refused(networks, {"unet": spec("to_q", "to_q")}, "adapter.targets_overlap")


def test_refuses_a_rank_larger_than_the_matrix(networks: dict[str, nn.Module]) -> None:
    message = refused(networks, {"unet": spec("to_q", rank=7)}, "adapter.rank_too_large")
    assert message == "rank 7 is larger than the matrix of unet.attn1.to_q (6, 6); use at most 6"
    inject(networks, {"unet": spec("to_q", "conv_in", rank=6)}, 0)


@pytest.mark.parametrize("layer", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}])
def test_refuses_a_convolution_that_peft_would_get_wrong(layer: dict[str, object]) -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, **layer))  # type: ignore[arg-type]
    assert "groups, dilation or padding" in refused(
        {"unet": network}, {"unet": spec("0")}, "adapter.unsupported_convolution"
    )


def test_refuses_an_unknown_network(networks: dict[str, nn.Module]) -> None:
    message = refused(networks, {"transformer": spec("to_q")}, "adapter.unknown_network")
    assert message == "the base has no 'transformer' to adapt; it has unet, text_encoder"


def test_refuses_a_second_adapter(networks: dict[str, nn.Module]) -> None:
    inject(networks, {"text_encoder": spec("to_q")}, 0)
    with raises_code("adapter.already_adapted", "text_encoder carries an adapter already"):
        inject(networks, {"unet": spec("to_q")}, 0)


def test_warns_of_nothing(networks: dict[str, nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inject(networks, {"unet": spec("to_q", "conv_in", "to_out.0")}, 0).eject()

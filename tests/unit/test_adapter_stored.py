"""Every method that is read: fitted, merged, stacked, kept, computed beside a layer, refused where it does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.adapter_methods import IN, OUT, PARTS, adapters, filled
from tests.errors import raises_code
from tools.reference import methods
from veneer.adapter.apply import apply_adapter
from veneer.adapter.blend import BlendPart, blend
from veneer.adapter.loha import LohaFactors
from veneer.adapter.lokr import LokrFactors
from veneer.adapter.merge import combine, merge
from veneer.adapter.protocol import LayerAdapter
from veneer.adapter.registry import METHODS, TRAINED, from_tensors, to_tensors
from veneer.adapter.resize import resize
from veneer.adapter.stack import AdapterStack
from veneer.engine.adapter_bank import AdapterBank
from veneer.engine.quantized import quantize
from veneer.weights.formats.tensors import adapter_of

NAMES = list(PARTS)
OF_LAYERS = [name for name in NAMES if name != "norm"]


def read(parts: Mapping[str, Tensor]) -> LayerAdapter:
    return adapter_of("x", parts, lambda _: None)


def base() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {"net": nn.ModuleDict({"layer": nn.Linear(IN, OUT), "norm": nn.LayerNorm(OUT)})}


def place(name: str) -> str:
    return "net.norm" if name == "norm" else "net.layer"


def layer_of(networks: Mapping[str, nn.Module], name: str) -> Any:
    return networks["net"].get_submodule(place(name).removeprefix("net."))


def test_there_is_an_example_of_every_method() -> None:
    assert set(NAMES) == METHODS.keys()
    told = {name: adapter.method.name for name, adapter in adapters().items()}
    assert {name for name in NAMES if told[name] != name} == {"dylora"}  # it is a LoRA


@pytest.mark.parametrize("name", NAMES)
def test_what_the_table_of_methods_says_is_so(name: str) -> None:
    adapter = adapters()[name].fitted((OUT,) if name == "norm" else (OUT, IN))
    assert adapter is not None and adapter.method.is_mergeable
    assert (adapter.low_rank() is not None) == adapter.method.is_low_rank
    columns = dict(zip(table_columns(), table_rows()[name], strict=True)) if name in table_rows() else {}
    weights, networks = {place(name): adapter}, base()
    acts: dict[str, Callable[[], object]] = {
        "batch": lambda: AdapterBank(networks).add("one", weights),
        "resize": lambda: resize(weights, 1),
        "blend": lambda: blend([BlendPart(weights, 1.0)], rank=8 if columns["blend"] == "with `--rank`" else None),
    }
    for column, act in acts.items() if columns else ():
        if columns[column].startswith("`"):
            with raises_code(columns[column].strip("`")):
                act()
        else:
            act()
    if columns and columns["blend"] == "with `--rank`":
        with raises_code("adapter.cannot_combine"):
            blend([BlendPart(weights, 1.0)])


def table_columns() -> list[str]:
    return [cell.strip() for cell in methods.table().splitlines()[0].strip("| ").split("|")]


def table_rows() -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in methods.table().splitlines()[2:]]
    return {row[0].partition("(`")[2].rstrip("`)"): row for row in rows}


@pytest.mark.parametrize("name", OF_LAYERS)
def test_a_blend_does_what_its_one_part_does(name: str) -> None:
    adapter = adapters()[name].fitted((OUT, IN))
    assert adapter is not None
    if not adapter.method.is_additive:
        with raises_code("adapter.cannot_combine"):
            combine([({"net.layer": adapter}, 1.0)])
        return
    one = blend([BlendPart({"net.layer": adapter}, 0.5)], rank=8).weights["net.layer"]
    torch.testing.assert_close(one.delta_weight(torch.empty(0)), 0.5 * adapter.delta_weight(torch.empty(0)))
    bias = adapter.delta_bias(torch.zeros(OUT))
    assert bias is None or torch.equal(one.delta_bias(torch.zeros(OUT)), 0.5 * bias)  # type: ignore[arg-type]


def test_a_bias_of_b_keeps_its_size_where_the_rank_is_cut() -> None:
    adapter = adapters()["biased"]
    cut = resize({"net.layer": adapter}, 1)["net.layer"]
    bias, own = adapter.delta_bias(torch.zeros(OUT)), cut.delta_bias(torch.zeros(OUT))
    assert bias is not None and own is not None
    torch.testing.assert_close(own, bias)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_kept_bit_for_bit(name: str) -> None:
    adapter = adapters()[name].fitted((OUT,) if name == "norm" else (OUT, IN))
    assert adapter is not None
    again = from_tensors(to_tensors({"net.a.b": adapter}))["net.a.b"]
    assert type(again) is type(adapter) and again.shape == adapter.shape
    assert again.method.title == adapter.method.title and again.hyperparameters == adapter.hyperparameters
    one, other = adapter.state_dict(), again.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[part], other[part]) for part in one)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_it_is_merged_weighed_and_taken_out_again_to_the_bit(name: str, dtype: torch.dtype) -> None:
    networks, adapter = base(), adapters()[name]
    networks["net"].to(dtype)
    layer = layer_of(networks, name)
    before = layer.weight.clone(), layer.bias.clone()
    merged = merge(networks, [({place(name): adapter}, 0.5)])
    wide = before[0].float()
    fitted = adapter.fitted(tuple(layer.weight.shape))
    assert fitted is not None
    assert torch.equal(layer.weight, (wide + 0.5 * fitted.delta_weight(wide)).to(dtype))
    change = fitted.delta_bias(before[1].float())
    assert torch.equal(layer.bias, before[1] if change is None else (before[1].float() + 0.5 * change).to(dtype))
    assert not torch.equal(layer.weight, before[0])
    merged.undo()
    assert torch.equal(layer.weight, before[0]) and torch.equal(layer.bias, before[1])


@torch.no_grad()
def test_all_methods_stack_and_leave_the_base_to_the_bit() -> None:
    networks, own = base(), adapters()
    before = {path: tensor.clone() for path, tensor in networks["net"].state_dict().items()}
    stack = AdapterStack(networks)
    for name, adapter in own.items():
        stack.add(name, {place(name): adapter}, 0.25)
    alone = [networks["net"].state_dict()["layer.weight"].clone()]
    for name in ("lokr", "oft", "norm"):
        stack.remove(name)
    for name in ("norm", "oft", "lokr"):
        stack.add(name, {place(name): own[name]}, 0.25)
    torch.testing.assert_close(networks["net"].state_dict()["layer.weight"], alone[0])
    stack.clear()
    assert all(torch.equal(tensor, before[path]) for path, tensor in networks["net"].state_dict().items())


@pytest.mark.parametrize("name", OF_LAYERS)
@torch.no_grad()
def test_beside_a_quantised_layer_it_does_what_it_does_merged(name: str) -> None:
    networks, adapter = base(), adapters()[name]
    quantize(networks["net"], "float16")
    quantised: Any = networks["net"].get_submodule("layer")
    x = torch.randn(4, IN)
    alone = networks["net"].get_submodule("layer")(x)
    plain = nn.Linear(IN, OUT)
    plain.weight.copy_(torch.as_tensor(quantised.weight))
    plain.bias.copy_(quantised.bias)
    merge({"net": nn.ModuleDict({"layer": plain})}, [({"net.layer": adapter}, 1.0)])
    with apply_adapter(networks, {"net.layer": adapter}):
        torch.testing.assert_close(networks["net"].get_submodule("layer")(x), plain(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(networks["net"].get_submodule("layer")(x), alone)


@torch.no_grad()
def test_norms_of_other_classes_are_changed_too() -> None:
    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(OUT))

    networks: dict[str, nn.Module] = {"net": nn.ModuleDict({"norm": OwnNorm(), "rms": nn.RMSNorm(OUT)})}
    difference = read({"w_norm": torch.arange(float(OUT))})
    merged = merge(networks, [({"net.norm": difference, "net.rms": difference}, 1.0)])
    assert torch.equal(networks["net"].get_submodule("norm").weight, 1 + torch.arange(float(OUT)))  # type: ignore[arg-type]
    merged.undo()
    with raises_code("adapter.other_architecture", "a bias of 12 in it and no bias in the base"):
        merge(networks, [({"net.norm": adapters()["norm"]}, 1.0)])


@pytest.mark.parametrize("name", ["full", "biased"])
def test_a_base_without_the_bias_is_refused(name: str) -> None:
    networks: dict[str, nn.Module] = {"net": nn.ModuleDict({"layer": nn.Linear(IN, OUT, bias=False)})}
    before = networks["net"].get_submodule("layer").weight
    with raises_code("adapter.other_architecture", "no bias in the base"):
        merge(networks, [({"net.layer": adapters()[name]}, 1.0)])
    assert networks["net"].get_submodule("layer").weight is before


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_another_size_is_refused(name: str) -> None:
    for shape in ((OUT + 1,), (OUT + 1, IN + 1), (OUT + 1, IN + 1, 3, 3)):
        assert adapters()[name].fitted(shape) is None
    networks: dict[str, nn.Module] = {"net": nn.ModuleDict({"layer": nn.Linear(IN + 1, OUT + 1)})}
    with raises_code("adapter.other_architecture"):
        merge(networks, [({"net.layer": adapters()[name]}, 1.0)])


@pytest.mark.parametrize("name", [name for name in OF_LAYERS if name not in ("dylora", "replaced", "oft_of_peft")])
def test_a_convolution_of_1_x_1_is_a_linear_layer(name: str) -> None:
    adapter = adapters()[name]
    flat, deep = adapter.fitted((OUT, IN)), adapter.fitted((OUT, IN, 1, 1))
    assert flat is not None and deep is not None
    weight = torch.randn(OUT, IN)
    found = deep.delta_weight(weight[..., None, None])
    torch.testing.assert_close(found.flatten(1), flat.delta_weight(weight))
    assert found.shape == (OUT, IN, 1, 1)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRAINED])
def test_a_missing_part_is_named_or_refused(name: str) -> None:
    parts = filled(PARTS[name])
    optional = {"alpha", "rescale", "dora_scale", "diff", "diff_b", "b_norm", "up_bias"}
    for part in PARTS[name]:
        if part in optional or part == "w_norm":
            continue
        rest = {other: tensor for other, tensor in parts.items() if other != part}
        with pytest.raises(Exception) as caught:
            read(rest)
        assert (
            getattr(caught.value, "code", "")
            in {
                "adapter.missing_part",
                "adapter.bad_factors",
                "weights.mixed_parts",
            }
            or not rest
        )
    with raises_code("adapter.missing_part"):
        read({"b_norm": torch.ones(3)})


HUGE: dict[str, dict[str, tuple[int, ...]]] = {
    "loha": {"hada_w1_a": (2**20, 1), "hada_w1_b": (1, 2**20), "hada_w2_a": (2**20, 1), "hada_w2_b": (1, 2**20)},
    "lokr": {"lokr_w1": (2**10, 2**10), "lokr_w2": (2**10, 2**10)},
    "lokr, factors": {"lokr_w1": (1, 1), "lokr_w2_a": (2**20, 1), "lokr_w2_b": (1, 2**20)},
    "glora": {
        "glora_a1": (2**20, 1),
        "glora_a2": (1, 2**20),
        "glora_b1": (2**20, 1),
        "glora_b2": (1, 2**20),
    },
}


@pytest.mark.parametrize("name", HUGE)
def test_what_would_make_a_huge_weight_is_refused_by_its_shapes(name: str) -> None:
    parts = {part: torch.ones(shape) for part, shape in HUGE[name].items()}
    with raises_code("adapter.bad_factors", "more than a layer has"):
        read(parts)


def test_the_size_of_delta_takes_no_delta() -> None:
    """Factors of a few megabytes that would make gigabytes: what is allocated stays below the factors' own size."""
    thin = {"hada_w1_a": (2**14, 1), "hada_w1_b": (1, 2**14), "hada_w2_a": (2**14, 1), "hada_w2_b": (1, 2**14)}
    wide = {"lokr_w1": (1, 1), "lokr_w2_a": (2**14, 2), "lokr_w2_b": (2, 2**14)}
    for shapes, expected in ((thin, 2.0**28), (wide, 4 * 2.0**28)):
        adapter = read({part: torch.ones(shape) for part, shape in shapes.items()})
        with Largest() as largest:
            assert adapter.squared_norm() == pytest.approx(expected)
        assert largest.numbers <= 2**19


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [
            one.numel() for one in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(one, Tensor)
        ]
        self.numbers = max([self.numbers, *sizes])
        return made


BAD: dict[str, dict[str, tuple[int, ...]]] = {
    "loha ranks": {"hada_w1_a": (4, 2), "hada_w1_b": (3, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 4)},
    "loha halves": {"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (5, 2), "hada_w2_b": (2, 4)},
    "loha scalar": {"hada_w1_a": (), "hada_w1_b": (), "hada_w2_a": (), "hada_w2_b": ()},
    "lokr both": {"lokr_w1": (2, 2), "lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2": (2, 2)},
    "lokr two ranks": {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)},
    "lokr axes": {"lokr_w1": (2, 2, 2), "lokr_w2": (2, 2)},
    "oft": {"oft_blocks": (3, 4, 5)},
    "oft vector": {"oft_blocks": (3,)},
    "oft rescale": {"oft_blocks": (3, 4, 4), "rescale": (11, 1)},
    "boft": {"oft_blocks": (9, 3, 4, 4)},
    "boft many": {"oft_blocks": (200, 3, 4, 4)},
    "boft odd": {"oft_blocks": (2, 4, 3, 3)},
    "glora": {"glora_a1": (4, 2), "glora_a2": (3, 4), "glora_b1": (4, 2), "glora_b2": (2, 4)},
    "glora inputs": {"glora_a1": (4, 2), "glora_a2": (2, 4), "glora_b1": (4, 2), "glora_b2": (2, 5)},
    "ia3": {"ia3_weight": (3, 4), "on_input": ()},
    "ia3 number": {"ia3_weight": (3,), "on_input": (2,)},
    "full": {"diff": (3, 4), "diff_b": (4,)},
    "full axes": {"diff": (3, 4, 2), "diff_b": (3,)},
    "bias": {"down": (2, 4), "up": (3, 2), "diff_b": (4,)},
    "two biases": {"down": (2, 4), "up": (3, 2), "diff_b": (3,), "up_bias": (3,)},
    "bias of B": {"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 4), "up_bias": (4,)},
    "norm": {"w_norm": (3, 3)},
    "doha": {**PARTS["loha"], "dora_scale": (5, 1)},
    "dylora": {"down_list.0": (1, 4), "down_list.2": (1, 4), "up_list.0": (4, 1), "up_list.1": (4, 1)},
    "dylora layers": {"down_list.0": (1, 4), "down_list.1": (1, 5), "up_list.0": (4, 1), "up_list.1": (4, 1)},
}


@pytest.mark.parametrize("name", BAD)
def test_tensors_that_do_not_fit_together_are_refused(name: str) -> None:
    with pytest.raises(Exception) as caught:
        read({part: torch.ones(shape) for part, shape in BAD[name].items()})
    code = getattr(caught.value, "code", repr(caught.value))
    assert code in {"adapter.bad_factors", "adapter.bad_alpha", "adapter.missing_part"}, caught.value


def test_infinite_alpha_counts_only_where_nobody_asks_for_it() -> None:
    whole = {"lokr_w1": torch.ones(3, 2), "lokr_w2": torch.ones(4, 4), "alpha": torch.tensor(math.inf)}
    assert torch.equal(read(whole).delta_weight(torch.empty(0)), torch.ones(OUT, IN))
    with raises_code("adapter.bad_alpha"):
        read({**filled(PARTS["lokr"]), "alpha": torch.tensor(math.inf)})


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "glora"])
def test_the_scalar_of_lycoris_multiplies_delta(name: str) -> None:
    parts, weight = filled(PARTS[name]), torch.randn(OUT, IN)
    plain, scaled = read(parts), read({**parts, "scalar": torch.tensor(0.25)})
    torch.testing.assert_close(scaled.delta_weight(weight), 0.25 * plain.delta_weight(weight))


def test_glora_of_older_releases_is_the_other_way_round() -> None:
    parts, weight = filled(PARTS["glora"]), torch.randn(OUT, IN)
    swapped = {"glora_a1": "glora_a2", "glora_a2": "glora_a1", "glora_b1": "glora_b2", "glora_b2": "glora_b1"}
    older = read({**parts, **{part: parts[other] for part, other in swapped.items()}})
    assert torch.equal(older.delta_weight(weight), read(parts).delta_weight(weight))


def test_dylora_is_the_lora_of_its_blocks() -> None:
    parts, alpha = filled(PARTS["dylora"]), {"alpha": torch.tensor(3.0)}
    expected = 1.5 * sum(parts[f"up_list.{place}"] @ parts[f"down_list.{place}"] for place in (0, 1))
    torch.testing.assert_close(read({**parts, **alpha}).delta_weight(torch.empty(0)), expected)


def test_oft_of_kohya_turns_as_its_own_formula_does() -> None:
    """sd-scripts, ``networks/oft.py``: R = (I + Q)(I - Q)^-1, Q shortened to alpha times outputs, (k n m, k n p)."""
    blocks, weight = torch.randn(3, 4, 4), torch.randn(OUT, IN)
    for alpha in (1e-3, 10.0):
        skew = blocks - blocks.transpose(1, 2)
        length = torch.norm(skew.flatten())
        skew = skew * ((torch.clamp(length, max=alpha * OUT) + 1e-8) / (length + 1e-8))
        turned = torch.matmul(torch.eye(4) + skew, (torch.eye(4) - skew).inverse())
        expected = torch.einsum("knm,knp->kmp", turned, weight.reshape(3, 4, IN)).reshape(OUT, IN)
        found = read({"oft_blocks": blocks, "alpha": torch.tensor(alpha)}).delta_weight(weight)
        torch.testing.assert_close(weight + found, expected, rtol=1e-4, atol=1e-5)


sizes = st.integers(1, 6)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])


@settings(max_examples=50, deadline=None)
@given(out=sizes, width=sizes, rank=sizes, kernel=st.integers(1, 3), alpha=st.floats(0.1, 10), dtype=dtypes)
def test_loha_is_the_product_entry_by_entry(
    out: int, width: int, rank: int, kernel: int, alpha: float, dtype: torch.dtype
) -> None:
    shapes = {"hada_w1_a": (out, rank), "hada_w1_b": (rank, width * kernel**2)}
    shapes |= {part.replace("w1", "w2"): shape for part, shape in shapes.items()}
    parts = {part: tensor.float() for part, tensor in filled(shapes, dtype=dtype).items()}  # as 8 bits are read
    read_one = read({**parts, "alpha": torch.tensor(alpha)})
    assert isinstance(read_one, LohaFactors)
    adapter = read_one.fitted((out, width, kernel, kernel))
    assert adapter is not None
    halves = [parts[f"hada_w{half}_a"].double() @ parts[f"hada_w{half}_b"].double() for half in (1, 2)]
    expected = float(torch.tensor(alpha)) / rank * halves[0] * halves[1]
    found = adapter.to("cpu", torch.float64).delta_weight(torch.empty(0))
    torch.testing.assert_close(found, expected.reshape(out, width, kernel, kernel))
    assert adapter.squared_norm() == pytest.approx(float(expected.square().sum()), rel=1e-6, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    a=sizes,
    b=sizes,
    c=sizes,
    d=sizes,
    rank=sizes,
    kernel=st.integers(1, 3),
    first=st.booleans(),
    second=st.integers(0, 2),
)
def test_lokr_is_the_kronecker_product(
    a: int, b: int, c: int, d: int, rank: int, kernel: int, first: bool, second: int
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"lokr_w1": (a, c)}
    if first:
        shapes = {"lokr_w1_a": (a, rank), "lokr_w1_b": (rank, c)}
    if second == 0:
        shapes |= {"lokr_w2": (b, d, kernel, kernel)}
    elif second == 1:
        shapes |= {"lokr_w2_a": (b, rank), "lokr_w2_b": (rank, d * kernel**2)}
    else:
        shapes |= {"lokr_w2_a": (rank, b), "lokr_w2_b": (rank, d), "lokr_t2": (rank, rank, kernel, kernel)}
    parts = filled(shapes, dtype=torch.float64)
    told = read({**parts, "alpha": torch.tensor(3.0)})
    assert isinstance(told, LokrFactors)
    adapter = told.fitted((a * b, c * d, kernel, kernel))
    assert adapter is not None
    one = parts["lokr_w1_a"] @ parts["lokr_w1_b"] if first else parts["lokr_w1"]
    if second == 0:
        two = parts["lokr_w2"]
    elif second == 1:
        two = (parts["lokr_w2_a"] @ parts["lokr_w2_b"]).reshape(b, d, kernel, kernel)
    else:
        two = torch.einsum("pqhw,po,qi->oihw", parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
    scale = 3.0 / rank if first or second else 1.0
    expected = scale * torch.einsum("ac,bdhw->abcdhw", one, two).reshape(a * b, c * d, kernel, kernel)
    torch.testing.assert_close(adapter.delta_weight(torch.empty(0)), expected)
    assert adapter.squared_norm() == pytest.approx(float(expected.square().sum()), rel=1e-6, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(blocks=st.integers(1, 4), size=st.sampled_from([2, 4, 6]), stages=st.integers(1, 3), limit=st.floats(0, 1))
def test_rotations_keep_the_length_of_every_column(blocks: int, size: int, stages: int, limit: float) -> None:
    count = blocks * 2 ** (stages - 1)
    weight = torch.randn(count * size, 5, dtype=torch.float64)
    for shape in ((count, size, size), (stages, count, size, size)):
        parts = filled({"oft_blocks": shape}, dtype=torch.float64)
        turned = weight + read({**parts, "alpha": torch.tensor(limit)}).delta_weight(weight)
        torch.testing.assert_close(turned.norm(dim=0), weight.norm(dim=0))


@settings(max_examples=30, deadline=None)
@given(
    stride=st.integers(1, 2), padding=st.integers(0, 2), name=st.sampled_from(["loha", "lokr", "full", "oft", "ia3"])
)
@torch.no_grad()
def test_beside_a_convolution_it_has_the_convolution_s_geometry(stride: int, padding: int, name: str) -> None:
    layer = nn.Conv2d(IN, OUT, 3, stride=stride, padding=padding)
    shapes = {
        "loha": {**PARTS["loha"], "hada_w1_b": (2, IN * 9), "hada_w2_b": (2, IN * 9)},
        "lokr": {"lokr_w1": (3, 2), "lokr_w2": (4, 4, 3, 3)},
        "full": {"diff": (OUT, IN, 3, 3), "diff_b": (OUT,)},
        "lora": (lora := {"down": (2, IN, 3, 3), "up": (OUT, 2, 1, 1), "alpha": ()}),
        "dora": {**lora, "dora_scale": (OUT, 1, 1, 1)},
        "biased": {**lora, "up_bias": (OUT,)},
    }.get(name, PARTS[name])
    adapter = read(filled(shapes)).fitted((OUT, IN, 3, 3))
    assert adapter is not None
    x = torch.randn(2, IN, 6, 6)
    bias = adapter.delta_bias(layer.bias)  # type: ignore[arg-type]
    change = functional.conv2d(x, adapter.delta_weight(layer.weight), bias, stride, padding)
    torch.testing.assert_close(adapter.bypass(layer)(x, layer(x)), layer(x) + change, rtol=1e-4, atol=1e-4)


def test_numbers_of_a_convolution_may_be_of_inputs_too_where_no_config_tells() -> None:
    parts = {"ia3_l": torch.full((1, OUT, 1, 1), 2.0)}
    for settings_of in (None, {"feedforward_modules": ["conv2"]}):
        with raises_code("weights.unsupported_method"):
            adapter_of("x", parts, lambda _, told=settings_of: told)
    told = adapter_of("x", parts, lambda _: {"feedforward_modules": []}).fitted((OUT, IN, 3, 3))
    weight = torch.randn(OUT, IN, 3, 3)
    assert told is not None and told.delta_weight(weight).equal(weight)

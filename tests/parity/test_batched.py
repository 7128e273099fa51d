"""A batch of many adapters against each alone: by the closed form, a merge, peft's own mixed batches, and diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn

from tests.equations import lora_forward
from tests.tolerance import distance, output_error
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.adapter.merge import combine, merge
from veneer.adapter.protocol import AdapterWeights
from veneer.engine.adapter_bank import AdapterBank, Row
from veneer.engine.row_adapters import group_rows
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.sample.generate import generate, generate_each

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "v_proj", "fc1")
CONVOLUTIONS = ("conv1", "conv_shortcut", "proj_in", "downsamplers.0.conv", "time_emb_proj")


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def factors_for(shape: tuple[int, ...], rank: int, alpha: float, seed: int, dtype: torch.dtype) -> LoraFactors:
    """Random factors of a layer's weight (out, in) or (out, in, kh, kw), of a size that changes its output visibly."""
    down = draw((rank, *shape[1:]), seed, dtype) / torch.Size(shape[1:]).numel() ** 0.5
    return LoraFactors(down, draw((shape[0], rank, *(1 for _ in shape[2:])), seed + 1, dtype), alpha)


def adapter_for(networks: Mapping[str, nn.Module], targets: tuple[str, ...], rank: int, seed: int) -> AdapterWeights:
    found = {p: layer for p, layer in layers_of(networks).items() if p.endswith(tuple(f".{t}" for t in targets))}
    shapes = {path: tuple(layer.weight.shape) for path, layer in found.items()}
    assert shapes
    return {
        p: factors_for(s, rank, 0.5 * rank, seed * 1000 + i, torch.float32) for i, (p, s) in enumerate(shapes.items())
    }


# ---- one layer, against the closed form

width = st.integers(1, 6)
names = st.sampled_from(("one", "two", "three"))
weights = st.floats(-2, 2).filter(bool)
row = st.one_of(st.none(), names, st.tuples(names, weights), st.dictionaries(names, weights, max_size=3))
ranks = st.fixed_dictionaries({name: st.sampled_from((1, 2, 3, 8, 17)) for name in ("one", "two", "three")})


class Alone(nn.Module):
    """A layer under a name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.double().requires_grad_(False)


def check_layer(layer: Any, x: Tensor, rows: Sequence[Row], ranks: Mapping[str, int], copies: int) -> None:
    shape = tuple(layer.weight.shape)
    made = {name: factors_for(shape, rank, 3.0, 7 * rank, torch.float64) for name, rank in ranks.items()}
    bank = AdapterBank({"net": Alone(layer)})
    for name, factors in made.items():
        bank.add(name, {"net.layer": factors})
    base = layer(x)
    with bank.rows(rows, guidance=copies == 2):
        distributed = layer(x)
    geometry = {} if isinstance(layer, nn.Linear) else {"stride": layer.stride, "padding": layer.padding}
    for place in range(len(x)):
        parts = _parts(rows[place % len(rows)])
        whole = combine([({"net.layer": made[name]}, weight) for name, weight in parts.items()]).get("net.layer")
        if whole is None:
            assert torch.equal(distributed[place], base[place])
        else:
            alone = lora_forward(x[place : place + 1], layer.weight, layer.bias, whole, **geometry)
            torch.testing.assert_close(distributed[place : place + 1], alone, rtol=1e-10, atol=1e-10)


def _parts(row: Row) -> dict[str, float]:
    return {row: 1.0} if isinstance(row, str) else dict([row] if isinstance(row, tuple) else row or {})


@given(
    rows=st.lists(row, min_size=1, max_size=6),
    ranks=ranks,
    out=width,
    into=width,
    middle=st.lists(st.integers(1, 4), max_size=2),
    copies=st.integers(1, 2),
)
@settings(max_examples=100, deadline=None)
def test_a_linear_layer_is_each_row_alone(
    rows: list[Row], ranks: dict[str, int], out: int, into: int, middle: list[int], copies: int
) -> None:
    x = draw((len(rows) * copies, *middle, into), 3, torch.float64)
    check_layer(nn.Linear(into, out), x, rows, ranks, copies)


@given(
    rows=st.lists(row, min_size=1, max_size=6),
    ranks=ranks,
    channels=st.tuples(width, width),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    last=st.booleans(),
    copies=st.integers(1, 2),
)
@settings(max_examples=100, deadline=None)
def test_a_convolution_is_each_row_alone(
    rows: list[Row],
    ranks: dict[str, int],
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    last: bool,
    copies: int,
) -> None:
    layer = nn.Conv2d(channels[0], channels[1], kernel, stride, padding)
    x = draw((len(rows) * copies, channels[0], 5, 4), 3, torch.float64)
    layout = torch.channels_last if last else torch.contiguous_format
    check_layer(layer.to(memory_format=layout), x.to(memory_format=layout), rows, ranks, copies)


@given(st.lists(st.sampled_from((0, 0, 1, 2, 4, 8, 64, 128)), max_size=12))
def test_groups_hold_the_rows_with_an_adapter_once_and_pad_little(ranks: list[int]) -> None:
    groups = group_rows(ranks)
    assert [row for group in groups for row in group] == [row for row, rank in enumerate(ranks) if rank]
    assert all(max(ranks[row] for row in group) <= 2 * min(ranks[row] for row in group) for group in groups)
    # and no more of them than that takes: a group ends where the next row has none, or would pad too much
    for group, after in pairwise(groups):
        joined = [ranks[row] for row in (*group, after.start)]
        assert group.stop < after.start or max(joined) > 2 * min(joined)


# ---- whole networks


@pytest.fixture(scope="module")
def adapters(family: Family) -> dict[str, AdapterWeights]:
    """Of different ranks, scales, targets and networks."""
    unet = {"unet": family.networks["unet"]}
    return {
        "attention": adapter_for(unet, ATTENTION, 4, 1),
        "large": adapter_for(unet, ATTENTION[:2], 16, 2),
        "all": adapter_for(family.networks, ATTENTION + CONVOLUTIONS, 3, 3),
        "text": adapter_for({"text_encoder": family.networks["text_encoder"]}, ATTENTION, 2, 4),
    }


ROWS: tuple[Row, ...] = ("attention", "all", None, ("large", -0.5), {"all": 0.5, "text": 1.5, "large": 0.25}, "text")


@pytest.fixture
def bank(family: Family, adapters: dict[str, AdapterWeights]) -> AdapterBank:
    bank = AdapterBank(family.networks)
    for name, factors in adapters.items():
        bank.add(name, factors)
    return bank


def denoised(unet: nn.Module, count: int, first: int = 0) -> Tensor:
    """Rows ``first`` to ``first + count`` of one fixed batch."""
    dtype, rows = next(unet.parameters()).dtype, slice(first, first + count)
    noisy, text = draw((12, 4, 8, 8), 5)[rows], draw((12, 5, 32), 6)[rows]
    timestep = torch.arange(12)[rows] * 80
    with torch.no_grad():
        return unet(noisy.to(dtype), timestep, text.to(dtype)).sample


@pytest.mark.parametrize(
    ("dtype", "copies"), [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 1), (torch.float16, 1)]
)
def test_a_denoiser_is_each_row_alone(
    tiny_base: Path, adapters: dict[str, AdapterWeights], dtype: torch.dtype, copies: int
) -> None:
    family = load_family(str(tiny_base)).to(torch.device("cpu"), dtype)
    unet, bank = family.networks["unet"], AdapterBank(family.networks)
    for name, factors in adapters.items():
        bank.add(name, factors)
    base, error = denoised(unet, 6 * copies), output_error(lambda wide: denoised(wide, 6), unet, dtype)
    with bank.rows(ROWS, guidance=copies == 2):
        distributed = denoised(unet, 6 * copies)
    changed = 0
    for place in range(6 * copies):
        parts = [(adapters[name], weight) for name, weight in _parts(ROWS[place % 6]).items()]
        merged = merge(family.networks, parts)
        alone = denoised(unet, 1, place)[0]
        merged.undo()
        assert distance({"": distributed[place]}, {"": alone}) <= error
        changed += distance({"": distributed[place]}, {"": base[place]}) > 2 * error
    assert changed == 4 * copies  # the yardstick can tell: all but None and the one that changes no denoiser
    assert torch.equal(distributed[2], base[2])
    assert torch.equal(denoised(unet, 6 * copies), base)


def test_under_autocast_it_is_each_row_alone(
    family: Family, bank: AdapterBank, adapters: dict[str, AdapterWeights]
) -> None:
    unet = family.networks["unet"]
    with torch.autocast("cpu", torch.bfloat16):
        with bank.rows(ROWS):
            distributed = denoised(unet, 6)
        merged = merge(family.networks, [(adapters["all"], 1.0)])
        alone = denoised(unet, 1, 1)
        merged.undo()
    error = output_error(lambda wide: denoised(wide, 1, 1), unet, torch.bfloat16)
    assert distance({"": distributed[1:2]}, {"": alone}) <= error


def test_channels_last_changes_nothing(
    tiny_base: Path, bank: AdapterBank, family: Family, adapters: dict[str, AdapterWeights]
) -> None:
    with bank.rows(ROWS):
        expected = denoised(family.networks["unet"], 6)
    other = load_family(str(tiny_base))
    other.networks["unet"].to(memory_format=torch.channels_last)
    again = AdapterBank(other.networks)
    for name, weights in adapters.items():
        again.add(name, weights)
    with again.rows(ROWS):
        torch.testing.assert_close(denoised(other.networks["unet"], 6), expected, rtol=0, atol=2e-5)


def test_it_is_what_peft_does(tiny_base: Path) -> None:
    """Against peft's mixed batches, which take a name a row; its adapters have one target set and their own ranks."""
    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    targets = ["to_q", "to_v", "conv1", "proj_in"]
    bank = AdapterBank({"unet": UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")})
    theirs: Any = None
    for name, rank, alpha in (("small", 2, 3), ("middle", 5, 5), ("large", 8, 2)):
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rank)
            if theirs is None:
                theirs = get_peft_model(unet, config, name)
            else:
                theirs.add_adapter(name, config)
        bank.add(name, _from_peft(theirs, name, alpha))
    rows = ["middle", None, "small", "small", "large", None]
    theirs.eval()
    noisy, text, steps = draw((6, 4, 8, 8), 5), draw((6, 5, 32), 6), torch.arange(6) * 80
    with torch.no_grad(), bank.rows(rows):
        expected = theirs(noisy, steps, text, adapter_names=[name or "__base__" for name in rows]).sample
        ours = bank._networks["unet"](noisy, steps, text).sample
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)
    with torch.no_grad():
        assert (bank._networks["unet"](noisy, steps, text).sample - expected).abs().max() > 1e-2


def _from_peft(model: nn.Module, name: str, alpha: float) -> AdapterWeights:
    state = {key.removeprefix("base_model.model."): value for key, value in model.state_dict().items()}
    found = [key.partition(".lora_A")[0] for key in state if key.endswith(f".lora_A.{name}.weight")]
    return {
        f"unet.{path}": LoraFactors(
            state[f"{path}.lora_A.{name}.weight"], state[f"{path}.lora_B.{name}.weight"], float(alpha)
        )
        for path in found
    }


# ---- pipelines

PROMPTS = ("a cat", "the dog", "a cat", "", "the cat", "a dog")


def levels(pictures: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, dtype=np.int16) for picture in pictures])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_are_those_of_each_adapter_alone(
    family: Family, bank: AdapterBank, adapters: dict[str, AdapterWeights], guidance: float
) -> None:
    seeds = list(range(6))
    distributed = levels(generate_each(family, bank, ROWS, PROMPTS, seeds, steps=3, guidance=guidance, batch=4))
    base = levels(generate(family, PROMPTS, seeds, steps=3, guidance=guidance))
    for place, row in enumerate(ROWS):
        merged = merge(family.networks, [(adapters[name], weight) for name, weight in _parts(row).items()])
        alone = generate(family, PROMPTS[place : place + 1], seeds[place : place + 1], steps=3, guidance=guidance)
        merged.undo()
        assert np.abs(distributed[place] - levels(alone)[0]).max() <= 1  # of 255
        assert (np.abs(distributed[place] - base[place]).max() > 2) == (row is not None)


def test_a_plain_diffusers_pipeline(tiny_base: Path, adapters: dict[str, AdapterWeights]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    pipeline.set_progress_bar_config(disable=True)
    bank = AdapterBank({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    bank.add("all", adapters["all"])
    bank.add("text", adapters["text"])

    def paint(prompts: list[str], first: int) -> np.ndarray:
        seeds = [torch.Generator().manual_seed(first + place) for place in range(len(prompts))]
        return levels(
            pipeline(prompts, negative_prompt=["dog"] * len(prompts), generator=seeds, num_inference_steps=3)[0]
        )

    with bank.rows(["all", None, ("text", 2.0)], guidance=True):
        distributed = paint(["a cat", "a cat", "the cat"], 0)
    merged = merge({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}, [(adapters["all"], 1.0)])
    assert np.abs(paint(["a cat"], 0)[0] - distributed[0]).max() <= 1
    merged.undo()
    assert np.abs(paint(["a cat"], 1)[0] - distributed[1]).max() <= 1
    merged = merge({"text_encoder": pipeline.text_encoder}, [(adapters["text"], 2.0)])
    assert np.abs(paint(["the cat"], 2)[0] - distributed[2]).max() <= 1

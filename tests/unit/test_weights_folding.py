"""A strength that is folded into tensors comes out of them again to the bit, whatever it is."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veneer.adapter.dora import DoraFactors
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import LayerAdapter
from veneer.weights.formats.folding import fold, fold_exactly, read_record, unfold
from veneer.weights.formats.strength import RECORD_KEY

ALPHAS = st.one_of(
    st.floats(-1e3, 1e3).filter(lambda alpha: abs(alpha) > 1e-3), st.integers(1, 128).map(float), st.just(0.0)
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def lora(alpha: float, rank: int = 3, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(rank)
    down, up = torch.randn(rank, 5, generator=generator), torch.randn(40, rank, generator=generator) * scale
    return LoraFactors(down.to(dtype), up.to(dtype), alpha)


def equal(one: LayerAdapter, other: LayerAdapter) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def through_a_file(adapter: LayerAdapter) -> LayerAdapter:
    record = read_record(fold_exactly({"unet.x": adapter})[1])
    return unfold(fold(adapter), record.get("unet.x"))


@given(ALPHAS, st.integers(1, 9), st.sampled_from(DTYPES), st.sampled_from([1.0, 1e-6, 1e-38]))
def test_any_alpha_comes_out_to_the_bit(alpha: float, rank: int, dtype: torch.dtype, scale: float) -> None:
    """Also where products are so small that floats have few digits left, or none."""
    adapter = lora(alpha, rank, dtype, scale)
    assert equal(through_a_file(adapter), adapter)


@pytest.mark.parametrize(("alpha", "parts"), [(3.0, None), (1.5, {"alpha"}), (12.0, {"alpha"}), (2.0, {"alpha", "up"})])
def test_what_is_not_rounded_takes_no_room(alpha: float, parts: set[str] | None) -> None:
    record = read_record(fold_exactly({"unet.x": lora(alpha)})[1])
    assert set(record) == ({"unet.x"} if parts else set())
    assert parts is None or set(record["unet.x"]) == parts


def test_rounding_takes_little_room() -> None:
    adapter = LoraFactors(torch.randn(16, 8), torch.randn(1000, 16), 5.0)
    (text,) = fold_exactly({"unet.x": adapter})[1].values()
    assert len(text) < 0.09 * 4 * adapter.up.numel()


def bits(values: list[int], dtype: torch.dtype = torch.int8) -> str:
    return base64.b64encode(zlib.compress(torch.tensor(values, dtype=dtype).numpy().tobytes())).decode()


@pytest.mark.parametrize(
    "entry",
    [
        None,
        1.5,
        {},
        {"alpha": "x"},
        {"alpha": None},
        {"alpha": 1e-320},
        {"alpha": float("nan")},
        {"alpha": 7.0},
        {"alpha": 2.0, "up": "no base64"},
        {"alpha": 2.0, "up": bits([1, 2, 3])},
        {"alpha": 2.0, "up": bits([100] * 120)},
        {"alpha": 2.0, "core": bits([0] * 120)},
        {"alpha": 2.0, "up": bits([0] * 10**6)},
    ],
)
def test_an_entry_of_other_tensors_changes_nothing(entry: object) -> None:
    """Other tools change tensors and leave metadata as they were."""
    adapter = fold(lora(2.0))
    assert equal(unfold(adapter, entry), adapter)


@pytest.mark.parametrize("text", ["", "[", "[1]", "null", "[" * 10**5])
def test_a_record_that_is_none(text: str) -> None:
    assert read_record({RECORD_KEY: text}) == {}
    assert read_record({}) == {}


def test_names_are_those_of_files() -> None:
    record = fold_exactly({"text_encoder.encoder.fc1": lora(2.0)})[1]
    assert set(json.loads(record[RECORD_KEY])) == {"text_encoder.text_model.encoder.fc1"}


def test_magnitudes_stay() -> None:
    adapter = DoraFactors(lora(7.0), torch.rand(40, 1))
    assert equal(through_a_file(adapter), adapter)
    assert torch.equal(fold(adapter).state_dict()["magnitude"], adapter.magnitude)

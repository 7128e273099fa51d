"""Conditioning is opaque: its rows can be taken, joined, repeated, moved and stored, whatever a family keeps in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.errors import raises_code
from veneer.family.protocol import Conditioning, Family
from veneer.family.store import Store


def conditioning(rows: int, length: int = 5, seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    text_BLD = torch.randn(rows, length, 3, generator=generator)
    return Conditioning({"text": text_BLD, "mask": torch.ones(rows, length), "pooled": text_BLD.mean(dim=1)})


def equal(one: Conditioning, other: Conditioning) -> bool:
    same = one.tensors.keys() == other.tensors.keys()
    return same and all(torch.equal(one[name], other[name]) for name in one.tensors)


def test_rows_that_are_taken_and_joined_are_the_rows() -> None:
    whole = conditioning(4)
    assert len(whole) == 4 and len(whole.rows([2])) == 1
    assert equal(Conditioning.cat([whole.rows([place]) for place in range(4)]), whole)
    assert equal(whole.rows([3, 0, 3]), Conditioning.cat([whole.rows([3]), whole.rows(slice(0, 1)), whole.rows([3])]))


def test_texts_of_different_lengths_are_joined_by_zeros_which_the_mask_tells() -> None:
    short, long = conditioning(1, 2, seed=1), conditioning(2, 5, seed=2)
    both = Conditioning.cat([short, long])
    assert both["text"].shape == (3, 5, 3) and both["pooled"].shape == (3, 3)
    assert both["mask"].tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1] * 5]
    assert torch.equal(both["text"][0, :2], short["text"][0]) and not both["text"][0, 2:].any()
    assert torch.equal(both["text"][1:], long["text"])


@pytest.mark.parametrize(
    "other",
    [
        Conditioning({"text": torch.zeros(1, 5, 3)}),
        Conditioning({**conditioning(1).tensors, "text": torch.zeros(1, 5, 4)}),
        Conditioning({**conditioning(1).tensors, "pooled": torch.zeros(1, 3, 1)}),
    ],
    ids=["names", "widths", "ranks"],
)
def test_what_is_of_different_kinds_is_not_joined(other: Conditioning) -> None:
    with pytest.raises(ValueError, match="cannot be joined"):
        Conditioning.cat([conditioning(1), other])


def test_a_row_is_repeated_without_a_copy() -> None:
    one = conditioning(1)
    assert len(one.expand(6)) == 6
    assert one.expand(6)["text"].untyped_storage().data_ptr() == one["text"].untyped_storage().data_ptr()


def test_further_tensors_stand_beside_the_text() -> None:
    more = conditioning(2).joined_to({"time_ids": torch.zeros(2, 6)})
    assert set(more.tensors) == {"text", "mask", "pooled", "time_ids"}
    assert more.nbytes == conditioning(2).nbytes + 2 * 6 * 4


def test_it_is_stored_and_read_back_to_the_same_bits(tmp_path: Path) -> None:
    whole, store = conditioning(1), Store(tmp_path, "base")
    for _ in range(2):
        assert equal(Conditioning(store.get_or_compute(("text", "a cat"), lambda: dict(whole.tensors))), whole)


def test_what_is_no_denoiser_is_a_text_encoder(family: Family) -> None:
    assert family.denoiser == "unet" and family.text_encoders == ("text_encoder",)
    assert family.default_targets.keys() == family.networks.keys()


def test_discrete_diffusion_has_no_shift_of_its_own(family: Family) -> None:
    assert (family.default_density, family.default_shift) == ("uniform", 1.0)
    with raises_code("family.no_resolution_shift", "objective.timestep_shift"):
        family.resolution_shift(64, 64)

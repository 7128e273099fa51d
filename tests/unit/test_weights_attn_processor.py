"""diffusers' files of 2023, whose tensors lie with the processors of attentions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.errors import raises_code
from veneer.family.protocol import Family
from veneer.weights.file import info, load

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def factors(family: Family, layer: str) -> tuple[Tensor, Tensor]:
    """A and B of rank 2 for a layer."""
    weight = family.networks["unet"].get_submodule(f"{ATTENTION}.{layer}").weight
    assert isinstance(weight, Tensor)
    return torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)


@pytest.fixture
def tensors(family: Family) -> dict[str, Tensor]:
    named = {}
    for layer, kind in (("to_q", "to_q"), ("to_out.0", "to_out")):
        down, up = factors(family, layer)
        named |= {f"{ATTENTION}.processor.{kind}_lora.down.weight": down}
        named |= {f"{ATTENTION}.processor.{kind}_lora.up.weight": up}
    return named


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_each_tensor_is_its_layers(family: Family, tensors: dict[str, Tensor], prefix: str, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, file)
    loaded = load(file, family.networks).weights
    assert set(loaded) == {f"unet.{ATTENTION}.to_q", f"unet.{ATTENTION}.to_out.0"}
    for layer, kind in (("to_q", "to_q"), ("to_out.0", "to_out")):
        weight = family.networks["unet"].get_submodule(f"{ATTENTION}.{layer}").weight
        assert isinstance(weight, Tensor)
        down, up = (tensors[f"{ATTENTION}.processor.{kind}_lora.{factor}.weight"] for factor in ("down", "up"))
        torch.testing.assert_close(loaded[f"unet.{ATTENTION}.{layer}"].delta_weight(weight), up @ down)
    assert info(file).format == "attn_processor"


def test_half_an_adapter_is_refused(family: Family, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    del tensors[f"{ATTENTION}.processor.to_q_lora.up.weight"]
    save_file(tensors, tmp_path / "a.safetensors")
    with raises_code("adapter.missing_part"):
        load(tmp_path / "a.safetensors", family.networks)


def test_a_tensor_of_another_kind_is_refused(family: Family, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({**tensors, f"{ATTENTION}.processor.to_q_hada.w1": torch.zeros(2)}, tmp_path / "a.safetensors")
    with raises_code("weights.unknown_tensor"):
        load(tmp_path / "a.safetensors", family.networks)

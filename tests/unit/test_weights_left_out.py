"""Each tensor of a file is accounted for: read, refused by name, or left out with a reason by whoever takes that."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.layers import weighted_layers_of
from veneer.adapter.lora import LoraFactors
from veneer.cli.terminal.convert import conversion_text
from veneer.verbs.adapter_base import base_names
from veneer.verbs.blend import BlendSource, blend_adapters
from veneer.verbs.check import check_adapter
from veneer.verbs.convert import convert_adapter
from veneer.verbs.merge import load_merged, merge_adapters
from veneer.verbs.resize import resize_adapter
from veneer.weights.file import AdapterFile, info, load
from veneer.weights.formats.left_out import LeftOut, left_out_by_name
from veneer.weights.formats.scales import scales_of

LAYER = "lora_unet_mid_to_q"
OWN = {f"{LAYER}.lora_down.weight": torch.randn(4, 6), f"{LAYER}.lora_up.weight": torch.randn(5, 4)}
BUNDLED = {"bundle_emb.cat.clip_l": torch.randn(2, 768), "bundle_emb.cat.clip_g": torch.randn(2, 1280)}
IDS = {"text_encoder.text_model.embeddings.position_ids": torch.arange(77)[None]}


def networks() -> dict[str, nn.Module]:
    return {"unet": nn.ModuleDict({"mid": nn.ModuleDict({"to_q": nn.Linear(6, 5)})})}


def write(folder: Path, *tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor for each in tensors for name, tensor in each.items()}, folder / "x.safetensors")
    return folder / "x.safetensors"


def read(file: Path, left_out: list[LeftOut] | None = None) -> AdapterFile:
    return load(file, networks(), left_out=left_out)


def pair(layer: str, up: float = 1.0) -> dict[str, Tensor]:
    return {f"{layer}.lora_down.weight": torch.randn(4, 6), f"{layer}.lora_up.weight": torch.full((5, 4), up)}


@pytest.mark.parametrize("beside", [BUNDLED, IDS], ids=["embeddings", "position ids"])
def test_what_lies_beside_an_adapter_is_left_out_by_who_asks_for_it(beside: dict[str, Tensor], tmp_path: Path) -> None:
    file = write(tmp_path, OWN, beside)
    with raises_code("weights.left_out"):
        read(file)
    left_out: list[LeftOut] = []
    assert read(file, left_out).weights.keys() == {"unet.mid.to_q"}
    (own,) = left_out
    assert set(own.names) == beside.keys() and own.names[0] in str(own)
    assert str(own) in info(file).notes


def test_embeddings_alone_are_no_adapter(tmp_path: Path) -> None:
    with raises_code("weights.unsupported_method", "textual inversion"):
        info(write(tmp_path, BUNDLED))


def test_a_text_encoder_that_the_base_lacks_is_left_out(tmp_path: Path) -> None:
    file = write(tmp_path, OWN, pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q"))
    with raises_code("weights.unknown_layer"):
        read(file)
    left_out: list[LeftOut] = []
    assert read(file, left_out).weights.keys() == {"unet.mid.to_q"}
    assert left_out == [
        LeftOut(("lora_te3_encoder_block_0_layer_0_SelfAttention_q",), "the base has no text_encoder_3")
    ]


def test_a_layer_that_the_base_lacks_is_left_out_if_it_changes_nothing(tmp_path: Path) -> None:
    left_out: list[LeftOut] = []
    assert len(read(write(tmp_path, OWN, pair("lora_unet_mid_position_embedding", 0.0)), left_out).weights) == 1
    assert [each.names for each in left_out] == [("lora_unet_mid_position_embedding",)]
    with raises_code("weights.unknown_layer"):
        read(write(tmp_path, OWN, pair("lora_unet_mid_position_embedding")), [])


def test_a_file_of_which_nothing_would_be_left_is_refused(tmp_path: Path) -> None:
    with raises_code("weights.unknown_layer"):
        read(write(tmp_path, pair("lora_te2_x")), [])


def test_a_tensor_that_nobody_knows_is_refused_whatever_is_taken(tmp_path: Path) -> None:
    with raises_code("weights.unknown_tensor"):
        read(write(tmp_path, OWN, {"lora_unet_mid_to_q.mystery": torch.ones(3)}), [])


ALPHAS = {
    "missing": (None, 1.0),
    "integer": (torch.tensor(2), 0.5),
    "number": (torch.tensor(2.0), 0.5),
    "one": (torch.tensor([2.0]), 0.5),
    "one by one": (torch.tensor([[2.0]]), 0.5),
    "bfloat16": (torch.tensor(2.0, dtype=torch.bfloat16), 0.5),
    "float16": (torch.tensor(2.0, dtype=torch.float16), 0.5),
    "float64": (torch.tensor(2.0, dtype=torch.float64), 0.5),
    "8 bits": (torch.tensor(2.0).to(torch.float8_e4m3fn), 0.5),
}


@pytest.mark.parametrize("kind", ALPHAS)
def test_alpha_is_read_in_every_shape_and_type(kind: str, tmp_path: Path) -> None:
    alpha, expected = ALPHAS[kind]
    file = write(tmp_path, OWN, {} if alpha is None else {f"{LAYER}.alpha": alpha})
    own = read(file).weights["unet.mid.to_q"]
    assert isinstance(own, LoraFactors) and own.scale == expected
    assert torch.equal(own.down, OWN[f"{LAYER}.lora_down.weight"])
    assert info(file).scales == (expected,)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4)])
def test_an_alpha_for_each_row_is_folded_into_b(shape: tuple[int, ...], tmp_path: Path) -> None:
    alphas = torch.tensor([4.0, 1.0, 0.5, 3.0])
    file = write(tmp_path, OWN, {f"{LAYER}.alpha": alphas.reshape(shape)})
    own = read(file).weights["unet.mid.to_q"]
    down, up = OWN.values()
    expected = sum(
        alphas[row].double() / 4 * up[:, row : row + 1].double() @ down[row : row + 1].double() for row in range(4)
    )
    torch.testing.assert_close(own.delta_weight(torch.zeros(5, 6)).double(), expected, rtol=1e-6, atol=1e-6)
    assert info(file).layers[0].norm == pytest.approx(float(torch.linalg.matrix_norm(expected)), rel=1e-5)
    with raises_code("adapter.bad_alpha"):
        read(write(tmp_path, OWN, {f"{LAYER}.alpha": torch.ones(3)}))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("ending", [None, "scale_weight", "weight_scale"])
@pytest.mark.parametrize("by_row", [False, True])
def test_floats_of_8_bits_are_read_with_their_scales(
    dtype: torch.dtype, ending: str | None, by_row: bool, tmp_path: Path
) -> None:
    small = {name: tensor.to(dtype) for name, tensor in OWN.items()}
    scales = {name: torch.rand(len(tensor), 1) + 1 if by_row else torch.tensor(1.7) for name, tensor in OWN.items()}
    named = {name.replace(".weight", f".{ending}"): scale for name, scale in scales.items()} if ending else {}
    file = write(tmp_path, small, named)
    own = read(file).weights["unet.mid.to_q"]
    down, up = (small[name].float() * (scales[name] if ending else 1) for name in OWN)
    assert isinstance(own, LoraFactors) and torch.equal(own.down, down) and torch.equal(own.up, up)
    assert info(file).layers[0].norm == pytest.approx(math.sqrt(own.squared_norm()), rel=1e-5)


def test_a_scale_of_another_shape_is_refused(tmp_path: Path) -> None:
    name = f"{LAYER}.lora_up.weight"
    small = {**OWN, name: OWN[name].to(torch.float8_e4m3fn), f"{LAYER}.lora_up.scale_weight": torch.ones(3)}
    with raises_code("weights.bad_scale"):
        read(write(tmp_path, small))
    with raises_code("adapter.missing_part"):
        read(write(tmp_path, OWN, {"lora_unet_mid_to_k.lora_up.scale_weight": torch.ones(())}))


def test_what_is_left_out_by_name() -> None:
    assert left_out_by_name(OWN) == [] and scales_of(OWN) == {}
    assert [len(each.names) for each in left_out_by_name({**BUNDLED, **IDS, "x.comfy_quant": torch.ones(1)})] == [
        2,
        1,
        1,
    ]


@pytest.fixture
def with_more(tiny_base: Path, tmp_path: Path) -> Path:
    """An adapter of the bundled kind of base, with embeddings beside it."""
    layers = published_layers(tiny_base)
    name, (outputs, inputs) = next(iter(layers.items()))
    own = {f"{name}.lora_A.weight": torch.randn(4, inputs), f"{name}.lora_B.weight": torch.randn(outputs, 4) / 100}
    return write(tmp_path, own, BUNDLED)


def published_layers(base: Path) -> dict[str, tuple[int, int]]:
    names = base_names(Path("none"), str(base))
    assert names is not None
    linear = {path: tuple(layer.weight.shape) for path, layer in weighted_layers_of(names.networks).items()}
    return {path: (shape[0], shape[1]) for path, shape in linear.items() if path.startswith("unet") and len(shape) == 2}


def test_every_verb_that_reads_such_a_file_says_what_it_leaves_out(
    with_more: Path, tiny_base: Path, tmp_path: Path
) -> None:
    said: list[str] = list(check_adapter(with_more, base=str(tiny_base)).notes)
    assert any("bundle_emb" in each for each in said)
    merged = merge_adapters([(with_more, 1.0)], tmp_path / "merged", base=str(tiny_base))
    assert any("bundle_emb" in each for each in merged.warnings)
    blended = blend_adapters([BlendSource(with_more)], tmp_path / "blend.safetensors", base=str(tiny_base))
    assert any("bundle_emb" in each for each in blended.warnings)
    converted = convert_adapter(with_more, tmp_path / "kohya.safetensors", "kohya", base=str(tiny_base))
    assert "bundle_emb" in conversion_text(converted)
    again = convert_adapter(with_more, tmp_path / "own.safetensors", "diffusers")
    assert "bundle_emb" in conversion_text(again)
    left_out: list[LeftOut] = []
    load_merged(with_more, str(tiny_base), 1.0, left_out)
    assert len(left_out) == 1
    resized = resize_adapter(with_more, 2, tmp_path / "small.safetensors")
    assert any("bundle_emb" in each for each in resized.notes)

"""FLUX files of every program, at full size, against what diffusers' own converters make of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils as convert
from safetensors.torch import save_file
from torch import Tensor

from tests.errors import raises_code
from tests.key_tables import KeyRow, read_key_table
from veneer.adapter.biased import BiasedAdapter
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.family.key_names.flux import flux_names, onetrainer_names
from veneer.family.key_names.network import names_in
from veneer.family.layer_names import published_names
from veneer.weights.file import load
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.protocol import BaseNames

ROWS = read_key_table("flux1")
RANK = 4


@pytest.fixture(scope="module")
def base() -> BaseNames:
    return published_names("flux-dev")


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape) / 100


def pair(outputs: int, inputs: int, rank: int = RANK) -> dict[str, Tensor]:
    return {"down": draw(rank, inputs), "up": draw(outputs, rank)}


def native_shapes(keep: Any = lambda row: True) -> dict[str, tuple[int, int]]:
    """The native layers' outputs and inputs, by name: of blocks 0 and the last ones, which is every kind of layer."""
    shapes: dict[str, tuple[int, int]] = {}
    for row in ROWS:
        if keep(row):
            outputs = sum(other.shape[0] for other in ROWS if other.native == row.native)
            shapes[row.native] = outputs, row.shape[1]
    return shapes


def in_some_blocks(row: KeyRow) -> bool:
    return not any(level.isdigit() and level not in ("0", "18", "37") for level in row.path.split(".")[:2])


def is_block(row: KeyRow) -> bool:
    return row.path.startswith(("transformer_blocks", "single_transformer_blocks"))


def read(tensors: Mapping[str, Tensor], base: BaseNames, folder: Path) -> AdapterWeights:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "x.safetensors")
    return load(folder / "x.safetensors", base.networks, base.key_names).weights


def assert_same_updates(weights: AdapterWeights, converted: Mapping[str, Tensor]) -> None:
    """Compare delta W x of each layer for a few x, with that of diffusers' factors, whose strength is in them."""
    theirs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in converted.items():
        network = "" if name.startswith(("transformer.", "text_encoder.")) else "transformer."
        for part, endings in {"down": (".lora_A.weight", ".lora_linear_layer.down.weight"),
                              "up": (".lora_B.weight", ".lora_linear_layer.up.weight")}.items():  # fmt: skip
            for ending in endings:
                if name.endswith(ending):
                    path = f"{network}{name.removesuffix(ending)}".replace("text_encoder.text_model.", "text_encoder.")
                    theirs.setdefault(path, {})[part] = tensor.double()
    assert weights.keys() == theirs.keys()
    for path, own in weights.items():
        assert isinstance(own, LoraFactors)
        x = torch.randn(own.shape[1], 2, dtype=torch.float64)
        expected = theirs[path]["up"] @ (theirs[path]["down"] @ x)
        got = own.scale * (own.up.double() @ (own.down.double() @ x))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("root", ["lora_unet_", "diffusion_model."])
def test_kohya_s_files(root: str, base: BaseNames, tmp_path: Path) -> None:
    """One pair for query, key and value, shared and block diagonal; alpha other than the rank."""
    tensors = {}
    for name, shape in native_shapes(in_some_blocks).items():
        alpha = RANK if name.startswith("final_layer") else 1  # diffusers leaves the alpha of these out
        layer = f"{root}{name.replace('.', '_') if root.endswith('_') else name}"
        own = pair(*shape)
        tensors |= {f"{layer}.lora_{part}.weight": tensor for part, tensor in own.items()}
        tensors[f"{layer}.alpha"] = torch.tensor(float(alpha))
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1" if root == "lora_unet_" else (
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1")  # fmt: skip
    own = pair(3072, 768)
    tensors |= {f"{text}.lora_{part}.weight": tensor for part, tensor in own.items()} | {
        f"{text}.alpha": torch.ones(())
    }
    weights = read(tensors, base, tmp_path)
    assert_same_updates(weights, convert._convert_kohya_flux_lora_to_diffusers(dict(tensors)))


def test_kohya_s_split_files_get_the_ranks_of_their_parts(base: BaseNames, tmp_path: Path) -> None:
    """sd-scripts' ``split_qkv`` stacks A and makes B block diagonal: its alpha/r is what every reader finds."""
    parts = [pair(3072, 3072) for _ in "qkv"]
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_down.weight": torch.cat([part["down"] for part in parts])}
    tensors |= {f"{name}.lora_up.weight": torch.block_diag(*[part["up"] for part in parts])}
    tensors[f"{name}.alpha"] = torch.tensor(2.0)
    weights = read(tensors, base, tmp_path)
    assert {path: own.hyperparameters["rank"] for path, own in weights.items()} == {
        f"transformer.transformer_blocks.0.attn.to_{part}": RANK for part in "qkv"
    }
    for part, letter in zip(parts, "qkv", strict=True):
        own = weights[f"transformer.transformer_blocks.0.attn.to_{letter}"]
        assert isinstance(own, LoraFactors) and own.scale == 2 / 12
        assert torch.equal(own.down, part["down"]) and torch.equal(own.up, part["up"])
    assert_same_updates(weights, convert._convert_kohya_flux_lora_to_diffusers(dict(tensors)))


def test_x_labs_files(base: BaseNames, tmp_path: Path) -> None:
    tensors = {}
    for block in (0, 18):
        for kind, shape in {"qkv_lora1": (9216, 3072), "qkv_lora2": (9216, 3072), "proj_lora1": (3072, 3072),
                            "proj_lora2": (3072, 3072)}.items():  # fmt: skip
            layer = f"double_blocks.{block}.processor.{kind}"
            tensors |= {f"{layer}.{part}.weight": tensor for part, tensor in pair(*shape).items()}
    for kind, shape in {"qkv_lora": (9216, 3072), "proj_lora": (3072, 15360)}.items():
        layer = f"single_blocks.37.processor.{kind}"
        tensors |= {f"{layer}.{part}.weight": tensor for part, tensor in pair(*shape).items()}
    weights = read(tensors, base, tmp_path)
    assert_same_updates(weights, convert._convert_xlabs_flux_lora_to_diffusers(dict(tensors)))


def test_onetrainer_s_underscored_files(base: BaseNames, tmp_path: Path) -> None:
    """diffusers gives all other layers of a block than its attention one name, and so loses them."""
    tensors = {}
    for row in ROWS:
        if in_some_blocks(row):
            layer = f"lora_transformer_{row.path.replace('.', '_')}"
            tensors |= {f"{layer}.lora_{part}.weight": tensor for part, tensor in pair(*row.shape).items()}
            tensors[f"{layer}.alpha"] = torch.tensor(1.0)
    weights = read(tensors, base, tmp_path)
    assert len(weights) == sum(map(in_some_blocks, ROWS))
    known = {name: tensor for name, tensor in tensors.items() if "blocks" not in name or "attn" in name}
    judged = {path: own for path, own in weights.items() if "blocks" not in path or "attn" in path}
    assert_same_updates(judged, convert._convert_kohya_flux_lora_to_diffusers(known))


def test_onetrainer_s_native_files(base: BaseNames, tmp_path: Path) -> None:
    """Parts of a fused layer are numbered; the two halves of the last modulation are the native code's."""
    names = base.key_names["onetrainer"] | {"transformer.norm_out.linear": "transformer.final_layer.adaLN_modulation.1"}
    tensors, own = {}, {}
    for row in ROWS:
        if in_some_blocks(row) and (name := names.get(path := f"transformer.{row.path}")) is not None:
            own[path] = pair(*row.shape)
            tensors |= {f"{name}.lora_{part}.weight": tensor for part, tensor in own[path].items()}
    weights = read(tensors, base, tmp_path)
    assert weights.keys() == own.keys()
    for path, factors in own.items():
        state, turn = weights[path].state_dict(), len(factors["up"]) // 2 if "norm_out" in path else 0
        assert torch.equal(state["down"], factors["down"]) and torch.equal(state["up"], factors["up"].roll(turn, 0))


@pytest.mark.parametrize("root", ["transformer.", "diffusion_model.", "", "lora_transformer.", "model.transformer."])
@pytest.mark.parametrize("endings", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_files_of_ai_toolkit_and_simpletuner(
    root: str, endings: tuple[str, str], base: BaseNames, tmp_path: Path
) -> None:
    rows = [row for row in ROWS if in_some_blocks(row) and is_block(row)]
    pairs = {row.path: pair(*row.shape) for row in rows}
    tensors = {f"{root}{path}.{ending}.weight": own[part] for path, own in pairs.items()
               for part, ending in zip(("down", "up"), endings, strict=True)}  # fmt: skip
    weights = read(tensors, base, tmp_path)
    assert weights.keys() == {f"transformer.{path}" for path in pairs}
    for path, own in pairs.items():
        state = weights[f"transformer.{path}"].state_dict()
        assert torch.equal(state["down"], own["down"]) and torch.equal(state["up"], own["up"])
        assert weights[f"transformer.{path}"].hyperparameters["alpha"] == RANK


@pytest.mark.parametrize(
    "name",
    ["lora_te3_encoder_block_0_layer_0_SelfAttention_q", "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
     "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
     "t5.encoder.block.0.layer.0.SelfAttention.q", "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
     "lora_te2.encoder.block.0.layer.0.SelfAttention.q"],
)  # fmt: skip
def test_t5_is_found_under_all_its_numbers(name: str, base: BaseNames, tmp_path: Path) -> None:
    tensors = {f"{name}.lora_{part}.weight": tensor for part, tensor in pair(4096, 4096).items()}
    assert list(read(tensors, base, tmp_path)) == ["text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"]


def test_a_file_that_mixes_native_and_diffusers_names_is_read_whole(base: BaseNames, tmp_path: Path) -> None:
    tensors = {}
    names = {"lora_unet_double_blocks_0_txt_attn_qkv": (9216, 3072), "transformer.proj_out": (64, 3072),
             "lora_unet_single_transformer_blocks_0_attn_to_k_": (3072, 3072),
             "diffusion_model.single_blocks.1.linear1_qkv": (9216, 3072)}  # fmt: skip
    for name, shape in names.items():
        tensors |= {f"{name}.lora_{part}.weight": tensor for part, tensor in pair(*shape).items()}
    paths = {path.removeprefix("transformer.") for path in read(tensors, base, tmp_path)}
    assert paths == {
        *(f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"),
        *(f"single_transformer_blocks.1.attn.to_{part}" for part in "qkv"),
        "single_transformer_blocks.0.attn.to_k",
        "proj_out",
    }


def test_fal_s_files(base: BaseNames, tmp_path: Path) -> None:
    """peft's prefix before native names, and no config: the file is refused until one says the strength."""
    tensors: dict[str, Tensor] = {}
    for name, shape in native_shapes(lambda row: is_block(row) or row.path == "proj_out").items():
        own = pair(*shape, 1)
        tensors |= {
            f"base_model.model.{name}.lora_{letter}.weight": own[part] for letter, part in (("A", "down"), ("B", "up"))
        }
    with raises_code("weights.no_peft_config", '"lora_alpha": RANK'):
        read(tensors, base, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 1}')
    weights = read(tensors, base, tmp_path)
    assert_same_updates(weights, convert._convert_fal_kontext_lora_to_diffusers(dict(tensors)))


def test_a_layer_that_takes_other_inputs_is_refused_by_name(base: BaseNames, tmp_path: Path) -> None:
    """Black Forest Labs' control LoRAs widen the first layer, for the latents of a second picture."""
    tensors = {
        f"img_in.lora_{part}.weight": tensor for part, tensor in zip("AB", pair(3072, 128).values(), strict=True)
    }
    with raises_code("adapter.other_architecture", "x_embedder"):
        read(tensors, base, tmp_path)


def test_control_loras_of_black_forest_labs(tmp_path: Path) -> None:
    """LoRA with biases on every layer, the norms as a whole, and a first layer of twice as many inputs.

    Of the last modulation diffusers swaps the halves of A too, which are no outputs; so it is compared with the file.
    """
    base = control_base()
    tensors: dict[str, Tensor] = {}
    for name, (outputs, inputs) in native_shapes().items():
        own = pair(outputs, 128 if name == "img_in" else inputs, 2)
        tensors |= {f"{name}.lora_A.weight": own["down"], f"{name}.lora_B.weight": own["up"]}
        tensors[f"{name}.lora_B.bias"] = draw(outputs)
    blocks = sorted({name.rpartition(".img_attn.proj")[0] for name in tensors if ".img_attn.proj." in name})
    norms = [
        f"{block}.{side}_attn.norm.{kind}_norm"
        for block in blocks
        for side in ("img", "txt")
        for kind in ("query", "key")
    ]
    norms += [f"single_blocks.{block}.norm.{kind}_norm" for block in range(38) for kind in ("query", "key")]
    tensors |= {f"{name}.scale": torch.rand(128) for name in norms}
    weights = read(tensors, base, tmp_path)
    converted = convert._convert_bfl_flux_control_lora_to_diffusers(dict(tensors))
    whole = {name.removesuffix(".weight"): tensor for name, tensor in converted.items() if "lora" not in name}
    assert len(whole) == 19 * 4 + 38 * 2
    for path, tensor in whole.items():
        assert torch.equal(weights[path].delta_weight(torch.zeros(128)), tensor)
    pairs = {name: tensor for name, tensor in converted.items() if ".lora_" in name and name.endswith(".weight")}
    last = bare(weights["transformer.norm_out.linear"]).state_dict()
    native = "final_layer.adaLN_modulation.1.lora"
    assert torch.equal(last["up"].roll(3072, 0), tensors[f"{native}_B.weight"])
    assert torch.equal(last["down"], tensors[f"{native}_A.weight"])
    judged = {path: bare(own) for path, own in weights.items() if path not in whole and "norm_out" not in path}
    assert_same_updates(judged, {name: tensor for name, tensor in pairs.items() if "norm_out" not in name})
    for name, tensor in converted.items():
        if name.endswith(".lora_B.bias"):
            bias = weights[name.removesuffix(".lora_B.bias")].delta_bias(torch.zeros(len(tensor)))
            assert bias is not None and torch.equal(bias, tensor)


def bare(adapter: LayerAdapter) -> LayerAdapter:
    assert isinstance(adapter, BiasedAdapter)
    return adapter.inner


def control_base() -> BaseNames:
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(in_channels=128, out_channels=64, guidance_embeds=True)
    kinds = {"kohya": flux_names, "onetrainer": onetrainer_names}
    names = {kind: names_in("transformer", transformer, own) for kind, own in kinds.items()}
    return BaseNames({"transformer": transformer}, names)


@pytest.mark.parametrize("ranks", [(4, 4, 4, 4), (2, 4, 6, 3)], ids=["equal", "unequal"])
def test_what_is_written_for_kohya_s_readers_is_what_diffusers_reads(ranks: tuple[int, ...], base: BaseNames) -> None:
    """Each layer with a strength of its own; what is one layer there tells all of them by one alpha."""
    weights = {}
    for number, row in enumerate(row for row in ROWS if in_some_blocks(row) and is_block(row)):
        own = pair(*row.shape, ranks[number % 4])
        weights[f"transformer.{row.path}"] = LoraFactors(own["down"], own["up"], alpha=1.0 + number % 3)
    (file,) = KOHYA.write(weights, base)
    assert len([name for name in file.tensors if name.endswith(".alpha")]) == 2 * 10 + 3 * 3
    assert_same_updates(weights, convert._convert_kohya_flux_lora_to_diffusers(dict(file.tensors)))

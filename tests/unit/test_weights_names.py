"""The grammar of tensors' names: whatever tools put before, between and behind a layer's path, the layer is found."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.family.native_names import native_names
from veneer.family.protocol import Family
from veneer.weights.file import info, load
from veneer.weights.formats.foreign import family_of, refuse_foreign
from veneer.weights.formats.layers import LayerIndex
from veneer.weights.formats.names import parse_name
from veneer.weights.formats.parts import method_of
from veneer.weights.formats.protocol import BaseNames

DATA = Path(__file__).parents[1] / "data"
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
NATIVE = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
TEXT = "encoder.layers.0.self_attn.q_proj"

FACTORS = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A.lora_1.weight", ".lora_B.lora_1.weight"),
    (".lora_A.default_0.weight", ".lora_B.default_0.weight"),
    (".lora_A", ".lora_B"),
    (".lora_A.default", ".lora_B.default"),
    (".base_layer.lora_A.weight", ".base_layer.lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_down", ".lora_up"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
]
ALPHAS = ["{layer}.alpha", "{down}.alpha", "{layer}.lora_alpha"]
BEFORE = ["", "base_model.model.", "module.", "_orig_mod.", "model.", "base_model.model.module.", "pipe."]
BEFORE += ["model._orig_mod."]
DENOISERS = ["unet.", "diffusion_model.", "model.diffusion_model.", "", "unet.base_model.model.", "unet._orig_mod."]
TEXTS = ["text_encoder.", "text_encoder.text_model.", "te.", "te1.text_model."]
TEXTS += [
    "text_encoders.clip_l.transformer.text_model.",
    "cond_stage_model.transformer.text_model.",
    "clip_l.",
    "",
    "text_model.",
    "text_encoder.base_model.model.",
]
DENOISERS += ["lora_unet.", "lycoris.", "pipe.dit.", "lora_transformer."]
ROOTS = ["lora_unet_", "lycoris_", "lora_unet__orig_mod_", "lora_transformer_", "lora_unet_model_diffusion_model_"]
ROOTS += ["lora_unet__", "lycoris_unet_", "lora_prior_unet_"]
TEXT_ROOTS = ["lora_te_", "lora_te1_", "lora_te_text_model_", "lora_te1_text_model_", "lora_text_encoder_"]
TEXT_ROOTS += ["lycoris_te_text_model_", "lora_prior_te_text_model_"]
TEXTS += ["lora_te.", "lora_te1.text_model.", "clip_h.transformer.text_model.", "text_encoders.clip_h.transformer."]
OLD = [path.replace("to_q", "processor.to_q") for path in (Q, NATIVE)]


def layer_names() -> dict[str, str]:
    """Names that files have for two layers, and the layers."""
    dotted = {f"{a}{b}{path}": f"unet.{Q}" for a, b, path in itertools.product(BEFORE, DENOISERS, [Q, NATIVE, *OLD])}
    text = {f"{a}{b}{TEXT}": f"text_encoder.{TEXT}" for a, b in itertools.product(BEFORE, TEXTS)}
    text |= {f"{b}{TEXT.replace('q_proj', 'to_q')}": f"text_encoder.{TEXT}" for b in TEXTS}
    underscored = {f"{a}{path.replace('.', '_')}": f"unet.{Q}" for a, path in itertools.product(ROOTS, [Q, NATIVE])}
    underscored |= {f"{ROOTS[0]}{Q.replace('.', '_')}_": f"unet.{Q}"}
    underscored |= {f"{a}{TEXT.replace('.', '_')}": f"text_encoder.{TEXT}" for a in TEXT_ROOTS}
    return {**dotted, **text, **underscored}


NAMES = layer_names()


@pytest.fixture(scope="module")
def index(family: Family) -> LayerIndex:
    return LayerIndex(BaseNames.of(family.networks))


def test_there_are_many_names() -> None:
    assert len(NAMES) > 250 and len(FACTORS) > 10


def test_each_name_of_a_layer_is_found_behind_each_ending(index: LayerIndex) -> None:
    for (name, path), (down, up) in itertools.product(NAMES.items(), FACTORS):
        for ending, part in ((down, "down"), (up, "up")):
            parsed = parse_name(name + ending)
            assert parsed is not None and parsed.part == part, name + ending
            assert index.find(parsed.layer) == {path}, name + ending
        for alpha in ALPHAS:
            assert (parsed := parse_name(alpha.format(layer=name, down=name + down))) and parsed.part == "alpha"
            assert index.find(parsed.layer) == {path}, (alpha, name, down)


@pytest.mark.parametrize("ending", [".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.default.weight",
    ".lora_magnitude_vector.default", ".lora_magnitude_vector.weight", ".magnitude", ".lora.dora_scale",
    ".lora.lora_magnitude_vector.weight"])  # fmt: skip
def test_each_spelling_of_dora_s_magnitudes_is_one(ending: str, index: LayerIndex) -> None:
    parsed = parse_name(f"unet.{Q}{ending}")
    assert parsed is not None and parsed.part in ("magnitude", "dora_scale")
    assert index.find(parsed.layer) == {f"unet.{Q}"}


def factors(family: Family, path: str) -> LoraFactors:
    weight = family.networks[path.partition(".")[0]].get_submodule(path.partition(".")[2]).weight
    assert isinstance(weight, Tensor)
    places = (1,) * (weight.ndim - 2)
    return LoraFactors(torch.randn(4, *weight.shape[1:]), torch.randn(weight.shape[0], 4, *places), 2.0)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(NAMES)), st.sampled_from(FACTORS), st.sampled_from(["", *ALPHAS]))
def test_a_file_of_any_names_is_read_exactly(
    family: Family, tmp_path_factory: pytest.TempPathFactory, name: str, endings: tuple[str, str], alpha: str
) -> None:
    own = factors(family, NAMES[name])
    tensors = {name + endings[0]: own.down, name + endings[1]: own.up}
    if alpha:
        tensors[alpha.format(layer=name, down=name + endings[0])] = torch.tensor(2)
    file = tmp_path_factory.mktemp("names") / "x.safetensors"
    save_file(tensors, file)
    if name.startswith("base_model.model.") and not alpha:
        Path(file.parent, "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4}))
    read = load(file, family.networks).weights
    assert list(read) == [NAMES[name]]
    got = read[NAMES[name]]
    assert isinstance(got, LoraFactors)
    assert torch.equal(got.down, own.down) and torch.equal(got.up, own.up) and got.scale == (0.5 if alpha else 1.0)


def test_names_of_several_kinds_in_one_file_are_all_read(family: Family, tmp_path: Path) -> None:
    attention = Q.rpartition(".")[0]
    conv = "down_blocks.0.resnets.0.conv1"
    kohya = (".lora_down.weight", ".lora_up.weight")
    names = {
        f"unet.{Q}": (f"unet.{Q}", ".lora_A.weight", ".lora_B.weight"),
        f"unet.{attention}.to_k": (f"lora_unet_{attention}.to_k".replace(".", "_"), *kohya),
        f"unet.{attention}.to_v": (NATIVE.replace("to_q", "to_v"), *kohya),
        f"unet.{attention}.to_out.0": (f"{attention}.processor.to_out", "_lora.down.weight", "_lora.up.weight"),
        f"unet.{conv}": ("lora_unet_input_blocks_1_0_in_layers_2", *kohya),
        f"text_encoder.{TEXT}": (f"lora_te_text_model_{TEXT.replace('.', '_')}", *kohya),
    }
    own = {path: factors(family, path) for path in names}
    tensors = {name + down: own[path].down for path, (name, down, _) in names.items()}
    tensors |= {name + up: own[path].up for path, (name, _, up) in names.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    read = load(tmp_path / "x.safetensors", family.networks).weights
    assert read.keys() == names.keys()
    assert all(torch.equal(read[path].state_dict()["up"], own[path].up) for path in names)
    assert info(tmp_path / "x.safetensors").format == "attn_processor, diffusers, kohya"


def test_a_core_between_the_factors_is_multiplied_in(family: Family, tmp_path: Path) -> None:
    """LoCon's Tucker decomposition: delta W[o, i, h, w] = sum of B[o, p] core[p, q, h, w] A[q, i], times alpha/r."""
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    out, into, *_ = layers_of(family.networks)["unet.down_blocks.0.resnets.0.conv1"].weight.shape
    down, core, up = torch.randn(3, into, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(out, 3, 1, 1)
    tensors = {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up, "alpha": torch.tensor(1.5)}
    save_file({f"{name}.{ending}": tensor for ending, tensor in tensors.items()}, tmp_path / "x.safetensors")
    read = load(tmp_path / "x.safetensors", family.networks).weights["unet.down_blocks.0.resnets.0.conv1"]
    expected = 0.5 * torch.einsum("op,pqhw,qi->oihw", up.flatten(1), core, down.flatten(1))
    torch.testing.assert_close(read.delta_weight(expected), expected, rtol=1e-5, atol=1e-5)
    tensors["lora_down.weight"] = torch.randn(2, into, 1, 1)
    save_file({f"{name}.{ending}": tensor for ending, tensor in tensors.items()}, tmp_path / "y.safetensors")
    with raises_code("adapter.bad_factors"):
        load(tmp_path / "y.safetensors", family.networks)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_native_names_are_those_of_the_tables_and_of_diffusers(name: str) -> None:
    """At full size, without numbers; diffusers' own converter of checkpoints turns each name back."""
    config = json.loads((DATA / f"{name}_unet_config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    rows = dict(line.split() for line in (DATA / f"{name}_unet_keys.txt").read_text().splitlines())
    names = native_names(unet)
    assert names == rows and len(set(names.values())) == len(names)
    ends = ("weight", "bias")  # which the converter takes for granted
    checkpoint = {f"model.diffusion_model.{names[path]}.{end}": f"{path}.{end}" for path in names for end in ends}
    converted = convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))
    assert converted == {f"{path}.{end}": f"{path}.{end}" for path in names for end in ends}


def test_the_tiny_base_s_native_names_mean_each_layer_once(family: Family, index: LayerIndex) -> None:
    paths = [path for path in layers_of(family.networks) if path.startswith("unet.")]
    native = family.key_names["native"]
    assert {path: index.find(native[path].partition(".")[2]) for path in paths} == {path: {path} for path in paths}
    underscored = {path: f"lora_unet_{native[path].partition('.')[2].replace('.', '_')}" for path in paths}
    assert {path: index.find(name) for path, name in underscored.items()} == {path: {path} for path in paths}


def test_a_name_with_dots_is_not_compared_by_underscores() -> None:
    networks = {"unet": nn.ModuleDict({"a_b": nn.Linear(6, 5)})}
    assert LayerIndex(BaseNames(networks)).find("unet.a.b") == set()
    assert LayerIndex(BaseNames(networks)).find("lora_unet_a_b") == {"unet.a_b"}


def test_of_two_layers_of_one_name_the_one_that_fits_is_meant(tmp_path: Path) -> None:
    """A file of one text encoder does not say of which; only one of a base's is as wide."""
    sizes = {"text_encoder": 6, "text_encoder_2": 7}
    networks = {name: nn.ModuleDict({"fc1": nn.Linear(size, 5)}) for name, size in sizes.items()}
    tensors = {"fc1.lora_A.weight": torch.ones(2, 7), "fc1.lora_B.weight": torch.ones(5, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert list(load(tmp_path / "x.safetensors", networks).weights) == ["text_encoder_2.fc1"]


READ: dict[str, list[str]] = {
    "lora": ["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "lora_unet_x.scalar", "lora_unet_x.alpha"],
    "dora": ["unet.x.lora_A.weight", "unet.x.lora_B.weight", "unet.x.lora_magnitude_vector"],
    "loha": ["lora_unet_x.hada_w1_a", "lora_unet_x.hada_w1_b", "lora_unet_x.hada_t1", "lora_unet_x.alpha"],
    "lokr": ["lora_unet_x.lokr_w1", "lora_unet_x.lokr_w2_a", "lora_unet_x.lokr_t2", "lora_unet_x.alpha"],
    "doha": ["lora_unet_x.hada_w1_a", "lora_unet_x.dora_scale"],
    "dokr": ["lora_unet_x.lokr_w1", "lora_unet_x.dora_scale"],
    "oft": ["lora_unet_x.oft_blocks", "lora_unet_x.rescale", "lora_unet_x.alpha"],
    "oft_of_peft": ["lora_unet_x.oft_R.weight", "lora_unet_x.oft_R.scaled_oft"],
    "boft_of_peft": ["base_model.model.x.boft_R", "base_model.model.x.boft_s"],
    "ia3": ["lora_unet_x.weight", "lora_unet_x.on_input"],
    "ia3_of_peft": ["base_model.model.x.ia3_l"],
    "glora": ["lora_unet_x.a1.weight", "x.a2.weight", "x.b1.weight", "x.b2.weight", "x.bm.weight", "lora_unet_x.alpha"],
    "dylora": ["lora_unet_x.up_list.0", "lora_unet_x.down_list.0", "lora_unet_x.down_list.11", "lora_unet_x.alpha"],
    "full": ["lora_unet_x.diff", "lora_unet_x.diff_b"],
    "norm": ["lora_unet_x.w_norm", "lora_unet_x.b_norm"],
}


@pytest.mark.parametrize("method", READ)
def test_the_method_is_told_by_its_parts(method: str) -> None:
    parts = [parsed.part for name in READ[method] if (parsed := parse_name(name)) is not None]
    assert len(parts) == len(READ[method]) == len(set(parts))
    assert method_of("x", parts).method == method


@pytest.mark.parametrize("bias", ["lora_unet_x.diff_b", "x.lora_B.bias", "x.lora_B.default.bias", "x_lora.up.bias"])
@pytest.mark.parametrize("method", ["lora", "loha"])
def test_a_bias_may_be_beside_a_method(method: str, bias: str) -> None:
    parts = [parsed.part for name in (*READ[method], bias) if (parsed := parse_name(name)) is not None]
    assert len(parts) == len(READ[method]) + 1
    assert method_of("x", parts).method == method


@pytest.mark.parametrize("name", ["model.layers.0.weight", "x.weight", "unet.x.weight", "conv.scalar"])
def test_plain_endings_count_behind_a_network_in_underscores_only(name: str) -> None:
    assert parse_name(name) is None


METHODS: dict[str, dict[str, tuple[int, ...]]] = {
    "AdaLoRA": {"base_model.model.x.lora_A": (2, 4), "base_model.model.x.lora_E": (2, 1)},
    "VeRA": {"base_model.model.x.vera_lambda_b": (4,), "base_model.model.x.vera_lambda_d": (2,)},
    "OFT of FLUX in kohya's trainer": {"oft_unet_x.oft_blocks.0": (4, 8, 8), "oft_unet_x.oft_blocks.1": (4, 8, 8)},
    "T-LoRA": {"lora_unet_x.q_layer.weight": (4, 8), "lora_unet_x.lambda_layer": (1, 4)},
    "LoRA of embeddings": {"base_model.model.x.lora_embedding_A": (4, 8)},
    "full difference": {"diffusion_model.x.diff_m": (4,)},
    "FourierFT": {"base_model.model.x.fourierft_spectrum": (100,)},
    "RandLoRA": {"base_model.model.x.randlora_lambda": (4, 2)},
    "prompt tuning": {"prompt_embeddings": (8, 700)},
    "textual inversion": {"emb_params": (4, 768)},
    "hypernetwork": {"768.0.linear.0.weight": (768, 768)},
}  # fmt: skip
TOKENS: list[dict[str, tuple[int, ...]]] = [
    {"<cat>": (768,)},
    {"clip_l": (2, 768), "clip_g": (2, 1280)},
    {"string_to_param.*": (4, 768)},
    {"my-cat": (1, 1024)},
]


@pytest.mark.parametrize("title", METHODS)
def test_a_method_that_is_not_read_is_called_by_its_name(title: str) -> None:
    with raises_code("weights.unsupported_method", f"is of the method {title}, which is not read"):
        refuse_foreign(METHODS[title], [name for name in METHODS[title] if parse_name(name) is None])


@pytest.mark.parametrize("shapes", TOKENS)
def test_tokens_are_told_by_their_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    with raises_code("weights.unsupported_method", "is of the method textual inversion"):
        refuse_foreign(shapes, list(shapes))


OTHERS = {
    "a whole checkpoint": "model.diffusion_model.input_blocks.0.0.weight",
    "a ControlNet": "control_model.input_blocks.0.0.weight",
    "a ControlNet-LLLite": "lllite_unet_input_blocks_4_1.conditioning1.0.weight",
    "an IP-Adapter": "image_proj.proj.weight",
    "an autoencoder (VAE)": "decoder.conv_in.weight",
    "a T2I-Adapter": "body.0.in_conv.weight",
    "a training's saved state": "optimizer.0.exp_avg",
    "a language model": "model.layers.0.self_attn.q_proj.weight",
    "a text encoder (T5)": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "a text encoder": "text_model.encoder.layers.0.self_attn.q_proj.weight",
    "a denoiser": "down_blocks.0.resnets.0.conv1.weight",
    "a motion module (AnimateDiff)": "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight",
    "an upscaler": "conv_first.weight",
    "a LoRA of cloneofsimo's trainer of 2022": "unet:0:up",
}


def test_a_text_encoder_whose_names_have_no_levels_is_no_token() -> None:
    shapes = {"positional_embedding": (77, 1280), "transformer.resblocks.0.ln_1.weight": (1280,)}
    with raises_code("weights.not_an_adapter", "is a text encoder and no adapter"):
        refuse_foreign(shapes, list(shapes))


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_adapter_is_called_by_its_name(kind: str) -> None:
    with raises_code("weights.not_an_adapter", f"is {kind}"):
        refuse_foreign({OTHERS[kind]: (4, 4)}, [OTHERS[kind]])


FAMILIES = [
    ("lora_unet_double_blocks_0_img_attn_qkv", None, "FLUX"),
    ("transformer.single_transformer_blocks.0.attn.to_q", None, "FLUX"),
    ("lora_unet_joint_blocks_0_x_block_attn_qkv", None, "Stable Diffusion 3"),
    ("transformer.transformer_blocks.0.img_mlp.net.2", None, "Qwen-Image"),
    ("diffusion_model.layers.0.attention.qkv", None, "Z-Image or Lumina"),
    ("diffusion_model.blocks.0.self_attn.q", None, "Wan"),
    ("lora_unet_blocks_0_attn_wq", None, "Krea 2"),
    ("lora_te2_text_model_encoder_layers_0_mlp_fc1", None, "Stable Diffusion XL"),
    ("lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q", None, "Stable Diffusion XL"),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 2048, "Stable Diffusion XL"),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 1024, "Stable Diffusion 2"),
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v", 768, "Stable Diffusion 1"),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 64, None),
]


@pytest.mark.parametrize(("name", "width", "told"), FAMILIES)
def test_an_adapter_s_family_is_told(
    name: str, width: int | None, told: str | None, family: Family, tmp_path: Path
) -> None:
    down, up = (".lora_A.weight", ".lora_B.weight") if "." in name else (".lora_down.weight", ".lora_up.weight")
    shapes: Any = {name + down: (4, width or 640), name + up: (640, 4)}
    assert family_of(shapes, {}) == told
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, tmp_path / "x.safetensors")
    code = "adapter.other_architecture" if "_blocks.1." in name or "_blocks_1_" in name else "weights.unknown_layer"
    with raises_code(code, f"it is an adapter of {told}" if told else "use the base"):
        load(tmp_path / "x.safetensors", family.networks)


def test_a_family_is_told_by_the_metadata_too() -> None:
    assert family_of({"lora_unet_x.alpha": ()}, {"ss_base_model_version": "sdxl_base_v1-0"}) == "Stable Diffusion XL"
    assert family_of({"lora_unet_x.alpha": ()}, {"modelspec.architecture": "flux-1-dev/lora"}) == "FLUX"
    assert family_of({"lora_unet_x.alpha": ()}, {}) is None

"""Adapter files: every tensor accounted for, the strength in one place, mistakes in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.weights.file import FILE_NAME, AdapterFile, info, load, save
from veneer.weights.formats.diffusers import METADATA_KEY


def factors(seed: int = 0, rank: int = 2, alpha: float = 3.0, conv: bool = False) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    kernel, place = ((3, 3), (1, 1)) if conv else ((), ())
    down = torch.randn(rank, 6, *kernel, generator=generator)
    return LoraFactors(down, torch.randn(5, rank, *place, generator=generator), alpha)


def adapter() -> AdapterFile:
    named = {"unet.mid.to_q": factors(0), "unet.conv_in": factors(1, 4, 4.0, conv=True)}
    return AdapterFile(named | {"text_encoder.encoder.fc1": factors(2, 1, 0.5)}, {"base": "x", "note": "é"})


def network() -> dict[str, nn.Module]:
    unet = nn.ModuleDict({"mid": nn.ModuleDict({"to_q": nn.Linear(6, 5)}), "conv_in": nn.Conv2d(6, 5, 3)})
    return {"unet": unet, "text_encoder": nn.ModuleDict({"encoder": nn.ModuleDict({"fc1": nn.Linear(6, 5)})})}


def pair(layer: str, seed: int = 0) -> dict[str, Tensor]:
    return {f"{layer}.lora_A.weight": factors(seed).down, f"{layer}.lora_B.weight": factors(seed).up}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata)
    return path


def refused(path: Path, code: str, networks: dict[str, nn.Module] | None = None) -> str:
    """Check that a file is refused with this code; return the message without the path."""
    with raises_code(code) as error:
        load(path, networks)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def test_round_trip_keeps_delta_and_metadata(tmp_path: Path) -> None:
    before = adapter()
    save(before, tmp_path / FILE_NAME)
    for where in (tmp_path, tmp_path / FILE_NAME):
        after = load(where)
        assert after.metadata == before.metadata
        assert after.weights.keys() == before.weights.keys()
        for name, each in after.weights.items():
            assert each.alpha == each.rank == before.weights[name].rank
            torch.testing.assert_close(delta_weight(each), delta_weight(before.weights[name]), rtol=1e-6, atol=1e-6)


@given(st.floats(0.1, 100), st.integers(1, 6), st.booleans(), st.sampled_from([torch.float32, torch.float16]))
@settings(max_examples=25, deadline=None)
def test_strength_is_in_b_with_metadata_or_without(
    tmp_path_factory: pytest.TempPathFactory, alpha: float, rank: int, conv: bool, dtype: torch.dtype
) -> None:
    path = tmp_path_factory.mktemp("file") / FILE_NAME
    each = factors(3, rank, alpha, conv).to("cpu", dtype)
    save(AdapterFile({"unet.x": each}), path)
    bare = write(path.with_name("bare.safetensors"), load_file(path))
    for read in (load(path).weights["unet.x"], load(bare).weights["unet.x"]):
        assert (read.up.dtype, read.scale) == (dtype, 1.0)
        assert torch.equal(read.up, (each.up.double() * (alpha / rank)).to(dtype))


def test_bytes_depend_on_the_adapter_alone(tmp_path: Path) -> None:
    one = adapter()
    other = AdapterFile(dict(reversed(one.weights.items())), dict(reversed(one.metadata.items())))
    digest = save(one, tmp_path / "one.safetensors")
    assert save(other, tmp_path / "other.safetensors") == digest
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    assert hashlib.sha256((tmp_path / "one.safetensors").read_bytes()).hexdigest() == digest
    changed = AdapterFile({**one.weights, "unet.mid.to_q": factors(9)}, one.metadata)
    assert save(changed, tmp_path / "changed.safetensors") != digest


def test_saving_changes_nothing_in_memory(tmp_path: Path) -> None:
    before = adapter()
    copies = {name: each.up.clone() for name, each in before.weights.items()}
    save(before, tmp_path / FILE_NAME)
    assert all(torch.equal(each.up, copies[name]) for name, each in before.weights.items())


def test_saves_factors_that_share_memory_or_are_strided(tmp_path: Path) -> None:
    down = nn.Parameter(torch.arange(12.0).view(6, 2)).t()
    shared = LoraFactors(down, factors().up, 2.0)
    save(AdapterFile({"unet.a": shared, "unet.b": shared}), tmp_path / FILE_NAME)
    assert all(torch.equal(each.down, down) for each in load(tmp_path).weights.values())


def test_metadata_has_what_readers_look_for(tmp_path: Path) -> None:
    save(adapter(), tmp_path / FILE_NAME)
    with safe_open(tmp_path / FILE_NAME, framework="pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata[METADATA_KEY])
    assert metadata["format"] == "pt"
    assert config["unet.target_modules"] == ["conv_in", "mid.to_q"]
    assert config["text_encoder.r"] == config["text_encoder.lora_alpha"] == 1
    assert config["unet.rank_pattern"] == config["unet.alpha_pattern"] != {}


def test_refuses_to_save_nothing_and_nan(tmp_path: Path) -> None:
    with raises_code("weights.empty"):
        save(AdapterFile({}), tmp_path / FILE_NAME)
    broken = LoraFactors(torch.ones(1, 2), torch.tensor([[float("nan")]]), 1.0)
    with raises_code("weights.not_finite"):
        save(AdapterFile({"unet.x": broken}), tmp_path / FILE_NAME)
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize("name", ["x.pt", "x.CKPT"])
def test_refuses_to_save_under_a_name_that_it_would_not_read(tmp_path: Path, name: str) -> None:
    with raises_code("weights.pickle"):
        save(adapter(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_refuses_to_save_what_overflows_its_dtype(tmp_path: Path) -> None:
    each = LoraFactors(torch.ones(1, 2).half(), torch.full((2, 1), 60000.0).half(), 2.0)
    with raises_code("weights.not_finite"):
        save(AdapterFile({"unet.x": each}), tmp_path / FILE_NAME)


def test_folder_without_an_adapter(tmp_path: Path) -> None:
    message = refused(tmp_path, "weights.no_adapter_file")
    assert "holds neither pytorch_lora_weights.safetensors nor adapter_model" in message


@pytest.mark.parametrize("extra", ["unet.x.lora_C.weight", "unet.x.weight", "x"])
def test_refuses_a_tensor_it_does_not_know(tmp_path: Path, extra: str) -> None:
    path = write(tmp_path / "x.safetensors", {**pair("unet.x"), extra: torch.ones(1)})
    message = refused(path, "weights.unknown_tensor")
    assert message.startswith(f"tensor {extra} belongs to no adapter method that Veneer reads; it reads LoRA")


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ("unet.x.lora_E", "weights.unsupported_method"),
        ("unet.x.lora_embedding_A", "weights.unsupported_method"),
        ("unet.x.hada_w1_a", "weights.mixed_parts"),
        ("unet.x.oft_blocks", "weights.mixed_parts"),
        ("unet.x.diff", "weights.mixed_parts"),
    ],
)
def test_refuses_a_tensor_of_another_method(tmp_path: Path, extra: str, code: str) -> None:
    path = write(tmp_path / "x.safetensors", {**pair("unet.x"), extra: torch.ones(1)})
    refused(path, code)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_refuses_an_adapter_that_changed_its_base(tmp_path: Path, start: str) -> None:
    path = peft_folder(tmp_path, "mid.to_q", {"r": 2, "lora_alpha": 2, "init_lora_weights": start})
    assert "which takes the start out of the base's weights" in refused(path, "weights.unsupported_method", network())


def test_peft_s_config_may_name_another_method(tmp_path: Path) -> None:
    path = peft_folder(tmp_path, "mid.to_q", {"r": 2, "lora_alpha": 2, "peft_type": "XLORA"})
    assert "is of the method XLORA" in refused(path, "weights.unsupported_method", network())


@pytest.mark.parametrize("axes", [2, 4])
def test_a_linear_layer_is_a_convolution_of_one(tmp_path: Path, axes: int) -> None:
    """SD 2's projections are the one in some releases and the other in others."""
    layers = {2: nn.Conv2d(6, 5, 1), 4: nn.Linear(6, 5)}
    own = factors()
    places = (1, 1) if axes == 4 else ()
    down, up = own.down.reshape(2, 6, *places), own.up.reshape(5, 2, *places)
    names = ("unet.x.lora_down.weight", "unet.x.lora_up.weight", "unet.x.dora_scale")
    tensors = dict(zip(names, (down, up, torch.ones(5, 1, *places)), strict=True))
    read = load(write(tmp_path / "x.safetensors", tensors), {"unet": nn.ModuleDict({"x": layers[axes]})}).weights[
        "unet.x"
    ]
    assert read.shape == tuple(layers[axes].weight.shape) and read.method.name == "dora"
    assert torch.equal(read.state_dict()["up"].flatten(1), own.up)
    wide = nn.Conv2d(6, 5, 3)
    refused(tmp_path / "x.safetensors", "adapter.other_architecture", {"unet": nn.ModuleDict({"x": wide})})


def test_refuses_a_magnitude_that_fits_neither_side(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**pair("unet.x"), "unet.x.dora_scale": torch.ones(1)})
    refused(path, "adapter.bad_factors")


def test_an_alpha_beside_peft_s_names_is_the_strength(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**pair("unet.x"), "unet.x.alpha": torch.ones(1)})
    assert load(path).weights["unet.x"].scale == 0.5
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 1})
    told = {**pair("unet.x"), "unet.x.alpha": torch.tensor(1)}
    assert load(write(path, told, {METADATA_KEY: config})).weights["unet.x"].scale == 0.5
    told["unet.x.alpha"] = torch.tensor(4.0)
    message = refused(write(path, told, {METADATA_KEY: config}), "weights.config_contradicts")
    assert message.startswith("unet.x: its alpha is 4, and its config tells 1")


@pytest.mark.parametrize(("lost", "named"), [("lora_A", "has no A (down)"), ("lora_B", "has no B (up)")])
def test_refuses_half_a_pair(tmp_path: Path, lost: str, named: str) -> None:
    tensors = {name: tensor for name, tensor in pair("unet.x").items() if lost not in name}
    path = write(tmp_path / "x.safetensors", tensors | pair("unet.y"))
    assert refused(path, "adapter.missing_part") == f"unet.x: {named}; the file is not whole"


def test_refuses_factors_that_do_not_fit_and_names_the_layer(tmp_path: Path) -> None:
    tensors = {"unet.x.lora_A.weight": torch.ones(2, 3), "unet.x.lora_B.weight": torch.ones(3, 4)}
    message = refused(write(tmp_path / "x.safetensors", tensors), "adapter.bad_factors")
    assert message.startswith("unet.x: A (2, 3) and B (3, 4) are not")
    tensors["unet.x.lora_A.weight"] = torch.tensor(1.0)
    refused(write(tmp_path / "x.safetensors", tensors), "adapter.bad_factors")


def test_refuses_a_file_of_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {})
    assert refused(path, "weights.empty") == "holds no adapter: there is no tensor in it; name another file"


def test_refuses_one_layer_under_two_names(tmp_path: Path) -> None:
    twice = pair("text_encoder.encoder.fc1") | pair("text_encoder.text_model.encoder.fc1")
    message = refused(write(tmp_path / "x.safetensors", twice), "weights.layer_twice")
    assert "has text_encoder.encoder.fc1 twice" in message
    twice = pair("unet.x") | {"unet.x.lora.down.weight": torch.ones(2, 6)}
    message = refused(write(tmp_path / "y.safetensors", twice), "weights.tensor_twice")
    assert "unet.x has two tensors of one kind" in message


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "its config is not JSON"),
        ("[1]", "its config is not a JSON object"),
        ('{"a":' * 10**5, "its config is not JSON"),
        ('{"unet.r": 2, "unet.lora_alpha": 1' + "0" * 400 + "}", "does not tell the strength of unet.x"),
        ("{}", "its config does not tell the strength of unet.x (KeyError('r'))"),
        ('{"unet.r": 2}', "its config does not tell the strength of unet.x (KeyError('lora_alpha'))"),
        ('{"unet.r": 2, "unet.lora_alpha": "much"}', "does not tell the strength of unet.x"),
        ('{"unet.r": 2, "unet.lora_alpha": 2, "unet.rank_pattern": {"(": 1}}', "does not tell the strength of unet.x"),
        ('{"unet.r": 2, "unet.lora_alpha": 2, "unet.rank_pattern": [1]}', "does not tell the strength of unet.x"),
        ('{"unet.r": 8, "unet.lora_alpha": 2}', "unet.x: its config says rank 8, and its tensors have rank 2"),
        ('{"text_encoder.r": 2, "text_encoder.lora_alpha": 2}', "does not tell the strength of unet.x"),
    ],
)
def test_refuses_metadata_that_leaves_the_strength_open(tmp_path: Path, config: str, reason: str) -> None:
    code = "adapter.other_rank" if "rank 8" in reason else "weights.bad_config"
    assert reason in refused(write(tmp_path / "x.safetensors", pair("unet.x"), {METADATA_KEY: config}), code)


@pytest.mark.parametrize(
    ("extra", "alpha"),
    [
        ({}, 8.0),
        ({"unet.use_rslora": True}, 8.0 * 2**0.5),
        ({"unet.alpha_pattern": {"to_q": 3}}, 3.0),
        ({"unet.alpha_pattern": {"mid.to_q": 3}}, 3.0),
        ({"unet.alpha_pattern": {"^mid.to_q": 3}}, 3.0),
        ({"unet.alpha_pattern": {r"^mid\.to_q": 3}}, 3.0),
        ({"unet.alpha_pattern": {"mid.to_q$": 3}}, 3.0),
        ({"unet.alpha_pattern": {"^to_q": 3, "o_q": 5, "mid": 7}}, 8.0),
        ({"unet.alpha_pattern": {"to_q": 3, "^mid.to_q": 5}}, 3.0),
        ({"unet.alpha_pattern": {"^mid.to_q": 5, "to_q": 3}}, 5.0),
    ],
)
def test_reads_the_strength_as_peft_does(tmp_path: Path, extra: dict[str, object], alpha: float) -> None:
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 8} | extra)
    path = write(tmp_path / "x.safetensors", pair("unet.mid.to_q"), {METADATA_KEY: config})
    assert load(path).weights["unet.mid.to_q"].alpha == pytest.approx(alpha)
    patterns = extra.get("unet.alpha_pattern", {})
    assert isinstance(patterns, dict)
    if patterns:
        assert patterns.get(get_pattern_key(patterns, "mid.to_q"), 8) == alpha


@pytest.mark.parametrize("pattern", ["(a+)+", ".*to_q", "to_q|to_k", "to_[qk]", r"to_\w", "mid.to_q{1,9}"])
def test_a_pattern_that_is_no_name_is_refused_and_not_run(tmp_path: Path, pattern: str) -> None:
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 2, "unet.rank_pattern": {pattern: 2}})
    path = write(tmp_path / "x.safetensors", pair(f"unet.{'a' * 60}!"), {METADATA_KEY: config})
    assert f"the pattern {pattern} is not a layer's name".replace("\\", "\\\\") in refused(path, "weights.bad_config")


@pytest.mark.parametrize("name", ["unet." + "x" * 600, "unet.\x1b[2J", "unet.a\nb"])
def test_refuses_a_name_that_no_layer_has(tmp_path: Path, name: str) -> None:
    message = refused(write(tmp_path / "x.safetensors", pair(name)), "weights.bad_tensor_name")
    assert message.startswith("has a tensor of which the name is no")


def test_a_tensor_under_two_names_is_not_lost(tmp_path: Path) -> None:
    peft = {**pair("base_model.model.mid.to_q"), **pair("mid.to_q")}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
    assert "twice, under two names" in refused(write(tmp_path / "x.safetensors", peft), "weights.tensor_twice")
    old = {
        f"unet.x.processor.to_q_lora.{part}.weight": tensor
        for part, tensor in zip(("down", "up"), pair("a").values(), strict=True)
    }
    both = {**old, "unet.x.to_q.lora.down.weight": factors().down}
    assert "twice" in refused(write(tmp_path / "y.safetensors", both), "weights.tensor_twice")


def peft_folder(tmp_path: Path, layer: str, config: object) -> Path:
    write(tmp_path / "adapter_model.safetensors", pair(f"base_model.model.{layer}"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path / "adapter_model.safetensors"


def test_reads_a_peft_folder(tmp_path: Path) -> None:
    peft_folder(tmp_path, "mid.to_q", {"r": 2, "lora_alpha": 7})
    read = load(tmp_path, network()).weights
    assert list(read) == ["unet.mid.to_q"]
    assert read["unet.mid.to_q"].alpha == 7


def test_peft_needs_its_config_and_a_base(tmp_path: Path) -> None:
    path = peft_folder(tmp_path, "mid.to_q", {"r": 2, "lora_alpha": 7})
    message = refused(path, "weights.needs_base")
    told = "its peft names, such as mid.to_q, need a base to tell which layers they are"
    assert message == f"{told}; name the base as well: --base, or networks in Python"
    (tmp_path / "adapter_config.json").unlink()
    message = refused(path, "weights.no_peft_config", network())
    assert message.startswith("has no adapter_config.json beside it")


@pytest.mark.parametrize("text", ["encoder.fc1", "text_model.encoder.fc1"])
def test_peft_of_a_text_encoder_in_either_spelling(tmp_path: Path, text: str) -> None:
    peft_folder(tmp_path, text, {"r": 2, "lora_alpha": 2})
    assert list(load(tmp_path, network()).weights) == ["text_encoder.encoder.fc1"]


def kohya(layer: str, alpha: Tensor | None = None) -> dict[str, Tensor]:
    tensors = {f"{layer}.lora_down.weight": factors().down, f"{layer}.lora_up.weight": factors().up}
    return tensors if alpha is None else {**tensors, f"{layer}.alpha": alpha}


def test_reads_kohya_against_the_base(tmp_path: Path) -> None:
    tensors = kohya("lora_unet_mid_to_q", torch.tensor(6.0)) | kohya("lora_te_text_model_encoder_fc1")
    read = load(write(tmp_path / "x.safetensors", tensors), network()).weights
    assert {name: each.alpha for name, each in read.items()} == {
        "unet.mid.to_q": 6.0,
        "text_encoder.encoder.fc1": 2.0,
    }


def test_reads_the_alpha_that_kohya_writes_by_default(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", kohya("lora_unet_mid_to_q", torch.tensor(1)))
    assert load(path, network()).weights["unet.mid.to_q"].scale == 0.5
    assert info(path).hyperparameters["alpha"] == (1.0,)


def test_kohya_needs_a_base_that_has_its_layers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", kohya("lora_unet_mid_to_q"))
    refused(path, "weights.needs_base")
    foreign = write(tmp_path / "y.safetensors", kohya("lora_unet_input_blocks_4_1"))
    message = refused(foreign, "weights.unknown_layer", network())
    assert message.startswith("its name lora_unet_input_blocks_4_1 means no layer of the base")


def test_kohya_name_that_means_two_layers(tmp_path: Path) -> None:
    unet = nn.ModuleDict({"a_b": nn.Linear(6, 5), "a": nn.ModuleDict({"b": nn.Linear(6, 5)})})
    path = write(tmp_path / "x.safetensors", kohya("lora_unet_a_b"))
    message = refused(path, "weights.ambiguous_layer", {"unet": unet})
    assert "means unet.a.b and unet.a_b of the base" in message


def test_kohya_alpha_is_one_number_or_one_for_each_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", kohya("lora_unet_mid_to_q", torch.ones(3)))
    assert refused(path, "adapter.bad_alpha", network()) == "lora_unet_mid_to_q: its alpha is not one number but 3"


def test_info_tells_what_is_in_it(tmp_path: Path) -> None:
    digest = save(adapter(), tmp_path / FILE_NAME)
    told = info(tmp_path)
    assert (told.format, told.networks, told.targets) == ("diffusers", ("text_encoder", "unet"), 3)
    assert (told.hyperparameters["rank"], told.hyperparameters["alpha"]) == ((1, 2, 4), (1.0, 2.0, 4.0))
    assert told.parameters == (2 * 6 + 5 * 2) + (4 * 54 + 5 * 4) + (6 + 5)
    assert (told.size_bytes, told.sha256) == ((tmp_path / FILE_NAME).stat().st_size, digest)
    assert told.metadata == {"base": "x", "note": "é"}


def test_info_needs_no_base(tmp_path: Path) -> None:
    tensors = kohya("lora_unet_mid_to_q", torch.tensor(1.0)) | kohya("lora_te1_x") | kohya("lora_te2_x")
    told = info(write(tmp_path / "x.safetensors", tensors))
    assert (told.format, told.networks) == ("kohya", ("text_encoder", "text_encoder_2", "unet"))
    assert (told.targets, told.hyperparameters) == (3, {"rank": (2,), "alpha": (1.0, 2.0)})
    peft_folder(tmp_path, "mid.to_q", {"r": 2, "lora_alpha": 7})
    told = info(tmp_path)
    assert (told.format, told.networks, told.hyperparameters["alpha"]) == ("peft", (), (7.0,))

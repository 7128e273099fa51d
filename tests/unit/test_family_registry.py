"""From the name of a base to its family, and one line for whatever is not a base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from veneer.errors import UserError
from veneer.family.registry import detect, load_family, one_line_errors
from veneer.plan.abstract import abstract_base
from veneer.plan.tracer import MemoryTracer


def copy_of(base: Path, folder: Path) -> Path:
    return Path(shutil.copytree(base, folder))


def test_loads_a_diffusers_folder(tiny_base: Path) -> None:
    family = load_family(str(tiny_base))
    assert family.name == "sd"
    assert set(family.networks) == {"unet", "text_encoder"}
    assert family.noise.prediction == "epsilon"


def test_a_float16_base_is_float32_in_every_part(tiny_base: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    half = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None).to(torch.float16)
    half.save_pretrained(tmp_path)
    family = load_family(str(tmp_path))
    kinds = {parameter.dtype for network in family.networks.values() for parameter in network.parameters()}
    assert kinds == {torch.float32}
    assert family.encode_image(torch.zeros(1, 3, 16, 16)).mean.dtype == torch.float32


def test_a_v_prediction_base_says_so(tiny_base_v: Path) -> None:
    noise = load_family(str(tiny_base_v)).noise
    assert noise.prediction == "v_prediction"
    assert noise.alphas_cumprod_T[-1] == 0  # zero terminal SNR


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.pth", "model.bin", "model.pickle", "MODEL.CKPT"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04")
    path.chmod(0)
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        load_family(str(path))


def test_a_folder_that_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model_index\.json; give a base in diffusers' folder layout"):
        load_family(str(tmp_path))


def test_another_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(UserError, match="is a StableDiffusionXLPipeline; known are StableDiffusionPipeline"):
        detect(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"_class_name": ["StableDiffusionPipeline"]}', '{"_class_name": null}', "[" * 10**5]
)
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(UserError, match="names no pipeline class"):
        detect(tmp_path)


def test_neither_folder_nor_hub_id(tmp_path: Path) -> None:
    for name in ("no-such-base", str(tmp_path / "missing"), "./missing/base"):
        with pytest.raises(UserError, match="is no folder and no file here"):
            load_family(name)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a")
    with pytest.raises(UserError, match=r"is no model; give a diffusers folder or a \.safetensors file"):
        load_family(str(path))


def test_weights_cut_short_are_one_line(tiny_base: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_family(str(base))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_that_lacks_a_weight_is_refused_and_not_filled_in_at_random(
    tiny_base: Path, tmp_path: Path, part: str
) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    (path,) = (base / part).glob("*.safetensors")
    weights = load_file(path)
    lost = next(name for name in sorted(weights) if "norm" in name)
    del weights[lost]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=f"{part} has no .*norm.*, and 0 more weights are missing; fetch the base"):
        load_family(str(base))


def test_a_base_of_pickles_only_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_family(str(base))


def test_an_inpainting_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    base = copy_of(tiny_base, tmp_path / "base")
    config = json.loads((base / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(base / "unet")
    with pytest.raises(UserError, match="use a text-to-image base, not an inpainting or depth model"):
        load_family(str(base))


@pytest.mark.parametrize("beside", [True, False])
def test_a_single_file_takes_the_configs_beside_it(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    from diffusers import StableDiffusionPipeline

    asked: list[dict[str, object]] = []

    def from_single_file(source: str, **options: object) -> StableDiffusionPipeline:
        asked.append({"source": source, **options})
        return StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", from_single_file)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    if beside:
        shutil.copy(tiny_base / "model_index.json", tmp_path)
    assert load_family(str(path)).name == "sd"
    configs = {"config": str(tmp_path)} if beside else {}
    assert asked == [{"source": str(path), "safety_checker": None, **configs}]


def test_a_single_file_that_cannot_be_loaded_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="a single file needs its configs"):
        load_family(str(path))


def cut_short(base: Path) -> None:
    weights = base / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def told(part: str, **values: object) -> Callable[[Path], None]:
    """Write values into a part's config; None takes a key out."""

    def spoil(base: Path) -> None:
        (path,) = (base / part).glob("*config.json")
        config = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return spoil


def other_scheduler(base: Path) -> None:
    index = json.loads((base / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (base / "model_index.json").write_text(json.dumps(index))


def no_tokenizer(base: Path) -> None:
    shutil.rmtree(base / "tokenizer")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_short, r"cannot be loaded \(SafetensorError: "),
        (told("vae", block_out_channels=None), "cannot be loaded .*; it must be complete"),
        (told("vae", scaling_factor="x"), "the autoencoder's scaling_factor is 'x'; it must be a number above 0"),
        (told("unet", sample_size=[2, 4]), r"the UNet's sample_size is \[2, 4\]"),
        (told("unet", attention_head_dim=0), r"cannot be loaded \(ZeroDivisionError: "),
        (other_scheduler, "the scheduler is a FlowMatchEulerDiscreteScheduler, which has no alphas_cumprod"),
        (told("scheduler", prediction_type="flow"), "the scheduler predicts 'flow'"),
        (no_tokenizer, r"the tokenizer cuts captions at 1e\+30 tokens, the text encoder reads 16"),
    ],
)
def test_a_broken_base_is_one_line(tiny_base: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    spoil(base)
    with pytest.raises(UserError, match=words) as caught:
        load_family(str(base))
    assert "\n" not in str(caught.value)


def test_a_plan_of_a_broken_base_is_one_line_too(tiny_base: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    told("unet", attention_head_dim=0)(base)
    with pytest.raises(UserError, match=r"cannot be loaded \(ZeroDivisionError: "):
        abstract_base(str(base), MemoryTracer(torch.device("cpu")), torch.float32)


def test_an_error_without_words_is_told_by_its_name() -> None:
    words = r"base: cannot be loaded \(AssertionError: \); fetch it"
    with pytest.raises(UserError, match=words), one_line_errors("base", "fetch it"):
        raise AssertionError

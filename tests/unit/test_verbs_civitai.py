"""A folder for Civitai, A1111 and Forge, read as their own code reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.bases import write_tiny_sdxl
from tests.errors import raises_code
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.cli.main import main
from veneer.family.registry import load_family
from veneer.sample.gallery import PictureNote, write_gallery
from veneer.sample.infotext import infotext
from veneer.verbs.civitai import make_civitai_folder
from veneer.weights.adapter_path import FILE_NAME
from veneer.weights.file import AdapterFile, load, save
from veneer.weights.summary import info

NOTES = (
    PictureNote('a cat: "big", zxc\nSteps: two', 3, 25, 4.0, "Euler a"),
    PictureNote("a dog, zxc", 4, 25, 4.5, "DPM++ 2M", strength=0.8),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl(tmp_path_factory.mktemp("base") / "sdxl")


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter with a gallery."""
    folder = tmp_path_factory.mktemp("runs") / "red shapes"
    networks = load_family(str(base)).networks
    weights = inject(networks, {"unet": LoraSpec(2, 4.0, ("to_q",))}, 0).weights()
    said = {"veneer.version": "0.1.0", "veneer.base": "sdxl", "veneer.steps": "40", "veneer.trigger": "zxc"}
    folder.mkdir()
    save(AdapterFile(weights, said), folder / FILE_NAME)
    pictures = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    write_gallery(folder / "gallery", [[picture] for picture in pictures], NOTES)
    return folder


@pytest.fixture(scope="module")
def made(trained: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("civitai") / "out"
    folder = make_civitai_folder(trained, out, base=str(base))
    assert folder.notes == ()
    assert sorted(path.name for path in out.iterdir()) == list(folder.files)
    return out


def parse_as_civitai(text: str) -> dict[str, Any]:
    """As ``automaticMetadataProcessor.parse`` does (civitai, src/utils/metadata/automatic.metadata.ts)."""
    lines = [line for line in text.split("\n") if line.strip()]
    details = next(line for line in lines if line.startswith("Steps: "))
    lines.remove(details)
    prompt = "\n".join(lines).split("Negative prompt:")[0].strip()
    found: dict[str, Any] = details_of(details)
    names = re.findall(r"<(lora|hypernet):([a-zA-Z0-9_.\-]+):([0-9.]+)>", prompt)
    hashes = found.pop("Lora hashes")
    found["resources"] = [
        {"type": kind, "name": name, "weight": float(weight), "hash": hashes[name]} for kind, name, weight in names
    ]
    return {**found, "prompt": prompt}


def details_of(line: str) -> dict[str, Any]:
    """As ``parseDetailsLine`` there."""
    result: dict[str, Any] = {}
    key, value, inside = "", "", False
    for character in line:
        if character == '"':
            if inside:
                result[key], key = details_of(value.strip()), ""
            inside = not inside
        elif character == ":" and not inside:
            key, value = value.strip(), ""
        elif character == "," and not inside:
            if key:
                result[key] = value.strip()
            key, value = "", ""
        else:
            value += character
        if character in '"' and not inside:
            value = ""
    if key:
        result[key] = value.strip()
    return result


def parse_as_a1111(text: str) -> dict[str, str]:
    """As ``parse_generation_parameters`` does (modules/infotext_utils.py): the last line's settings."""
    last = text.strip().split("\n")[-1]
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    return {key: json.loads(value) if value[:1] == '"' == value[-1:] else value for key, value in found}


def parameters_of(path: Path) -> str:
    with Image.open(path) as picture:
        return str(picture.info["parameters"])


def test_the_file_is_kohyas_and_the_same_adapter(made: Path, trained: Path, base: Path) -> None:
    file = made / "red_shapes.safetensors"
    names = load_file(file).keys()
    assert names and all(name.startswith("lora_unet_input_blocks_") or "lora_unet_" in name for name in names)
    family = load_family(str(base))
    ours, theirs = load(trained / FILE_NAME).weights, load(file, family.networks, family.key_names).weights
    weight = torch.empty(0)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[path].delta_weight(weight), theirs[path].delta_weight(weight)) for path in ours)


def test_the_file_says_what_lists_go_by(made: Path) -> None:
    with safe_open(made / "red_shapes.safetensors", "pt") as file:
        said = file.metadata()
    assert said["ss_base_model_version"] == "sdxl_base_v1-0"
    assert said["ss_output_name"] == said["modelspec.title"] == "red_shapes"
    assert (said["ss_network_dim"], said["ss_steps"], said["modelspec.trigger_phrase"]) == ("2", "40", "zxc")
    assert said["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert said["sshs_model_hash"] == info(made / "red_shapes.safetensors").hashes.data_sha256
    assert json.loads(said["veneer.history"])[0]["operation"] == "convert"


def test_civitai_reads_prompt_settings_and_adapter_of_each_picture(made: Path) -> None:
    first, second = sorted(made.glob("red_shapes-*.png"))
    hash_of_it = info(made / "red_shapes.safetensors").hashes.by_name["AutoV3"].lower()
    found = parse_as_civitai(parameters_of(second))
    assert found["prompt"] == "a dog, zxc <lora:red_shapes:0.8>"
    assert found["resources"] == [{"type": "lora", "name": "red_shapes", "weight": 0.8, "hash": hash_of_it}]
    expected = {"Steps": "25", "Sampler": "DPM++ 2M", "CFG scale": "4.5", "Seed": "4", "Size": "64x48", "Model": "sdxl"}
    assert expected.items() <= found.items()
    assert parse_as_civitai(parameters_of(first))["Seed"] == "3"


def test_a1111_reads_the_same(made: Path) -> None:
    first, second = (parse_as_a1111(parameters_of(path)) for path in sorted(made.glob("red_shapes-*.png")))
    assert (first["Sampler"], first["CFG scale"], first["Seed"]) == ("Euler a", "4", "3")
    assert second["Lora hashes"] == f"red_shapes: {info(made / 'red_shapes.safetensors').hashes.data_sha256[:12]}"


def test_a1111_finds_preview_and_card_by_the_files_name(made: Path) -> None:
    with Image.open(made / "red_shapes.png") as preview:
        assert preview.getpixel((0, 0)) == (255, 0, 0) and preview.size == (64, 48)
    card = json.loads((made / "red_shapes.json").read_text("utf-8"))
    expected = {"sd version": "SDXL", "activation text": "zxc", "preferred weight": 1.0, "negative text": ""}
    assert expected.items() <= card.items()
    assert card.keys() - expected.keys() == {"description", "notes"}


def test_the_form_is_filled_in_as_far_as_is_known(made: Path) -> None:
    lines = (made / "civitai.txt").read_text("utf-8").splitlines()
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert (fields["Name"], fields["Type"], fields["Base Model"]) == ("red_shapes", "LORA", "SDXL 1.0")
    assert (fields["Trigger Words"], fields["Steps"]) == ("zxc", "40")
    assert "Epochs" not in fields and "Clip Skip" not in fields, "what is not known is not guessed"
    assert fields["Hash AutoV3"] == info(made / "red_shapes.safetensors").hashes.by_name["AutoV3"]
    assert "<code>zxc</code>" in fields["Description"]
    tags = set(re.findall(r"</?(\w+)", fields["Description"]))
    assert tags <= {"div", "strong", "p", "em", "u", "s", "a", "br", "ul", "ol", "li", "code", "pre"}


def test_a_run_folder_that_is_there_is_not_written_over(trained: Path, base: Path, made: Path) -> None:
    with raises_code("output.exists"):
        make_civitai_folder(trained, made, base=str(base))


def test_a_picture_that_does_not_say_is_named(trained: Path, base: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    folder = make_civitai_folder(trained, tmp_path / "out", base=str(base), pictures=[tmp_path / "mine.png"])
    assert folder.notes == ("mine.png does not say how it was made, so Civitai shows no prompt with it",)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with raises_code("publish.bad_picture"):
        make_civitai_folder(trained, tmp_path / "other", base=str(base), pictures=[tmp_path / "no.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.png", "no.png", "out"], "nothing is half there"


def test_settings_that_a_picture_has_already_stay(trained: Path, base: Path, tmp_path: Path) -> None:
    from veneer.sample.files import write_picture

    theirs = "a cat\nSteps: 20, Sampler: Euler, Seed: 1"
    write_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", {"parameters": theirs})
    make_civitai_folder(trained, tmp_path / "out", name="x/y z", base=str(base), pictures=[tmp_path / "a.png"])
    assert parameters_of(tmp_path / "out" / "x_y_z.png") == theirs


def test_the_command(trained: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["adapter", "civitai", str(trained / FILE_NAME), "--out", str(out), "--base", str(base)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert str(out / "pytorch_lora_weights.safetensors") in printed
    assert printed[-1].startswith("note: there are no previews")


def test_a_base_that_no_other_program_loads_is_said_to_be_none(tiny_base: Path, tmp_path: Path) -> None:
    networks = load_family(str(tiny_base)).networks
    weights = inject(networks, {"unet": LoraSpec(2, 4.0, ("to_q",))}, 0).weights()
    save(AdapterFile(weights), tmp_path / "x.safetensors")
    folder = make_civitai_folder(tmp_path / "x.safetensors", tmp_path / "out", base=str(tiny_base))
    assert "none of them can load it" in folder.notes[-1]
    assert "Base Model: Other" in (tmp_path / "out" / "civitai.txt").read_text("utf-8")


def test_values_with_marks_are_quoted() -> None:
    text = infotext(NOTES[0], (8, 8), adapter="x", adapter_hash="AB" * 6, base="a, b: c", base_hash="0123456789")
    assert text.count("\n") == 1, "a prompt of several lines would be taken for settings"
    found = parse_as_a1111(text)
    assert (found["Model"], found["Model hash"]) == ("a, b: c", "0123456789")

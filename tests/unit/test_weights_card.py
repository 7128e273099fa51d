"""The model card: the hub reads its front matter, its snippet runs, its score is told as it is."""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData

from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.weights.card import CardFacts, CardFile, model_card
from veneer.weights.file import FILE_NAME, AdapterFile, save
from veneer.weights.licenses import LICENSES, license_of
from veneer.weights.metadata import BaseLabels


@dataclass(frozen=True)
class Score:
    mean: float = -0.25
    low: float = -0.3
    high: float = -0.2
    base: float = 0.62
    adapter: float = 0.37
    pictures: int = 64


FACTS = CardFacts(
    title="Outlines",
    base="owner/base",
    license=license_of("stabilityai/stable-diffusion-xl-base-1.0"),
    prompt="a turtle, openmoji style",
    files=(CardFile(FILE_NAME, "diffusers", "ab" * 32), CardFile("outlines.safetensors", "kohya", "cd" * 32)),
    method="LoRA",
    config={"adapter.rank": 4, "train.learning_rate": 1e-4},
    trigger="openmoji style",
    base_id="owner/base",
    labels=BaseLabels("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", tags=("stable-diffusion-xl",)),
    gallery={"gallery/01-a.png": 'a turtle: "quoted" | #1\n- x'},
    sheet="sheet.png",
    version="0.1.0",
)


def test_the_hub_reads_the_front_matter() -> None:
    data = ModelCard(model_card(FACTS, Score())).data
    assert data.base_model == "owner/base" and data.to_dict()["base_model_relation"] == "adapter"
    assert (data.library_name, data.pipeline_tag, data.license) == ("diffusers", "text-to-image", "openrail++")
    assert {"lora", "diffusers", "text-to-image", "stable-diffusion-xl"} <= set(data.tags)
    assert data.to_dict()["instance_prompt"] == "openmoji style"
    assert data.to_dict()["widget"] == [
        {"text": FACTS.gallery["gallery/01-a.png"], "output": {"url": "gallery/01-a.png"}}
    ]


def test_an_adapter_that_edits_is_shown_with_a_picture_to_edit() -> None:
    """Pipelines that edit take the picture first, so the prompt is named."""
    card = model_card(replace(FACTS, prompt="red", references=1), None)
    assert ModelCard(card).data.pipeline_tag == "image-to-image"
    assert "pipeline(image=load_image(\"1.png\"), prompt='red').images[0]" in card
    assert "from diffusers.utils import load_image" in card
    several = model_card(replace(FACTS, references=2), None)
    assert 'image=[load_image("1.png"), load_image("2.png")], ' in several
    assert "pipeline(prompt='red').images" in model_card(replace(FACTS, prompt="red", names_prompt=True), None)


def test_a_base_that_is_not_on_the_hub_is_not_linked() -> None:
    data = ModelCard(model_card(replace(FACTS, base_id=None, trigger=None, gallery={}), None)).data.to_dict()
    assert "base_model" not in data
    assert data["instance_prompt"] == FACTS.prompt
    assert data["widget"] == [{"text": FACTS.prompt}]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.3, -0.2, "better than"), (0.1, 0.2, "worse than"), (-0.1, 0.1, "not told apart from")],
)
def test_tells_the_score_and_what_it_means(low: float, high: float, verdict: str) -> None:
    text = model_card(FACTS, Score(low=low, high=high))
    assert f"| 0.6200 | 0.3700 | -0.2500 | [{low:+.4f}, {high:+.4f}] |" in text
    assert f"the adapter is {verdict} the base" in text
    assert "on 64 held-out pictures" in text


def test_says_when_nothing_was_measured() -> None:
    assert "No picture was held out" in model_card(FACTS, None)


def test_config_table_survives_any_value() -> None:
    text = model_card(replace(FACTS, config={"a": "x | y\nz", "b": "`` ` ``", "c": None, "d": ""}), None)
    table = text.partition("## Training")[2].splitlines()
    rows = [line for line in table if line.startswith("| ") and line[2] == "`"]
    assert rows == ["| `a` | `x \\| y z` |", "| `b` | ``` `` ` `` ``` |", "| `c` | `None` |", "| `d` | `  ` |"]


def test_is_a_function_of_its_facts() -> None:
    assert model_card(FACTS, Score()) == model_card(replace(FACTS), Score())
    assert model_card(FACTS, Score()) != model_card(replace(FACTS, files=FACTS.files[:1]), Score())


def snippet(card: str) -> str:
    return card.partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("has_peft", [True, False])
def test_an_adapter_that_diffusers_has_no_reader_for_is_read_by_peft(has_peft: bool) -> None:
    labels = BaseLabels("pixart-sigma", None, diffusers_reads=False)
    files = (*FACTS.files, CardFile("adapter_model.safetensors", "peft")) if has_peft else FACTS.files
    text = model_card(replace(FACTS, labels=labels, files=files), None)
    code = snippet(text)
    assert "load_lora_weights" not in text and 'PeftModel.from_pretrained(pipeline.transformer, "peft")' in code
    assert ("veneer adapter convert" in text) is not has_peft
    ast.parse(code)


def test_bundled_base_is_found_by_its_package() -> None:
    code = snippet(model_card(replace(FACTS, base="bundled"), None))
    assert "veneer.base.path()" in code
    ast.parse(code)


def test_snippet_runs_on_our_file(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {"unet": StableDiffusionPipeline.from_pretrained(tiny_base).unet}
    factors = inject(networks, {"unet": LoraSpec(2, 1.0, ("to_q",))}, 0).weights()
    save(AdapterFile(factors), tmp_path / FILE_NAME)
    code = snippet(model_card(replace(FACTS, base=str(tiny_base), prompt='it\'s "x"'), None))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        exec(code, scope)
    assert scope["image"].size == (16, 16)
    assert os.listdir(tmp_path) == [FILE_NAME]


@pytest.mark.parametrize("base", [*LICENSES, "owner/unknown"])
def test_every_front_matter_is_valid(base: str) -> None:
    """The hub's own class takes it, and says it again the same."""
    data = ModelCard(model_card(replace(FACTS, license=license_of(base)), Score())).data.to_dict()
    assert ModelCardData(**data).to_dict() == data
    assert data["license"] == (license.id if (license := license_of(base)) else "other")
    assert ("license_link" in data) == ("license_name" in data) == (base in LICENSES and data["license"] == "other")


def test_a_licence_that_is_not_known_is_said_not_to_be() -> None:
    assert license_of("owner/a-fine-tune") is None
    assert license_of("STABILITYAI/Stable-Diffusion-XL-base-1.0") is FACTS.license
    text = model_card(replace(FACTS, license=None), None)
    assert "The licence of `owner/base` is not known to Veneer" in text
    assert "[CreativeML Open RAIL++-M](https://" in model_card(FACTS, None)


def test_each_program_is_told_its_file() -> None:
    text = model_card(FACTS, Score())
    assert "put `outlines.safetensors` into `models/Lora`, and `<lora:outlines:1> openmoji style` into" in text
    assert "put `outlines.safetensors` into `models/loras`" in text
    assert f"| `{FILE_NAME}` | diffusers | `{'ab' * 32}` |" in text
    comfy = replace(FACTS, files=(CardFile("x_comfyui.safetensors", "comfy"),))
    assert "`x_comfyui.safetensors` into `models/loras`" in model_card(comfy, None)
    assert "A1111 or Forge" not in model_card(comfy, None)


def test_programs_that_cannot_load_the_base_are_not_named() -> None:
    for labels in (None, BaseLabels("stable-diffusion", None)):
        text = model_card(replace(FACTS, labels=labels), None)
        assert "In ComfyUI" not in text and "In A1111" not in text
    assert "| `outlines.safetensors` | none: no program that reads it loads this base |" in text


def test_the_pictures_are_shown_by_the_hub_and_the_comparison_by_everyone() -> None:
    text = model_card(FACTS, None)
    assert "<Gallery />" in text and "(<sheet.png>)" in text
    bare = model_card(replace(FACTS, gallery={}, sheet=None), None)
    assert "<Gallery" not in bare and "![" not in bare


def test_a_single_file_is_loaded_as_one() -> None:
    code = snippet(model_card(replace(FACTS, base="x.safetensors", base_id=None, pipeline="FluxPipeline"), None))
    assert "FluxPipeline.from_single_file('x.safetensors')" in code
    ast.parse(code)

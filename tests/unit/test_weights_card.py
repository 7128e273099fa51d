"""The model card: the hub reads its front matter, its snippet runs, its score is told as it is."""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard

from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.weights.card import CardFacts, model_card
from veneer.weights.file import FILE_NAME, AdapterFile, save


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
    license="cc-by-sa-4.0",
    prompt="a turtle, openmoji style",
    weights=FILE_NAME,
    sha256="ab" * 32,
    method="LoRA",
    config={"adapter.rank": 4, "train.learning_rate": 1e-4},
    trigger="openmoji style",
    base_id="owner/base",
    pictures={"sheet.png": 'a turtle: "quoted" | #1\n- x'},
    version="0.1.0",
)


def test_the_hub_reads_the_front_matter() -> None:
    data = ModelCard(model_card(FACTS, Score())).data
    assert data.base_model == "owner/base"
    assert (data.library_name, data.pipeline_tag, data.license) == ("diffusers", "text-to-image", "cc-by-sa-4.0")
    assert {"lora", "diffusers", "text-to-image"} <= set(data.tags)
    assert data.to_dict()["instance_prompt"] == "openmoji style"
    assert data.to_dict()["widget"] == [{"text": FACTS.pictures["sheet.png"], "output": {"url": "sheet.png"}}]


def test_a_base_that_is_not_on_the_hub_is_not_linked() -> None:
    data = ModelCard(model_card(replace(FACTS, base_id=None, trigger=None, pictures={}), None)).data.to_dict()
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
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2] == "`"]
    assert rows == ["| `a` | `x \\| y z` |", "| `b` | ``` `` ` `` ``` |", "| `c` | `None` |", "| `d` | `  ` |"]


def test_is_a_function_of_its_facts() -> None:
    assert model_card(FACTS, Score()) == model_card(replace(FACTS), Score())
    assert model_card(FACTS, Score()) != model_card(replace(FACTS, sha256="cd" * 32), Score())


def snippet(card: str) -> str:
    return card.partition("```python\n")[2].partition("```")[0]


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

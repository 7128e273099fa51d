"""Remedies: the mildest form of each change that makes a run fit, and none that does not help."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny_config
from veneer.config.schema import RunConfig
from veneer.plan.memory import STEP, Memory, Phase
from veneer.plan.remedies import find_remedies, verdict


def invented(config: RunConfig) -> Memory:
    """A memory in which each change has its price."""
    train = config.train
    kept = {"exact": 100, "lean": 60, "leaner": 50, "checkpoint": 10}[train.memory]
    size = {"none": 1000, "bfloat16": 850, "float16": 850, "torchao_int8": 700, "bnb_int8": 690, "bnb_nf4": 600}[
        train.quantization
    ]
    size += config.adapter.rank * 5 + train.batch_size * kept // (1 if train.precision == "float32" else 2)
    painted = 1200 if len(config.sample.prompts) == 1 else 1300
    return Memory("cpu", (Phase(STEP, size, {"all": size}), Phase("painting", painted, {"all": painted})), None)


def config_of(**sections: Any) -> RunConfig:
    values: dict[str, Any] = {"train": {"batch_size": 8, "gradient_accumulation_steps": 1}, "adapter": {"rank": 16}}
    return tiny_config(Path("pictures"), **{**values, **sections})


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries that quantise: none but those that a test asks for."""
    there = getattr(request, "param", ())
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> Any:
        missing = name in ("bitsandbytes", "torchao") and name not in there
        return None if missing else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)


BOTH = ("torchao", "bitsandbytes")


@pytest.mark.parametrize(
    ("_installed", "limit", "form"),
    [
        (BOTH, 1600, "torchao_int8"),
        (BOTH, 1500, "bnb_nf4"),
        (("torchao",), 1600, "torchao_int8"),
        (("bitsandbytes",), 1600, "bnb_int8"),
        (("torchao",), 1500, None),
        (BOTH, 1750, "bfloat16"),
        ((), 1750, "bfloat16"),
        ((), 1600, None),
        (BOTH, 1400, None),
    ],
    indirect=["_installed"],
)
def test_frozen_weights_in_fewer_bits_where_a_library_is_there(limit: int, form: str | None) -> None:
    """Of 1880, 150 to 400 are taken off; PyTorch itself has numbers of 16 bits."""
    changes = [(change, peak) for change, peak in changes_of(config_of(), limit) if "train.quantization" in change]
    sizes = {"bfloat16": 1730, "torchao_int8": 1580, "bnb_int8": 1570, "bnb_nf4": 1480}
    assert changes == ([] if form is None else [({"train.quantization": form}, sizes[form])])


@pytest.mark.parametrize("_installed", [BOTH], indirect=True)
def test_weights_in_few_bits_are_not_held_in_other_bits(_installed: None) -> None:
    config = config_of(train={"quantization": "torchao_int8", "batch_size": 8, "gradient_accumulation_steps": 1})
    assert not any("train.quantization" in change for change, _ in changes_of(config, 1500))


def test_weights_of_16_bits_are_those_of_the_products() -> None:
    config = config_of(train={"precision": "float16", "batch_size": 8, "gradient_accumulation_steps": 1})
    (form,) = [change for change, _ in changes_of(config, 1350) if "train.quantization" in change]
    assert form == {"train.quantization": "float16"}


def changes_of(config: RunConfig, limit: int) -> list[tuple[dict[str, Any], int]]:
    return [(dict(remedy.changes), remedy.peak) for remedy in find_remedies(config, invented, limit)]


def test_each_change_in_its_mildest_form() -> None:
    """8 x 100 + 16 x 5 + 1000 = 1880 do not fit into 1500."""
    first, second, *rest = changes_of(config_of(), 1500)
    assert first == ({"train.batch_size": 4, "train.gradient_accumulation_steps": 2}, 1480)
    assert second[0]["train.memory"] in ("leaner", "checkpoint") and second[1] <= 1500
    assert rest == [({"train.precision": "bfloat16"}, 1480)]  # a lower rank alone does not do


def test_a_step_sees_the_same_pictures() -> None:
    changes = [
        change for change, _ in changes_of(config_of(train={"batch_size": 6, "gradient_accumulation_steps": 2}), 1400)
    ]
    batch = next(change for change in changes if "train.batch_size" in change)
    assert (
        batch["train.batch_size"] * batch["train.gradient_accumulation_steps"] == 12 and batch["train.batch_size"] < 6
    )


def test_a_lower_rank_where_it_is_enough() -> None:
    assert ({"adapter.rank": 4}, 1820) in changes_of(config_of(), 1825)


def test_fewer_prompts_where_painting_is_the_fullest() -> None:
    config = config_of(train={"batch_size": 1}, adapter={"rank": 1})
    assert changes_of(config, 1250) == [({"sample.prompts": ("a picture",)}, 1200)]
    assert str(find_remedies(config, invented, 1250)[0]) == "one prompt in sample.prompts (1.20 KB)"


def test_together_where_none_is_enough_alone() -> None:
    (only,) = changes_of(config_of(adapter={"rank": 64}, sample={"prompts": ["one"]}), 1350)
    assert only[0]["train.batch_size"] == 1 and only[0]["train.gradient_accumulation_steps"] == 8
    assert "train.memory" in only[0] and only[1] <= 1350


def test_nothing_where_nothing_helps() -> None:
    assert changes_of(config_of(), 900) == []


def test_a_remedy_is_written_as_it_is_typed() -> None:
    remedy = find_remedies(config_of(), invented, 1500)[0]
    assert str(remedy) == "train.batch_size=4 train.gradient_accumulation_steps=2 (1.48 KB)"


@pytest.mark.parametrize(("free", "word"), [(2000, "fits"), (1879, "does not fit")])
def test_the_verdict_says_what_is_needed_and_what_there_is(free: int, word: str) -> None:
    text = verdict(invented(config_of()), free)
    assert text == f"{word}: 1.88 KB while training step, and {free / 1000:.2f} KB are free"

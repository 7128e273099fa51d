"""The plan's figures against the written file and against counts done otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training import bits_of, tiny_config, tiny_run
from veneer.adapter.registry import specs_of
from veneer.config.adapter_config import AdapterConfig
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.plan.parameters import plan_parameters
from veneer.train.events import Finished
from veneer.weights.file import AdapterFile, info, save

METADATA = {"veneer.version": "0.1.0", "trigger": "Ölgemälde, 油画"}


ADAPTERS: dict[str, dict[str, Any]] = {
    "default": {},
    "rank 1": {"rank": 1},
    "alpha": {"rank": 8, "alpha": 2.5},
    "two networks": {"text_encoders": {"text_encoder": {"rank": 2}}},
    "convolutions": {"rank": 2, "target_modules": ["conv1", "proj_in", "to_q"]},
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_the_file_has_the_planned_bytes_and_parameters(
    family: Family, tiny_pictures: Path, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    config = tiny_config(tiny_pictures, adapter=adapter, train={"max_steps": 1})
    planned = plan_parameters(config, family, METADATA)
    last = tiny_run(config, family)[-1]
    assert isinstance(last, Finished)
    path = tmp_path / "adapter.safetensors"
    save(AdapterFile(last.weights, METADATA), path)
    assert planned.file_bytes == path.stat().st_size
    assert planned.trainable == info(path).parameters


def test_the_parameters_are_those_of_the_paper(family: Family, tiny_pictures: Path) -> None:
    """r (d + k) for each matrix of d x k (Hu et al. 2021, section 4.2), counted from the shapes."""
    planned = plan_parameters(tiny_config(tiny_pictures, adapter={"rank": 3}), family)
    layers = [m for n, m in family.networks["unet"].named_modules() if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    expected = sum(3 * (m.in_features + m.out_features) for m in layers if isinstance(m, nn.Linear))
    assert planned.networks["unet"].trainable == planned.trainable == expected
    assert planned.networks["unet"].layers == {"to_q": 14, "to_k": 14, "to_v": 14, "to_out.0": 14}
    assert planned.networks["text_encoder"].trainable == 0
    for prefix, network in family.networks.items():
        assert planned.networks[prefix].total == sum(p.numel() for p in network.parameters())
    assert planned.share == pytest.approx(expected / planned.total)


def test_planning_changes_nothing(family: Family, tiny_pictures: Path) -> None:
    before = bits_of(family.networks)
    plan_parameters(tiny_config(tiny_pictures, adapter={"text_encoders": {"text_encoder": {}}}), family)
    after = bits_of(family.networks)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_table_is_short_and_aligned(family: Family, tiny_pictures: Path) -> None:
    text = str(plan_parameters(tiny_config(tiny_pictures, adapter={"text_encoders": {"text_encoder": {}}}), family))
    lines = text.splitlines()
    targets = ["to_q", "to_k", "to_v", "to_out.0"], ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert len(lines) == 14 and max(map(len, lines)) < 80
    assert lines[0].split() == ["network", "trainable", "of", "share", "layers"]
    assert [line.split()[0] for line in lines[1:12]] == ["unet", *targets[0], "text_encoder", *targets[1], "all"]
    assert len({len(line) for line in lines[:12]}) == 1
    assert "11,648" in lines[1] and "bytes" in lines[12]
    assert lines[13] == "blocks touched: unet 5 of 5, text_encoder 2 of 2"


def test_what_does_not_fit_the_base_is_said_in_the_plan(family: Family, tiny_pictures: Path) -> None:
    with pytest.raises(UserError, match="rank 64 is larger"):
        plan_parameters(tiny_config(tiny_pictures, adapter={"rank": 64}), family)
    with pytest.raises(UserError, match="matches nothing"):
        plan_parameters(tiny_config(tiny_pictures, adapter={"target_modules": ["to_qq"]}), family)


def test_specs_are_the_configs(family: Family, tiny_pictures: Path) -> None:
    adapter = {
        "rank": 6,
        "alpha": 3.0,
        "dropout": 0.1,
        "text_encoders": {"text_encoder": {"rank": 2, "target_modules": ["fc1"]}},
    }
    specs = specs_of(tiny_config(tiny_pictures, adapter=adapter).adapter, family)
    assert (specs["unet"].rank, specs["unet"].alpha, specs["unet"].dropout) == (6, 3.0, 0.1)
    assert (specs["text_encoder"].rank, specs["text_encoder"].alpha) == (2, 2.0)
    assert specs["text_encoder"].targets == ("fc1",)


def test_a_text_encoder_takes_presets_and_blocks_as_well(family: Family) -> None:
    sections = {"text_encoder": {"target_modules": "all_linear", "blocks": ["layers.1"]}}
    adapter = AdapterConfig.model_validate({"blocks": ["up_blocks"], "text_encoders": sections})
    specs = specs_of(adapter, family)
    assert specs["unet"].targets == ("to_q", "to_k", "to_v", "to_out.0") and specs["unet"].blocks == ("up_blocks",)
    text = specs["text_encoder"]
    assert text.targets == ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2") and text.blocks == ("layers.1",)

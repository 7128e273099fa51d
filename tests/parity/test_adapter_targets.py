"""Adapter sizes on the real architectures, as they were counted without this code (tests/data/configs)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from veneer.adapter.layers import layers_under
from veneer.adapter.targets import blocks_of, expand_preset, is_named, layers_in_blocks, measure_coverage

FOLDER = Path(__file__).parents[1] / "data" / "configs"
QUICK = ("flux1-dev", "flux2-klein-4b", "sd15", "z-image")
NAMES = [path.stem for path in sorted(FOLDER.glob("[a-z]*.json"))]
RANK = 16
WITH_ADDED = "+ add_q_proj,add_k_proj,add_v_proj,to_add_out"
COUNTED: dict[str, dict[str, int]] = {
    # the table counts what is no block here: a distilled guidance network's MLP, and a projection of 12 numbers to one
    "chroma1": {"modules": 10, "parameters": 5 * 16 * 4 * 5120},
    "krea2": {"modules": 1, "parameters": 16 * (12 + 1)},
}
"""Modules and parameters of the table's ``linear_in_blocks`` that ``all_linear`` leaves out."""


def network_of(name: str) -> tuple[nn.Module, dict[str, dict[str, int]]]:
    told = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    with torch.device("meta"):
        network: nn.Module = getattr(diffusers, told["model_class"]).from_config(told["config"])
    return network, told["lora_r16"]


def size(network: nn.Module, names: tuple[str, ...], blocks: tuple[str, ...] = ()) -> dict[str, int]:
    layers: dict[str, Any] = dict(layers_under(network))
    inside = layers_in_blocks(list(layers), blocks)
    found = [layers[path] for path in inside if any(is_named(name, path) for name in names)]
    return {"modules": len(found), "parameters": sum(RANK * (one.in_features + one.out_features) for one in found)}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_presets_have_the_sizes_that_were_counted(name: str) -> None:
    network, counted = network_of(name)
    attention = expand_preset(network, "attention")
    # a network whose blocks have no other attention than the usual names has no count of its own
    assert size(network, *attention) == counted.get("attention_all", counted["to_q,to_k,to_v,to_out.0"])
    without = COUNTED.get(name, {"modules": 0, "parameters": 0})
    everything, expected = size(network, *expand_preset(network, "all_linear")), counted["linear_in_blocks"]
    assert {key: count + without[key] for key, count in everything.items()} == expected
    assert size(network, ("to_q", "to_k", "to_v", "to_out.0")) == counted["to_q,to_k,to_v,to_out.0"]
    added = [
        name for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    ]
    assert size(network, tuple(added)) == counted[WITH_ADDED]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_preset_reaches_every_block(name: str) -> None:
    network, _ = network_of(name)
    layers = [path for path, _ in layers_under(network)]
    for preset in ("attention", "attention_mlp", "all_linear"):
        names, blocks = expand_preset(network, preset)
        adapted = [path for path in layers_in_blocks(layers, blocks) if any(is_named(one, path) for one in names)]
        assert measure_coverage(network, adapted).left_out == (), preset
    assert all(block.path in {path[: len(block.path)] for path in layers} for block in blocks_of(network))


@pytest.mark.parametrize(
    ("name", "coverage"),
    [
        ("flux1-dev", "57 of 57"),
        ("flux2-klein-4b", "5 of 25 (none of single_transformer_blocks.0-19)"),
        ("sd15", "7 of 9"),
        ("z-image", "34 of 34"),
    ],
)
def test_the_usual_names_reach_what_they_reach(name: str, coverage: str) -> None:
    network, _ = network_of(name)
    adapted = [p for p, _ in layers_under(network) if any(is_named(one, p) for one in ("to_q", "to_out.0"))]
    assert str(measure_coverage(network, adapted)) == coverage

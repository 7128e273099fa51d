"""Files that strangers make, damaged in any way, are refused in one line and in no time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from veneer.config.load import load_config
from veneer.config.source_config import SourceConfig
from veneer.data.sources.registry import read_source
from veneer.errors import UserError
from veneer.study.config import load_study
from veneer.weights.file import info, load, tensor_hashes
from veneer.weights.formats.diffusers import METADATA_KEY

quickly = settings(max_examples=150, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

Damage = Callable[[bytes], bytes]
_PLACE = st.integers(0, 2000)
_MORE = st.binary(max_size=9)
damages: st.SearchStrategy[Damage] = st.one_of(
    st.builds(lambda at: lambda content: content[:at], _PLACE),
    st.builds(lambda at, more: lambda content: content[:at] + more + content[at:], _PLACE, _MORE),
    st.builds(lambda at, more: lambda content: content[:at] + more + content[at + len(more) :], _PLACE, _MORE),
    st.builds(lambda at, size: lambda content: content[:at] + content[at + size :], _PLACE, st.integers(1, 40)),
)
"""Cut short, something put in, something written over, something taken out."""

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=6), below, max_size=3),
    max_leaves=5,
)
"""Anything that JSON or YAML can say."""


def in_one_line(read: Callable[[], object]) -> None:
    """Read what may be damaged; whatever is no refusal in one line comes through."""
    try:
        read()
    except UserError as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 1000


def replaced(tree: Any, way: list[int], value: object) -> Any:
    """A copy of nested mappings and lists with another value at a place, which is chosen by numbers."""
    if not way or not isinstance(tree, dict | list) or not tree:
        return value
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = keys[way[0] % len(keys)]
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[key] = replaced(tree[key], way[1:], value)
    return copy


ways = st.lists(st.integers(0, 50), max_size=4)


def adapter_bytes(header: dict[str, Any] | None = None) -> bytes:
    config = {"unet.r": 2, "unet.lora_alpha": 4, "unet.rank_pattern": {"mid.a": 2}, "unet.alpha_pattern": {"^b": 1}}
    tensors = {f"unet.{n}.lora_{ab}.weight": torch.ones(2, 2) for n in ("mid.a", "b") for ab in "AB"}
    whole = save(tensors, {METADATA_KEY: json.dumps(config), "note": "x"})
    if header is None:
        return whole
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + int.from_bytes(whole[:8], "little") :]


def header_of(content: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return told


def read_adapter(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(content)
        for read in (load, info, tensor_hashes):
            in_one_line(lambda read=read: read(path))  # type: ignore[misc]


@quickly
@given(damages)
def test_damaged_bytes_of_an_adapter(damage: Damage) -> None:
    read_adapter(damage(adapter_bytes()))


@quickly
@given(ways, plain | st.integers(2**30, 2**63))
def test_a_header_of_an_adapter_that_lies(way: list[int], value: object) -> None:
    read_adapter(adapter_bytes(replaced(header_of(adapter_bytes()), way, value)))


@quickly
@given(ways, plain)
def test_a_config_within_an_adapter_that_lies(way: list[int], value: object) -> None:
    header = header_of(adapter_bytes())
    told = header["__metadata__"]
    told[METADATA_KEY] = json.dumps(replaced(json.loads(told[METADATA_KEY]), way, value))
    read_adapter(adapter_bytes(header))


CONFIG: dict[str, Any] = {
    "base": "bundled",
    "output": {"dir": "runs/x"},
    "data": {"sources": [{"path": "pictures", "repeats": 2}], "held_out": 0.1, "prior": {"prompt": "a cat"}},
    "adapter": {"rank": 4, "target_modules": ["to_q"], "text_encoders": {"text_encoder": {"rank": 2}}},
    "train": {"max_steps": 5, "learning_rate": 1e-4, "optimizer": {"name": "adamw"}},
    "sample": {"prompts": ["a turtle"]},
}
STUDY: dict[str, Any] = {
    "run": CONFIG,
    "seeds": [0, 1],
    "points": {"small": {"adapter.rank": 2}, "large": {"adapter": {"rank": 8}}},
    "reference": "large",
}
GRID = {**STUDY, "points": None, "grid": {"train.max_steps": [1, 2], "adapter.rank": [2, 4]}}
TEXTS = [(CONFIG, load_config), (STUDY, load_study), (GRID, load_study)]
texts = pytest.mark.parametrize(("values", "read"), TEXTS, ids=["run", "study", "grid"])


def read_text(read: Callable[[Path], object], content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.yaml")
        path.write_bytes(content)
        in_one_line(lambda: read(path))


@texts
@quickly
@given(damage=damages)
def test_damaged_bytes_of_a_configuration(values: dict[str, Any], read: Any, damage: Damage) -> None:
    read_text(read, damage(yaml.safe_dump(values).encode()))


@texts
@quickly
@given(way=ways, value=plain)
def test_a_configuration_that_says_anything(values: dict[str, Any], read: Any, way: list[int], value: object) -> None:
    read_text(read, yaml.safe_dump(replaced(values, way, value), allow_unicode=True).encode("utf-8", "surrogatepass"))


def read_captions(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.png").write_bytes(b"")
        Path(folder, name).write_bytes(content)
        in_one_line(lambda: read_source(SourceConfig(path=Path(folder)), None))


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl"])
@quickly
@given(damage=damages)
def test_damaged_bytes_of_captions(name: str, damage: Damage) -> None:
    read_captions(name, damage(b'{"file_name": "a.png", "text": ["a cat", "a \\u00e9"]}\n' * 2))


@quickly
@given(ways, plain)
def test_a_list_of_captions_that_says_anything(way: list[int], value: object) -> None:
    row = {"file_name": "a.png", "text": ["a cat", "a dog"]}
    read_captions("metadata.jsonl", json.dumps(replaced(row, way, value)).encode())


def test_a_grid_of_more_points_than_memory_holds(tmp_path: Path) -> None:
    grid = {f"adapter.key{number}": list(range(10)) for number in range(12)}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"run": CONFIG, "grid": grid}))
    with pytest.raises(UserError, match="the grid makes 1,000,000,000,000 points, of which 10,000 are allowed"):
        load_study(tmp_path / "x.yaml")

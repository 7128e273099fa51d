"""The Python of docs/engine.md is run, word for word but for a smaller base; its figures are those that were kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import saved_bytes
from benchmarks.page import figures_of
from tools.publish import published
from veneer.config.load import build_config
from veneer.engine.instance_forward import is_prepared

PAGE = Path(__file__).parents[2] / "docs" / "engine.md"


@pytest.mark.parametrize(("number", "network", "memory"), [(0, "unet", "lean"), (1, "encoder", "leaner")])
def test_python(number: int, network: str, memory: str, tiny_base: Path) -> None:
    blocks = re.findall(r"^<!-- python: tested -->\n```python\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    exec(compile(blocks[number].replace("veneer.base_path()", repr(str(tiny_base))), PAGE.name, "exec"), names)
    assert names["handle"].memory == memory
    model: torch.nn.Module = names[network]
    assert any(parameter.grad is not None for parameter in model.parameters())
    assert not is_prepared(model)


def test_the_setting_that_it_names() -> None:
    assert "`veneer train config.yaml train.memory=leaner`" in PAGE.read_text("utf-8")
    values: dict[str, Any] = {"base": "bundled", "data": {"sources": [{"path": "p"}]}, "train": {"memory": "leaner"}}
    assert build_config(values, "test").train.memory == "leaner"


def test_its_figures_are_those_that_were_kept() -> None:
    found = published(PAGE, saved_bytes.SHORT)
    assert found == saved_bytes.short(figures_of(saved_bytes.NAME)), "run: python -m benchmarks"

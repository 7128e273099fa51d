"""The Python of docs/batched.md is run, word for word but for a smaller base and fewer steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.family.registry import load_family
from veneer.weights.file import FILE_NAME, AdapterFile, save

PAGE = Path(__file__).parents[2] / "docs" / "batched.md"


@pytest.fixture(scope="module")
def desk(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the two runs that the page speaks of."""
    folder, family = tmp_path_factory.mktemp("desk"), load_family(str(tiny_base))
    for rank, name in ((2, "pencil"), (3, "clay")):
        injection = inject(family.networks, {"unet": LoraSpec(rank, rank, ("to_q", "to_v"))}, seed=rank)
        for parameter in injection.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(rank))
        save(AdapterFile(injection.weights()), folder / "runs" / name / FILE_NAME)
        injection.eject()
    return folder


@pytest.mark.parametrize("number", [0, 1])
def test_python(number: int, desk: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    blocks = re.findall(r"^<!-- python: tested -->\n```python\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)
    assert len(blocks) == 2
    code = blocks[number].replace('"bundled"', repr(str(tiny_base))).replace("veneer.base_path()", repr(str(tiny_base)))
    names: dict[str, Any] = {}
    exec(compile(code.replace("steps=25", "steps=2"), PAGE.name, "exec"), names)
    assert len({picture.tobytes() for picture in names["pictures"]}) == len(names["pictures"]) >= 3

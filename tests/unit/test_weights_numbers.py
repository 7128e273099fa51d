"""Numbers of files read by their bits: what torch reads, for every code of 8 and 16 bits; nothing needs torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from veneer.weights.header import ITEM_BYTES
from veneer.weights.numbers import FLOATS, decode_numbers
from veneer.weights.safetensors import DTYPES
from veneer.weights.tensors_file import open_tensors


def codes(size: int) -> np.ndarray:
    """All codes of 8 or 16 bits; of wider types random ones."""
    if size <= 2:
        return np.arange(256**size, dtype=f"<u{size}").view(np.uint8)
    return np.frombuffer(np.random.default_rng(0).bytes(4096 * size), np.uint8)


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_every_number_is_the_one_that_torch_reads(dtype: str) -> None:
    data = np.array([0, 1], np.uint8) if dtype == "BOOL" else codes(ITEM_BYTES[dtype])
    theirs = torch.from_numpy(data.copy()).view(DTYPES[dtype])
    ours = torch.from_numpy(decode_numbers(data, dtype).copy())
    assert theirs.element_size() == ITEM_BYTES[dtype] and theirs.is_floating_point() == (dtype in FLOATS)
    expected = theirs.float() if dtype in FLOATS - {"F64"} else theirs
    assert ours.dtype == (torch.float64 if dtype == "F64" else torch.float32 if dtype in FLOATS else theirs.dtype)
    assert torch.equal(torch.isnan(ours), torch.isnan(expected))
    kept = ~torch.isnan(ours)
    assert torch.equal(ours[kept], expected[kept]) and torch.equal(
        torch.signbit(ours[kept]), torch.signbit(expected[kept])
    )


def test_a_tensor_is_read_in_its_shape(tmp_path: Path) -> None:
    own = torch.randn(3, 4, 2, 1)
    (tmp_path / "x.safetensors").write_bytes(save({"a": torch.ones(5).half(), "b": own, "c": own.bfloat16()}))
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert np.array_equal(file.numbers("b"), own.numpy())
        assert np.array_equal(file.numbers("c"), own.bfloat16().float().numpy())
        assert file.numbers("a").tolist() == [1.0] * 5


def test_a_header_is_read_without_torch(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(save({"a": torch.ones(5).bfloat16()}))
    program = """
import sys; from pathlib import Path
from veneer.weights.header import parse_header
from veneer.weights.tensors_file import open_tensors
with open_tensors(Path(sys.argv[1])) as file: print(file.numbers("a").sum(), "torch" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "x.safetensors")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == ["5.0", "False"]


WITHOUT_TORCH = ("weights.header", "weights.tensors_file", "weights.adapter_path", "weights.formats.names")
WITHOUT_TORCH += ("weights.formats.parts", "weights.formats.strength", "weights.formats.foreign")


def test_names_and_strengths_are_understood_without_torch() -> None:
    program = f"import sys, {', '.join(f'veneer.{module}' for module in WITHOUT_TORCH)}; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == ["False"]

"""A file that is written tensor by tensor is one that safetensors reads, whole or not there."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.errors import raises_code
from veneer.family.shards import WeightsFile
from veneer.weights import tensors_writer
from veneer.weights.tensors_writer import TensorSpec, check_space, file_bytes, new_tensors_file

TENSORS = {
    "small": torch.arange(3, dtype=torch.uint8),
    "half": torch.randn(5, 3).half(),
    "brain": torch.randn(7).bfloat16(),
    "full": torch.randn(2, 3, 2, 2),
    "number": torch.tensor(7),
    "eight": torch.randn(4, 2).to(torch.float8_e4m3fn),
    "nothing": torch.zeros(0, 4),
}
SPECS = {name: TensorSpec.of(tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
METADATA = {"format": "pt", "b": "ü", "a": "1"}


def test_a_file_written_backwards_is_read_by_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    with new_tensors_file(path, SPECS, METADATA) as writer:
        for name, tensor in reversed(TENSORS.items()):
            writer.write(name, tensor)
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == METADATA
    assert path.stat().st_size == file_bytes(SPECS, METADATA)
    assert [each.name for each in path.parent.iterdir()] == ["x.safetensors"]


def test_each_number_lies_at_a_multiple_of_its_size(tmp_path: Path) -> None:
    with new_tensors_file(tmp_path / "x.safetensors", SPECS, {}) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    file = WeightsFile.open(tmp_path / "x.safetensors")
    assert file.data_start % 8 == 0
    for name, entry in file.header.tensors.items():
        assert entry.start % TENSORS[name].element_size() == 0, name


def test_bytes_are_copied_out_of_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors_writer, "_PIECE", 3)
    save_file(TENSORS, tmp_path / "old.safetensors")
    old = WeightsFile.open(tmp_path / "old.safetensors")
    with new_tensors_file(tmp_path / "new.safetensors", SPECS, {}) as writer:
        for name in TENSORS:
            writer.copy(name, old.path, old.data_start, old.header)
    for name, tensor in load_file(tmp_path / "new.safetensors").items():
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), TENSORS[name].reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_is_not_finished_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    def write() -> None:
        with new_tensors_file(tmp_path / "x.safetensors", SPECS, {}):
            raise error

    if isinstance(error, OSError):
        with raises_code("files.unwritable", "No space left on device"):
            write()
    else:
        with pytest.raises(KeyboardInterrupt):
            write()
    assert not list(tmp_path.iterdir())


def test_room_is_looked_for_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10**9

    asked: list[Any] = []
    monkeypatch.setattr(tensors_writer.shutil, "disk_usage", lambda folder: asked.append(folder) or Usage)
    check_space(tmp_path / "not" / "there" / "x", 9 * 10**8)
    with raises_code("output.no_space", "needs 2.00 GB, and 1.00 GB are free there"):
        check_space(tmp_path / "x", 2 * 10**9)
    assert asked == [tmp_path, tmp_path]

"""Metadata changed, and no byte of the tensors."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.errors import raises_code
from veneer.cli.main import main
from veneer.verbs.edit import EditOptions, edit_adapter
from veneer.weights.kohya_hashes import with_file_hashes
from veneer.weights.safetensors import decode


def write_raw(path: Path, entries: dict[str, object], data: bytes) -> Path:
    """A file whose header says anything."""
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def header_of(path: Path) -> dict[str, dict[str, object]]:
    content = path.read_bytes()
    found: dict[str, dict[str, object]] = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    return found


def data_of(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + struct.unpack("<Q", content[:8])[0] :]


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A file of a type that nothing here reads, of NaN, of tensors out of order, and without a method."""
    nan = struct.pack("<f", float("nan"))
    entries: dict[str, object] = {
        "z.last": {"dtype": "F4_SECRET", "shape": [3], "data_offsets": [4, 9]},
        "__metadata__": {"ss_tag_frequency": "{}", "old": "text", "number": 3},
        "a.first": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    return write_raw(tmp_path / "strange.safetensors", entries, nan + b"\x01\x02\x03\x04\x05")


def test_tensors_of_any_kind_keep_their_bytes_and_their_order(strange: Path, tmp_path: Path) -> None:
    before = strange.read_bytes()
    options = EditOptions({"modelspec.title": "Ä \u202e title", "old": "new"}, ["number"])
    result = edit_adapter(strange, tmp_path / "out.safetensors", options)
    assert strange.read_bytes() == before and data_of(result.path) == data_of(strange)
    old, new = header_of(strange), header_of(result.path)
    assert [name for name in new if name != "__metadata__"] == ["z.last", "a.first"]
    assert all(new[name] == old[name] for name in ("z.last", "a.first"))
    said = new["__metadata__"]
    assert said["modelspec.title"] == "Ä \u202e title" and said["old"] == "new" and "number" not in said
    (told,) = json.loads(str(said["veneer.history"]))
    sha = hashlib.sha256(before).hexdigest()
    assert told == {
        "operation": "edit",
        "sources": [{"name": "strange.safetensors", "sha256": sha}],
        "keys": "modelspec.title, old, -number",
    }
    assert result.changed == {"modelspec.title": None, "old": "text"} and result.removed == {"number": "3"}
    assert (len(result.path.read_bytes()) - len(data_of(result.path))) % 8 == 0


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5).half(), "a": torch.arange(7), "c": torch.randn(2).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "old.safetensors", {"format": "pt"})
    edit_adapter(tmp_path / "old.safetensors", tmp_path / "new.safetensors", EditOptions({"key": "value"}))
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        assert file.metadata()["key"] == "value" and file.metadata()["format"] == "pt"
        for name, tensor in tensors.items():
            found = file.get_tensor(name)
            assert found.dtype == tensor.dtype and torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_hashes_that_are_recorded_are_computed_anew(tmp_path: Path) -> None:
    """Of a file large enough for the old hash to have something to look at."""
    tensors = {"lora_unet_x.lora_down.weight": torch.randn(300_000), "lora_unet_x.lora_up.weight": torch.randn(9)}
    stale = {"ss_steps": "3", "sshs_model_hash": "stale", "sshs_legacy_hash": "stale"}
    stale |= {"modelspec.hash_sha256": "stale", "modelspec.sai_model_spec": "1.0.1"}
    save_file(tensors, tmp_path / "old.safetensors", stale)
    result = edit_adapter(tmp_path / "old.safetensors", tmp_path / "new.safetensors", EditOptions({"ss_comment": "hi"}))
    found, said = decode(result.path)
    digest = hashlib.sha256(data_of(result.path)).hexdigest()
    assert said["sshs_model_hash"] == digest and said["modelspec.hash_sha256"] == f"0x{digest}"
    expected = with_file_hashes(found, {key: text for key, text in said.items() if key not in ("sshs_model_hash",)})
    assert said["sshs_legacy_hash"] == expected["sshs_legacy_hash"] != "stale"
    plain = tmp_path / "plain.safetensors"
    save_file(tensors, plain)
    edit_adapter(plain, tmp_path / "other.safetensors", EditOptions({"key": "value"}))
    assert set(decode(tmp_path / "other.safetensors")[1]) == {"key", "veneer.history"}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (EditOptions(), "edit.nothing"),
        (EditOptions(remove=["nobody"]), "edit.no_such_key"),
        (EditOptions({"old": "x"}, ["old"]), "edit.nothing"),
        (EditOptions({"old": "half \ud800"}), "edit.not_text"),
        (EditOptions({"sshs_model_hash": "x"}), "edit.computed_key"),
        (EditOptions({"lora_adapter_metadata": "{}"}), "edit.computed_key"),
        (EditOptions(remove=["veneer.history"]), "edit.computed_key"),
    ],
)
def test_changes_that_mean_nothing_or_something_else_are_refused(
    options: EditOptions, code: str, strange: Path, tmp_path: Path
) -> None:
    with raises_code(code):
        edit_adapter(strange, tmp_path / "out.safetensors", options)
    assert not (tmp_path / "out.safetensors").exists()


def test_broken_files_and_taken_places_are_refused(strange: Path, tmp_path: Path) -> None:
    change = EditOptions({"key": "value"})
    with raises_code("output.exists"):
        edit_adapter(strange, strange, change)
    with raises_code("weights.pickle"):
        edit_adapter(strange, tmp_path / "out.pt", change)
    entry = {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}
    for entries, data, code in (
        ({"a": entry}, b"123", "weights.cut_short"),
        ({"a": entry}, b"12345", "weights.bad_header"),
        ({"a": entry, "b": {**entry, "data_offsets": [3, 5]}}, b"12345", "weights.bad_header"),
        ({"a": "nothing"}, b"", "weights.bad_header"),
    ):
        broken = write_raw(tmp_path / "broken.safetensors", entries, data)
        with raises_code(code):
            edit_adapter(broken, tmp_path / "out.safetensors", change)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_command(strange: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    words = ["adapter", "edit", str(strange), "-o", str(out), "--title", "Pencils", "--trigger", "pencil style"]
    assert main([*words, "--license", "mit", "--set", "note=a=b", "--remove", "old"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "modelspec.title: new" in printed.err and "old: removed, was 'text'" in printed.err
    said = header_of(out)["__metadata__"]
    assert said["modelspec.title"] == "Pencils" and said["note"] == "a=b" and said["modelspec.license"] == "mit"
    assert said["modelspec.trigger_phrase"] == said["veneer.trigger"] == "pencil style"
    words[4] = str(tmp_path / "other.safetensors")
    assert main([*words, "--set", "note"]) == 2
    assert "use key=value" in capsys.readouterr().err

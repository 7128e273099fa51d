"""Files depend on their content alone, and are never unpickled."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from tests.errors import raises_code
from veneer.weights.safetensors import decode, encode


@given(
    st.dictionaries(st.text().filter("__metadata__".__ne__), st.integers(0, 5), min_size=1, max_size=4),
    st.dictionaries(st.text(), st.text(), max_size=4),
)
def test_what_is_encoded_is_what_the_library_reads(sizes: dict[str, int], metadata: dict[str, str]) -> None:
    tensors = {name: torch.arange(size, dtype=torch.float32) for name, size in sizes.items()}
    content = encode(tensors, metadata)
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0
    assert {n: t.tolist() for n, t in load(content).items()} == {n: t.tolist() for n, t in tensors.items()}
    reverse = encode(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert reverse == content


def test_metadata_comes_back(tmp_path: Path) -> None:
    metadata = {"b": "é\n", "a": "{}", "": "x"}
    (tmp_path / "x.safetensors").write_bytes(encode({"t": torch.ones(2)}, metadata))
    tensors, read = decode(tmp_path / "x.safetensors")
    assert (tensors["t"].tolist(), read) == ([1.0, 1.0], metadata)


def test_bytes_are_the_same_in_every_process() -> None:
    program = (
        "import torch, hashlib; from veneer.weights.safetensors import encode;"
        "t = {n: torch.full((3, 2), 0.5) for n in 'dacb'}; m = {n: n for n in 'zyxwvu'};"
        "print(hashlib.sha256(encode(t, m)).hexdigest())"
    )
    tensors, metadata = {n: torch.full((3, 2), 0.5) for n in "abcd"}, {n: n for n in "uvwxyz"}
    path = os.pathsep.join(sys.path)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                         env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "7"})  # fmt: skip
    assert run.stdout.strip() == hashlib.sha256(encode(tensors, metadata)).hexdigest()


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".PT", ".safetensors"])
@pytest.mark.parametrize("protocol", [2, 4, "zip"])
def test_refuses_a_pickle_without_opening_it(tmp_path: Path, suffix: str, protocol: int | str) -> None:
    path, crater = tmp_path / f"adapter{suffix}", tmp_path / "crater"
    if protocol == "zip":
        torch.save({"x": Bomb(crater)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(crater), protocol=int(protocol)))
    with raises_code("weights.pickle", "is a pickle, which can run any code") as error:
        decode(path)
    assert not crater.exists()
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_pickle_by_name_is_not_even_looked_at(tmp_path: Path) -> None:
    with raises_code("weights.pickle"):
        decode(tmp_path / "is-not-there.pt")


def test_an_old_text_pickle_is_no_safetensors_file(tmp_path: Path) -> None:
    path, crater = tmp_path / "adapter.safetensors", tmp_path / "crater"
    path.write_bytes(pickle.dumps(Bomb(crater), protocol=0))
    with raises_code("weights.not_safetensors"):
        decode(path)
    assert not crater.exists()


def whole() -> bytes:
    return save({"a": torch.ones(4, 4), "b": torch.ones(3)})


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 40, len(whole()) - 1])
def test_refuses_a_file_that_is_cut_short(tmp_path: Path, length: int) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(whole()[:length])
    with raises_code("weights.cut_short", "is cut short: it") as error:
        decode(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_refuses_bytes_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(whole() + b"x")
    with raises_code("weights.bad_header", "has 1 bytes behind its last tensor"):
        decode(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with raises_code("weights.unreadable", "cannot be read: No such file") as error:
        decode(tmp_path / "none.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_refuses_a_number_that_is_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    broken = torch.ones(5, dtype=dtype)
    broken[3] = value
    (tmp_path / "x.safetensors").write_bytes(save({"good": torch.ones(2), "bad": broken}))
    with raises_code("weights.not_finite", "tensor bad holds NaN or infinity"):
        decode(tmp_path / "x.safetensors")


def test_refuses_integers(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(save({"a": torch.ones(2, dtype=torch.int8)}))
    with raises_code("weights.not_floating", "tensor a is of I8, which is no floating point type"):
        decode(tmp_path / "x.safetensors")


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(whole())
    tensors, _ = decode(path)
    path.write_bytes(b"overwritten" * 20)
    assert torch.equal(tensors["a"], torch.ones(4, 4))


@pytest.mark.parametrize("length", [0x180, 0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    path, rest = tmp_path / "x.safetensors", {"t": torch.ones(2)}
    spare = length - int.from_bytes(encode(rest, {"note": ""})[:2], "little")
    path.write_bytes(encode(rest, {"note": "x" * spare}))
    assert path.read_bytes()[:2] == bytes((0x80, length >> 8))
    assert decode(path)[0]["t"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_an_alpha_may_be_an_integer_and_nothing_else_may(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a.alpha": torch.tensor(1, dtype=dtype)}))
    assert decode(path)[0]["a.alpha"].item() == 1
    path.write_bytes(save({"a.alpha": torch.ones(2, dtype=dtype)}))
    with raises_code("weights.not_floating"):
        decode(path)


EIGHTS = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("dtype", EIGHTS)
def test_floats_of_eight_bits_are_read_to_the_same_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = torch.tensor([0.5, -1.75, 2.0**-6], dtype=dtype)
    (tmp_path / "x.safetensors").write_bytes(save({"a": numbers}))
    read = decode(tmp_path / "x.safetensors")[0]["a"]
    assert read.dtype == torch.float32 and read.tolist() == [0.5, -1.75, 2.0**-6]
    (tmp_path / "x.safetensors").write_bytes(save({"a": torch.tensor([float("nan")]).to(dtype)}))
    with raises_code("weights.not_finite"):
        decode(tmp_path / "x.safetensors")


def test_a_type_that_torch_does_not_have_is_named(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F8_E8M0","shape":[8],"data_offsets":[0,8]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with raises_code("weights.unsupported_dtype", "holds numbers of type F8_E8M0; ask its maker"):
        decode(tmp_path / "x.safetensors")

"""Headers that lie and files that are none: each refused in one line with its cause, in little time and memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from tests.errors import raises_code
from veneer.file_kind import MOST_HEADER_BYTES
from veneer.weights.file import info, load
from veneer.weights.header import parse_header
from veneer.weights.safetensors import decode

A, B = "unet.x.lora_A.weight", "unet.x.lora_B.weight"
WHOLE = save({A: torch.ones(2, 6), B: torch.ones(5, 2)})
DATA = WHOLE[8 + int.from_bytes(WHOLE[:8], "little") :]
HEADER: dict[str, Any] = json.loads(WHOLE[8 : 8 + int.from_bytes(WHOLE[:8], "little")])
FIRST = min((A, B), key=lambda name: HEADER[name]["data_offsets"][0])


def framed(header: bytes, data: bytes = DATA) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def told(**changes: Any) -> bytes:
    """The file with other things said of the tensor that lies first."""
    return framed(json.dumps({**HEADER, FIRST: {**HEADER[FIRST], **changes}}).encode())


def having(more: str, data: bytes = DATA) -> bytes:
    """The file with more text in its header."""
    return framed((json.dumps(HEADER)[:-1] + more).encode("utf-8", "surrogatepass"), data)


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, b"x")
    return content.getvalue()


ENTRY = '"dtype":"F32","shape":[2],"data_offsets"'
JSON = json.dumps(HEADER)
SIZE = HEADER[FIRST]["data_offsets"][1]
BAD = "weights.bad_header"
CORRUPTIONS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "weights.cut_short"),
    "one byte": (WHOLE[:1], "weights.cut_short"),
    "length only": (WHOLE[:8], "weights.cut_short"),
    "half a header": (WHOLE[:60], "weights.cut_short"),
    "half the data": (WHOLE[:-40], "weights.cut_short"),
    "one byte short": (WHOLE[:-1], "weights.cut_short"),
    "one byte long": (WHOLE + b"\0", BAD),
    "another file behind": (WHOLE + WHOLE, BAD),
    "length of 0": (bytes(8) + WHOLE[8:], BAD),
    "length too small": ((20).to_bytes(8, "little") + WHOLE[8:], BAD),
    "length too large": ((len(WHOLE) - 9).to_bytes(8, "little") + WHOLE[8:], BAD),
    "length over the file": ((10**6).to_bytes(8, "little") + WHOLE[8:], "weights.cut_short"),
    "length over the limit": ((MOST_HEADER_BYTES + 1).to_bytes(8, "little") + WHOLE[8:], BAD),
    "length of 2^63": ((2**63).to_bytes(8, "little") + WHOLE[8:], BAD),
    "length of 2^64 - 1": (b"\xff" * 8 + WHOLE[8:], BAD),
    "header is a list": (framed(b"[1, 2]"), "weights.not_safetensors"),
    "header is a text": (framed(b'"x"'), "weights.not_safetensors"),
    "header is null": (framed(b"null"), "weights.not_safetensors"),
    "header is no JSON": (framed(b"{hello}"), BAD),
    "header has one more brace": (framed(JSON.encode() + b"}"), BAD),
    "header has another object behind": (framed(JSON.encode() + b"{}"), BAD),
    "header does not end": (framed(JSON.encode()[:-1]), BAD),
    "header ends in a comma": (framed(JSON.encode()[:-1] + b",}"), BAD),
    "header is not UTF-8": (framed(JSON.encode().replace(b"unet", b"\xff\xfe\xfdt", 1)), BAD),
    "header is UTF-16": (framed(JSON.encode("utf-16")), "weights.not_safetensors"),
    "header is deep": (framed(b'{"a":' * 100_000), BAD),
    "header is a deep list": (having(',"x":' + "[" * 200_000 + "]" * 200_000 + "}"), BAD),
    "a name has a lone surrogate": (having(',"\\ud800":{' + ENTRY + f":[{SIZE},{SIZE}]" + "}}"), BAD),
    "a name has a control character": (having(',"a\x00b":{' + ENTRY + ":[0,8]}}"), BAD),
    "a name is a number": (having(",1:{" + ENTRY + ":[0,8]}}"), BAD),
    "a tensor twice": (having(f',"{FIRST}":' + json.dumps(HEADER[FIRST]) + "}"), BAD),
    "a tensor twice, escaped": (having(f',"\\u0075{FIRST[1:]}":' + json.dumps(HEADER[FIRST]) + "}"), BAD),
    "a key of a tensor twice": (framed(JSON.replace('"dtype"', '"dtype":"F16","dtype"', 1).encode()), BAD),
    "a tensor is null": (having(',"x":null}'), BAD),
    "a tensor is a number": (having(',"x":7}'), BAD),
    "a tensor is a list": (having(',"x":[1,2]}'), BAD),
    "a tensor is a long list": (having(',"x":[' + "0," * 500_000 + "0]}"), BAD),
    "a tensor has no dtype": (having(',"x":{"shape":[2],"data_offsets":[0,8]}}'), BAD),
    "a tensor has no shape": (having(',"x":{"dtype":"F32","data_offsets":[0,8]}}'), BAD),
    "a tensor has no offsets": (having(',"x":{"dtype":"F32","shape":[2]}}'), BAD),
    "a dtype is a number": (told(dtype=3), BAD),
    "a dtype is unknown": (told(dtype="F7"), "weights.unsupported_dtype"),
    "a dtype has an escape": (told(dtype="\x1b[2J"), "weights.unsupported_dtype"),
    "a dtype is complex": (told(dtype="C64"), "weights.unsupported_dtype"),
    "a dtype of another size": (told(dtype="F16"), BAD),
    "a shape is a number": (told(shape=10), BAD),
    "a shape is of texts": (told(shape=["5", "2"]), BAD),
    "a shape is of fractions": (told(shape=[5.0, 2.0]), BAD),
    "a shape is of truth values": (told(shape=[True, 10]), BAD),
    "a shape is negative": (told(shape=[-5, -2]), BAD),
    "a shape is too small": (told(shape=[1, 2]), BAD),
    "a shape is huge": (told(shape=[2**62, 2**62]), BAD),
    "a shape's product is 2^64 more": (told(shape=[2**32, 2**32 + 1]), BAD),
    "a shape has a thousand axes": (told(shape=[1] * 1000), BAD),
    "a shape of [2^40, 0]": (told(shape=[2**40, 0], data_offsets=[0, 0]), BAD),
    "a shape of [0]": (having(',"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'), BAD),
    "a shape of numbers of 900 digits": (told(shape=[10**900, 2]), BAD),
    "offsets are texts": (told(data_offsets=["0", "40"]), BAD),
    "offsets are negative": (told(data_offsets=[-SIZE, 0]), BAD),
    "offsets run backwards": (told(data_offsets=[SIZE, 0]), BAD),
    "offsets are three": (told(data_offsets=[0, SIZE, SIZE]), BAD),
    "offsets are fractions": (told(data_offsets=[0.0, float(SIZE)]), BAD),
    "offsets out of range": (told(data_offsets=[10**9, 10**9 + SIZE]), BAD),
    "offsets of 2^64": (told(data_offsets=[2**64, 2**64 + SIZE]), BAD),
    "offsets begin with a hole": (told(data_offsets=[8, 8 + SIZE]), BAD),
    "offsets overlap": (having(',"x":{' + ENTRY + f":[{len(DATA) - 4},{len(DATA) + 4}]" + "}}", DATA + bytes(4)), BAD),
    "two tensors in one place": (having(',"x":{' + ENTRY + ":[0,8]}}"), BAD),
    "a hole": (having(',"x":{' + ENTRY + f":[{len(DATA) + 8},{len(DATA) + 16}]" + "}}", DATA + bytes(16)), BAD),
    "metadata is a list": (having(',"__metadata__":["a"]}'), BAD),
    "metadata is a text": (having(',"__metadata__":"a"}'), BAD),
    "metadata twice": (having(',"__metadata__":{},"__metadata__":{}}'), BAD),
    "a key of the metadata twice": (having(',"__metadata__":{"a":"1","a":"2"}}'), BAD),
    "metadata is deep": (having(',"__metadata__":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}"), BAD),
    "metadata has a long list": (having(',"__metadata__":{"a":[' + "0," * 600_000 + "0]}}"), BAD),
    "metadata does not end": (having(',"__metadata__":{"a":"'), BAD),
    "a value that is no JSON": (having(',"__metadata__":{"a":nope}}'), BAD),
    "brackets of two kinds": (having(',"__metadata__":{"a":[}}}'), BAD),
    "NaN": (framed(JSON.encode(), b"\xff" * len(DATA)), "weights.not_finite"),
    "integers": (told(dtype="I32"), "weights.not_floating"),
    "truth values": (save({A: torch.ones(2, dtype=torch.bool)}), "weights.not_floating"),
    "a pickle": (pickle.dumps({"a": 1}, protocol=2), "weights.pickle"),
    "torch's zip": (zipped("archive/data.pkl"), "weights.pickle"),
    "a zip": (zipped("lora.safetensors"), "weights.not_safetensors"),
    "gzip": (gzip.compress(WHOLE, mtime=0), "weights.not_safetensors"),
    "a web page": (b"<!DOCTYPE html><html><body>Sign in</body></html>" * 20, "weights.not_safetensors"),
    "a web page after blanks": (b"\n\n  <html>" + b"x" * 99, "weights.not_safetensors"),
    "XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "weights.not_safetensors"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "weights.not_safetensors"),
    "a refusal": (b"Entry not found", "weights.not_safetensors"),
    "JSON": (b'{"error": "Repository not found"}', "weights.not_safetensors"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(40), "weights.not_safetensors"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(40), "weights.not_safetensors"),
    "NumPy": (b"\x93NUMPY\1\0" + bytes(40), "weights.not_safetensors"),
    "random bytes": (np.random.default_rng(0).bytes(5000), "weights.not_safetensors"),
    "zeros": (bytes(5000), "weights.not_safetensors"),
}  # fmt: skip


def test_there_are_many_corruptions() -> None:
    assert len(CORRUPTIONS) >= 90


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_is_refused_in_one_line_with_its_cause(kind: str, tmp_path: Path) -> None:
    content, code = CORRUPTIONS[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    before = time.process_time()
    try:
        with raises_code(code) as error:
            load(path)
        spent, (_, peak) = time.process_time() - before, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    text = str(error.value)
    assert (
        text.startswith(f"{path}: ")
        and text.count(str(path)) == 1
        and text.isprintable()
        and len(text) < 600 + len(str(path))
    )
    assert error.value.remedy and (code == "weights.cut_short") == (error.value.remedy == "fetch it again")
    assert spent < 5 and peak < 3 * len(content) + 2**24  # the latter for a list in the metadata, which is parsed


CAUSES = {
    "a web page": "is a web page",
    "git-lfs": "is a git-lfs pointer to a file that was not fetched; git lfs pull",
    "a refusal": "is a text file that begins Entry not found",
    "torch's zip": "is a pickle, which can run any code",
    "a zip": "is a zip archive; unpack it",
    "half the data": "is cut short: its tensors have",
    "another file behind": "bytes behind its last tensor",
    "length over the limit": "its header would have 100,000,001 bytes, and safetensors allows 100,000,000",
    "a tensor twice": "twice",
    "a hole": "has a hole before it",
    "offsets overlap": "overlaps the one before it",
    "a shape is too small": "is F32 of shape (1, 2), 8 bytes, and has the bytes of",
    "a shape of [0]": "is of shape (0,) and holds no number",
    "metadata is a list": 'its __metadata__ is ["a"] and no JSON object of texts',
    "NaN": "holds NaN or infinity",
}


@pytest.mark.parametrize("kind", CAUSES)
def test_the_message_tells_the_cause(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(CORRUPTIONS[kind][0])
    with raises_code(CORRUPTIONS[kind][1], CAUSES[kind]):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("bad", [BAD, "weights.cut_short"])
def test_the_library_refuses_these_too(bad: str, tmp_path: Path) -> None:
    """Nothing is refused as broken that safetensors reads, but where several tensors or keys have one name."""
    lenient = {"a tensor has no shape", "a shape of [2^40, 0]", "a shape of [0]", "a shape has a thousand axes"}
    for kind, (content, code) in CORRUPTIONS.items():
        if code != bad or "twice" in kind or kind in lenient:
            continue
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(Exception), safe_open(tmp_path / "x.safetensors", framework="pt"):  # noqa: B017
            pass


METADATA: dict[str, tuple[str, dict[str, str]]] = {
    "a number": ('{"steps": 100}', {"steps": "100"}),
    "a fraction": ('{"lr": 1.5e-4}', {"lr": "1.5e-4"}),
    "null": ('{"a": null, "b": "x"}', {"a": "null", "b": "x"}),
    "a truth value": ('{"a": true}', {"a": "true"}),
    "an object": ('{"ss_tag_frequency": {"a, b": {"}": 1}}}', {"ss_tag_frequency": '{"a, b": {"}": 1}}'}),
    "a list": ('{"a": ["]", "\\"", []]}', {"a": '["]", "\\"", []]'}),
    "none": ("null", {}),
    "escapes": ('{"\\u0061": "\\u00e9\\n\\""}', {"a": 'é\n"'}),
    "blanks": ('\n{ "a"\t:\r\n"b" , "c" : "" }\n', {"a": "b", "c": ""}),
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_that_is_no_text_is_kept_as_its_json(kind: str, tmp_path: Path) -> None:
    text, expected = METADATA[kind]
    (tmp_path / "x.safetensors").write_bytes(having(f',"__metadata__":{text}}}'))
    assert load(tmp_path / "x.safetensors").metadata == expected
    assert info(tmp_path / "x.safetensors").targets == 1


@given(st.dictionaries(st.text(), st.text(), max_size=5), st.integers(0, 3))
def test_a_header_says_what_the_library_says(metadata: dict[str, str], spaces: int) -> None:
    text = json.dumps({**HEADER, "__metadata__": metadata}, indent=spaces or None).encode("utf-8", "surrogatepass")
    header = parse_header(text, Path("x"))
    assert header.metadata == metadata and set(header.tensors) == {A, B}
    assert header.data_bytes == len(DATA)


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
        max_leaves=8,
    )
)
def test_any_value_of_the_metadata_is_found_to_its_end(value: Any) -> None:
    text = json.dumps({"__metadata__": {"a": value, "b": "behind"}}).encode()
    metadata = parse_header(text, Path("x")).metadata
    assert metadata["b"] == "behind"
    assert value == (metadata["a"] if isinstance(value, str) else json.loads(metadata["a"]))


def test_bytes_in_another_order_and_off_their_place_are_read(tmp_path: Path) -> None:
    """A writer may lay a half precision tensor of odd length first: the next one then begins at an odd place."""
    half, single = torch.tensor([1.5], dtype=torch.float16), torch.tensor([2.5, 3.5])
    entries = (
        '{"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
    )
    data = half.numpy().tobytes() + single.numpy().tobytes()
    (tmp_path / "x.safetensors").write_bytes(framed(entries.encode(), data))
    read, _ = decode(tmp_path / "x.safetensors")
    assert torch.equal(read["a"], half) and torch.equal(read["b"], single)


def test_a_long_name_is_refused_before_its_ending_is_looked_for(tmp_path: Path) -> None:
    name = ".hra_x" * 500_000
    entry = '{"' + name + '":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "x.safetensors").write_bytes(framed(entry.encode(), bytes(4)))
    before = time.process_time()
    with raises_code("weights.bad_tensor_name"):
        load(tmp_path / "x.safetensors")
    assert time.process_time() - before < 5


def test_more_tensors_than_an_adapter_has_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({f"{number}": entry for number in range(50_001)})
    (tmp_path / "x.safetensors").write_bytes(framed(text.encode(), bytes(4)))
    with raises_code(BAD, "has more than 50,000 names"):
        load(tmp_path / "x.safetensors")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a named pipe": (os.mkfifo, "it is a named pipe and no regular file"),
    "a socket": (make_socket, "it is a socket and no regular file"),
    "a link to an endless device": (lambda path: path.symlink_to("/dev/zero"), "it is a device and no regular file"),
    "a link to a pipe": (lambda path: (os.mkfifo(path.with_name("p")), path.symlink_to("p")), "it is a named pipe"),
    "a link in a circle": (lambda path: path.symlink_to(path.name), "Too many levels"),
    "a link to nothing": (lambda path: path.symlink_to("none"), "No such file"),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words = PLACES[kind]
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make(Path("x.safetensors"))
    for read in (load, info):
        with raises_code("weights.unreadable", words):
            read(Path("x.safetensors"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_config_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(save({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}))
    os.mkfifo(tmp_path / "adapter_config.json")
    with raises_code("weights.no_peft_config", "it is a named pipe"):
        load(tmp_path)


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(WHOLE)
    (tmp_path / "b.safetensors").symlink_to("a.safetensors")
    assert list(load(tmp_path / "b.safetensors").weights) == ["unet.x"]


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    """The file is sparse: it takes no room on the disk, and reading it would take 200 MB."""
    path = tmp_path / "x.safetensors"
    path.write_bytes((2 * MOST_HEADER_BYTES).to_bytes(8, "little") + b"{")
    os.truncate(path, 2 * MOST_HEADER_BYTES + 8)
    tracemalloc.start()
    try:
        with raises_code(BAD):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_file_larger_than_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sparse and whole by its header: its tensors would take 8 GB, of which 2 are free."""
    header = json.dumps({A: {"dtype": "F32", "shape": [2**29, 4], "data_offsets": [0, 2**33]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(framed(header, b""))
    os.truncate(path, 8 + len(header) + 2**33)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 10**9))
    with raises_code("weights.too_large", "holds 8.6 GB of tensors, and 2.0 GB of memory are free"):
        decode(path)


LARGEST = {
    "empty lists, each an object in memory": b'{"x":[' + b"[]," * 33_000_000,
    "escapes": b'{"__metadata__":{"a":"' + b'\\"' * 49_000_000,
    "one long name": b'{"' + b"x" * 99_000_000,
}
PROGRAM = """
import sys; from pathlib import Path; from veneer.weights.file import load
def peak(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted anew
before = peak()
try: load(Path(sys.argv[1]))
except ValueError as error: print(peak() - before, error.code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak of a part")
@pytest.mark.parametrize("kind", LARGEST)
def test_the_largest_header_takes_little_more_than_its_size(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(framed(LARGEST[kind]))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x.safetensors")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    kilobytes, code = run.stdout.split()
    assert code == BAD and int(kilobytes) < 3 * 99_000

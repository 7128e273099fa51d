"""Hundreds of corrupt files: refused in one line, at once, in little memory, with nothing run; or proven to be valid.

Memory is what Python and numpy allocate at most (tracemalloc) and all that torch allocates (each operation's outputs,
by a dispatch mode; none is taken off when it is freed). Time is the processor's, of all threads.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lycoris.modules import diag_oft, full, glora, ia3, loha, lokr
from safetensors.torch import save as library_save
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.corruptions import Corruption, Sound, corruptions, parse
from veneer.adapter.dora import DoraFactors
from veneer.adapter.lora import LoraFactors
from veneer.adapter.registry import to_tensors
from veneer.errors import UserError
from veneer.verbs import check
from veneer.weights.file import AdapterFile, load, save
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.summary import info

SEED = 20261127
SECOND = 1.0
SPARE = 2 * 10**6  # bytes for Python's own objects: names, messages, a header's JSON
NEEDS_BASE = {"weights.unknown_layer", "weights.ambiguous_layer", "weights.layer_twice", "adapter.other_architecture"}
NEEDS_BASE |= {"adapter.cannot_cut"}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I8": torch.int8}
FORMATS = ("diffusers", "kohya", "comfy", "peft")
LYCORIS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "LoHa": (loha.LohaModule, {}),
    "LoHa with cores": (loha.LohaModule, {"use_tucker": True}),
    "LoKr": (lokr.LokrModule, {"factor": 2}),
    "LoKr of full matrices": (lokr.LokrModule, {"full_matrix": True}),
    "OFT": (diag_oft.DiagOFTModule, {"rescaled": True}),
    "GLoRA": (glora.GLoRAModule, {}),
    "(IA)^3": (ia3.IA3Module, {}),
    "full difference": (full.FullModule, {}),
}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    block = nn.ModuleDict({"to_q": nn.Linear(12, 8), "conv": nn.Conv2d(12, 8, 3)})
    text_encoder = nn.ModuleDict({"encoder": nn.ModuleDict({"fc1": nn.Linear(12, 8)})})
    return {"unet": nn.ModuleDict({"down_blocks": nn.ModuleList([block])}), "text_encoder": text_encoder}


NETWORKS = networks()


def adapters(*, dora: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    for path, kernel in (
        ("unet.down_blocks.0.to_q", ()),
        ("unet.down_blocks.0.conv", (3, 3)),
        ("text_encoder.encoder.fc1", ()),
    ):
        places = tuple(1 for _ in kernel)
        down = torch.randn(2, 12, *kernel, generator=generator)
        lora = LoraFactors(down, torch.randn(8, 2, *places, generator=generator), 4.0)
        found[path] = DoraFactors(lora, torch.rand(8, 1, *places, generator=generator)) if dora else lora
    return found


def lycoris_tensors(kind: type[Any], options: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a LyCORIS method on all layers that it takes."""
    found = {}
    torch.manual_seed(0)
    for path, layer in (("down_blocks_0_to_q", nn.Linear(12, 8)), ("down_blocks_0_conv", nn.Conv2d(12, 8, 3))):
        if kind is glora.GLoRAModule and isinstance(layer, nn.Conv2d):
            continue
        module = kind(f"lora_unet_{path}", layer, 1.0, 4, 2.0, **options)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        state = getattr(module, "custom_state_dict", lambda: None)() or module.state_dict()
        found |= {f"lora_unet_{path}.{name}": each.detach().clone().contiguous() for name, each in state.items()}
    return found


def sound_files(folder: Path) -> Iterator[Sound]:
    """Yield a valid file of each format and method."""
    for method, weights in (("LoRA", adapters(dora=False)), ("DoRA", adapters(dora=True))):
        for name in FORMATS:
            place = folder / f"{method}_{name}"
            path = place if name == "peft" else place / "x.safetensors"
            save(AdapterFile(weights, {"note": "x"}), path, name, BaseNames.of(NETWORKS))
            sound = parse(f"{method}, {name}", place / "unet" / "adapter_model.safetensors" if name == "peft" else path)
            yield sound
            if name == "peft":  # as peft itself writes it, with nothing in the header
                yield Sound(f"{method}, peft's own", sound.entries, {"format": "pt"}, sound.beside)
    for title, (kind, options) in LYCORIS.items():
        (folder / title).mkdir()
        save_file(
            lycoris_tensors(kind, options), folder / title / "x.safetensors", {"ss_network_module": "lycoris.kohya"}
        )
        yield parse(f"{title}, kohya", folder / title / "x.safetensors")


class TorchAllocations(TorchDispatchMode):
    """Counts the bytes of all that torch's operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self.bytes += sum(
            each.nbytes for each in tree_leaves(returned) if isinstance(each, Tensor) and not each.is_meta
        )
        return returned


@dataclass
class Outcome:
    """What a reader did: the error, the seconds, the bytes."""

    error: UserError | None
    seconds: float
    bytes: int


RUN: list[str] = []
"""What the interpreter was asked to run while files were read."""
LISTENING = [False]


def listen(event: str, arguments: Any) -> None:
    if LISTENING[0] and event in (
        "pickle.find_class",
        "os.system",
        "os.exec",
        "subprocess.Popen",
        "marshal.loads",
        "os.mkdir",
    ):
        RUN.append(event)


sys.addaudithook(listen)


def outcome(read: Callable[[], object]) -> Outcome:
    error: UserError | None = None
    LISTENING[0] = True
    tracemalloc.start()
    before = time.process_time()
    try:
        with TorchAllocations() as allocations:
            read()
    except UserError as caught:
        error = caught
    finally:
        seconds, (_, peak) = time.process_time() - before, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        LISTENING[0] = False
    return Outcome(error, seconds, peak + allocations.bytes)


@pytest.fixture
def one_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``check`` have the networks as its base, which it would otherwise read for each file anew."""
    layers = {f"{network}.{path}": m for network, net in NETWORKS.items() for path, m in net.named_modules()}
    weights = SimpleNamespace(
        place="base",
        networks=lambda: NETWORKS,
        read=lambda path: layers[path].weight.detach(),
        dtype=lambda path: layers[path].weight.dtype,
        own_name=lambda path: path,
        layers=lambda: [path for path, module in layers.items() if hasattr(module, "weight")],
    )
    monkeypatch.setattr(check, "BaseWeights", SimpleNamespace(open=lambda base: weights))


def refusal(one: Corruption, path: Path) -> str | None:
    """Return the code with which all readers refuse a file; None: they take it."""
    readers = {
        "load": lambda: load(path, NETWORKS),
        "info": lambda: info(path),
        "check": lambda: check.check_adapter(path, base="x"),
    }
    outcomes = {name: outcome(read) for name, read in readers.items()}
    for name, found in outcomes.items():
        where = f"{one.title}, {name}: {found.error}"
        assert found.seconds < SECOND, f"{where}: {found.seconds:.2f} s"
        assert found.bytes < 4 * one.size + SPARE, f"{where}: {found.bytes:,} bytes for a file of {one.size:,}"
        if found.error is not None:
            text = str(found.error)
            assert text.startswith(str(path)) and text.isprintable() and len(text) < 700 + len(str(path)), where
            assert found.error.code and found.error.what, where
    codes = {name: found.error and found.error.code for name, found in outcomes.items()}
    assert codes["check"] == codes["load"], f"{one.title}: {codes}"
    assert codes["info"] == codes["load"] or (codes["info"] is None and codes["load"] in NEEDS_BASE), (
        f"{one.title}: {codes}"
    )
    return codes["load"]


def prove_valid(one: Corruption, path: Path) -> None:
    """Check that a file is what safetensors' own library writes of its tensors, and is read as that is.

    The file is taken apart by the format's definition, not by our reader.
    """
    apart = parse(one.title, path)
    tensors = {
        name: torch.frombuffer(bytearray(entry.data), dtype=DTYPES[entry.dtype]).reshape(entry.shape)
        for name, entry in apart.entries.items()
    }
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in apart.metadata.items()}
    before = to_tensors(load(path, NETWORKS).weights)
    path.write_bytes(library_save(tensors, texts))
    after = to_tensors(load(path, NETWORKS).weights)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before), one.title
    assert all(torch.isfinite(tensor).all() for tensor in before.values()), one.title


def survey(folder: Path, share: int) -> tuple[int, Counter[str]]:
    """Read each of so many corrupt files; return how many different ones there were, and how often each code."""
    (folder / "sound").mkdir()
    crater = folder / "crater"
    seen: set[str] = set()
    codes: Counter[str] = Counter()
    faults: list[str] = []
    for number, sound in enumerate(sound_files(folder / "sound")):
        for place, one in enumerate(corruptions(sound, SEED, crater)):
            if place % share != number % share:
                continue
            (folder / f"{number}_{place}").mkdir()
            path = one.write(folder / f"{number}_{place}")
            try:
                code = refusal(one, path)
                assert code is not None or not one.fatal, "is read"
                if code is None:
                    prove_valid(one, path)
            except Exception as fault:  # all that is wrong is told at once
                faults.append(f"{one.title}: {type(fault).__name__}: {str(fault)[:300]}")
                continue
            seen.add(repr((one.name, one.content, sorted(one.beside.items()))))
            codes[code or "valid"] += 1
    assert not faults, "\n".join(faults)
    assert not crater.exists() and not RUN
    return len(seen), codes


def test_corrupt_files_are_refused_or_proven_valid(tmp_path: Path, one_base: None) -> None:
    """A share of all of them, from each format and method."""
    count, codes = survey(tmp_path, 14)
    assert count >= 200 and len(codes) > 15 and codes["valid"] < count / 5, codes


@pytest.mark.slow
def test_all_corrupt_files_are_refused_or_proven_valid(tmp_path: Path, one_base: None) -> None:
    count, codes = survey(tmp_path, 1)
    assert count >= 3000 and codes["valid"] < count / 5, codes


def test_valid_files_are_read_by_all(tmp_path: Path, one_base: None) -> None:
    for number, sound in enumerate(sound_files(tmp_path)):
        (tmp_path / f"{number}").mkdir()
        one = Corruption(sound.title, "adapter_model.safetensors", sound.content(), sound.beside, False)
        path = one.write(tmp_path / f"{number}")
        assert refusal(one, path) is None
        prove_valid(one, path)

"""What readers that are not Veneer's find in an adapter file, compared with what Veneer wrote."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from veneer.adapter.layers import weighted_layers_of
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError
from veneer.family.lora_loaders import diffusers_loader, merged_by_diffusers, merged_by_peft
from veneer.rng import torch_generator
from veneer.weights.adapter_path import files_in
from veneer.weights.formats.layers import LayerIndex, Meaning
from veneer.weights.formats.names import parse_name
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.formats.strength import NETWORK_KEY

__all__ = ["NOT_JUDGED", "READERS", "ReadBack", "read_back"]

_TOLERANCE = 1e-5
"""Relative difference that float32 sums in another order make at most."""
_NARROW_TOLERANCE = 1e-2
"""That of tensors of 16 bits, which readers multiply in their own precision."""


@dataclass(frozen=True)
class ReadBack:
    """A reader's finding.

    Attributes:
        reader: its name.
        layers: how many layers it compared.
        difference: the largest of W + delta W between the reader and Veneer, as a share of the layer's largest number.
        missing: layers that the reader does not find, or cannot compute.
        tolerance: that rounding takes.
        fault: why the reader refuses the file; None: it does not.
        not_judged: how many layers have a method that the reader cannot compute.
    """

    reader: str
    layers: int
    difference: float
    missing: tuple[str, ...] = ()
    tolerance: float = _TOLERANCE
    fault: str | None = None
    not_judged: int = 0

    @property
    def agrees(self) -> bool:
        """Whether the reader finds each layer, with the same numbers up to rounding."""
        return self.fault is None and not self.missing and self.difference <= self.tolerance

    @property
    def finding(self) -> str:
        """What it finds, in words."""
        if self.fault is not None:
            return self.fault
        if self.missing:
            return f"it passes over {len(self.missing)} layers, such as {self.missing[0]}"
        rest = f"; of {self.not_judged} more it cannot say anything" if self.not_judged else ""
        return f"{self.layers} layers, in which W + delta W differs by at most {self.difference:.0e}{rest}"


def read_back(out: Path, format_name: str, weights: AdapterWeights, base: BaseNames) -> list[ReadBack]:
    """Read a written file with each reader of its format that is installed, and compare what each would merge.

    Args:
        out: the file, or folder.
        format_name: of it.
        weights: what was written.
        base: whose layers it is of.

    Raises:
        UserError: no reader of the format is installed.
    """
    found = [_compared(name, read, out, weights, base) for name, read in _readers(format_name, weights, base)]
    if not found:
        what = f"no reader of such {format_name} files that is not Veneer's own is installed"
        raise UserError(what, code="convert.no_reader", remedy="pip install lycoris-lora, or leave out --verify")
    return found


Read = Callable[[Path, BaseNames, Callable[[str], Tensor]], Mapping[str, Tensor]]
"""Returns W + delta W of the layers that a reader finds, for a given W."""


def _with_diffusers(out: Path, base: BaseNames, weight_of: Callable[[str], Tensor]) -> Mapping[str, Tensor]:
    return merged_by_diffusers(out, base.networks, weight_of)


def _with_peft(out: Path, base: BaseNames, weight_of: Callable[[str], Tensor]) -> Mapping[str, Tensor]:
    files = files_in(out)
    networks = {network or _only_network(file): file for file, network in files.items()}
    return merged_by_peft(networks, base.networks, weight_of)


def _only_network(file: Path) -> str:
    with safe_open(file, framework="pt") as opened:
        return str(opened.metadata()[NETWORK_KEY])


def _with_lycoris(out: Path, base: BaseNames, weight_of: Callable[[str], Tensor]) -> Mapping[str, Tensor]:
    """Let LyCORIS' modules make W + delta W of each layer's tensors; the names are looked up by Veneer."""
    from lycoris.modules import get_module, make_module  # type: ignore[import-untyped]

    tensors, index, layers = load_file(out), LayerIndex(base), weighted_layers_of(base.networks)
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(_layer_in(tensor) for tensor in tensors):
        meanings = index.meanings(name)
        if len(meanings) != 1:
            continue
        kind, parts = get_module(tensors, name)
        layer = _layer_of(meanings[0], layers, weight_of)
        module: Any = None if kind is None else make_module(kind, parts, name, layer)
        if module is not None:
            merged, slices = _merged_by_lycoris(module, layer), meanings[0].slices
            found |= {path: merged if part is None else part.take(merged) for path, part in slices.items()}
    return found


def _layer_of(meaning: Meaning, layers: Mapping[str, Any], weight_of: Callable[[str], Tensor]) -> Any:
    """Return a layer as a file has it: one of the base's, or a larger one of which several are rows."""
    (path, part), *others = meaning.slices.items()
    if part is None and not others:
        return _with_weight(layers[path], weight_of(path))
    weight = torch.zeros(meaning.shape)
    for path, part in meaning.slices.items():
        assert part is not None, "only slices mean one layer together"
        part.put(weight_of(path), weight)
    return _with_weight(nn.Linear(meaning.shape[1], meaning.shape[0], bias=False, device="meta"), weight)


_SCALED_TWICE = ("LohaModule", "LokrModule")
"""Modules of LyCORIS 4 whose ``get_merged_weight`` multiplies by alpha/r twice; their forward pass does so once."""


def _with_weight(layer: Any, weight: Tensor) -> Any:
    """Return a copy of a layer on the CPU with a weight, without a bias to speak of, and without padding or stride."""
    own = copy.deepcopy(layer).to_empty(device="cpu")
    own.weight = nn.Parameter(weight, requires_grad=False)
    if own.bias is not None:
        own.bias = nn.Parameter(torch.zeros_like(own.bias), requires_grad=False)
    if isinstance(own, nn.Conv2d):
        own.padding, own.stride = (0, 0), (1, 1)
    return own


@torch.no_grad()
def _merged_by_lycoris(module: Any, layer: Any) -> Tensor:
    """Return a layer's weight with LyCORIS' module in it."""
    shape = layer.weight.shape
    if type(module).__name__ not in _SCALED_TWICE:
        merged: Tensor = module.get_merged_weight(shape=shape)[0]
        return merged.reshape(shape)
    module.eval().apply_to()  # what the layer answers to a one at each place of its input is its weight
    inputs = torch.eye(shape[1:].numel()).reshape(-1, *shape[1:])
    answers: Tensor = layer(inputs)
    return answers.flatten(1).T.reshape(shape)


def _layer_in(tensor: str) -> str:
    parsed = parse_name(tensor)
    assert parsed is not None, tensor
    return tensor[: tensor.index(parsed.layer) + len(parsed.layer)] if parsed.layer in tensor else tensor


READERS: Mapping[str, tuple[tuple[str, Read], ...]] = {
    "diffusers": (("diffusers", _with_diffusers),),
    "kohya": (("LyCORIS", _with_lycoris), ("diffusers", _with_diffusers)),
    "comfy": (("LyCORIS", _with_lycoris),),
    "peft": (("peft", _with_peft),),
}
"""The readers of each format; the first is the one that the format is for, or made as its readers are."""


NOT_JUDGED: Mapping[str, Mapping[str, str]] = {
    "LyCORIS": {
        "boft": "it chooses the blocks' size by the layer's, whatever the file has",
        "ia3": "its loader of (IA)^3 takes one argument less than it is given",
        "norm": "it makes no module of a norm from a file",
        "replaced": "ComfyUI alone reads set_weight",
    }
}
"""Methods that a reader cannot compute from a file at all, with why; it cannot say anything of their layers."""


def _readers(format_name: str, weights: AdapterWeights, base: BaseNames) -> list[tuple[str, Read]]:
    """Return the readers of a format that are installed, and read these methods and this base."""
    methods = {adapter.method.name for adapter in weights.values()}
    by_diffusers = diffusers_loader(base.networks) is not None
    has = {
        "LyCORIS": importlib.util.find_spec("lycoris") is not None,
        # of kohya's files it passes over all but LoRA, magnitudes too, with a warning
        "diffusers": by_diffusers and (format_name == "diffusers" or methods == {"lora"}),
        "peft": True,
    }
    return [(name, read) for name, read in READERS[format_name] if has[name] and methods - _not_judged(name)]


def _not_judged(reader: str) -> set[str]:
    return set(NOT_JUDGED.get(reader, {}))


def _compared(name: str, read: Read, out: Path, weights: AdapterWeights, base: BaseNames) -> ReadBack:
    """Return what a reader finds, compared with what was written."""
    is_narrow = any(tensor.element_size() < 4 for each in weights.values() for tensor in each.state_dict().values())
    tolerance = _NARROW_TOLERANCE if is_narrow else _TOLERANCE
    layers = weighted_layers_of(base.networks)

    def weight_of(path: str) -> Tensor:
        """Zero where delta W depends on the adapter alone, so that nothing but delta W is compared."""
        shape, adapter = layers[path].weight.shape, weights.get(path)
        return (
            torch.zeros(shape)
            if adapter is None or adapter.method.is_additive
            else torch.randn(shape, generator=torch_generator(0, path))
        )

    try:
        theirs = read(out, base, weight_of)
    except Exception as error:  # whatever it is, the reader does not take the file
        return ReadBack(name, 0, math.inf, tuple(sorted(weights)), tolerance, f"{type(error).__name__}: {error!s:.200}")
    judged = {path for path, each in weights.items() if each.method.name not in _not_judged(name)}
    difference = 0.0
    for path in theirs.keys() & judged:
        own = weights[path].to("cpu", torch.float32)
        expected = weight_of(path) + own.delta_weight(weight_of(path))
        scale = float(expected.abs().max()) or 1.0
        difference = max(difference, float((theirs[path].float() - expected).abs().max()) / scale)
    missing, found = tuple(sorted(judged - theirs.keys())), len(theirs.keys() & judged)
    finite = difference if math.isfinite(difference) else math.inf
    return ReadBack(name, found, finite, missing, tolerance, not_judged=len(weights) - len(judged))

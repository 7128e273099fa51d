"""Check an adapter file against its base: what it changes, by how much, and what of that a merge would round away."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer.family.base_weights import BaseWeights
from veneer.files import opens_paths
from veneer.run.folder import base_beside
from veneer.verbs.check_layers import LayerCheck, Loss, measure, total_losses
from veneer.verbs.provenance import base_warnings
from veneer.weights.file import load
from veneer.weights.formats.left_out import LeftOut
from veneer.weights.formats.places import place_of
from veneer.weights.safetensors import dtype_name
from veneer.weights.summary import AdapterInfo, hash_note, info

__all__ = ["AdapterCheck", "check_adapter", "check_data"]

_LARGE = 1.0  # |delta W| / |W| above which an adapter replaces a layer rather than adapt it
_SMALL = 1e-4  # below which hardly any picture shows it
_MUCH = 0.5  # of delta W, or of the ranks: too much to lose without a word
_SAME = 1e-3  # within which two strengths are one
_FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float8_e4m3fn": "fp8"}
"""What number formats are called here, by torch's name; float32 rounds away hardly anything."""


@dataclass(frozen=True)
class AdapterCheck:
    """An adapter file checked against its base.

    Attributes:
        base: its folder or file.
        precision: that its weights are stored in, the most frequent one of those that are adapted.
        tensors: how many the adapter's file has; each belongs to one of its layers.
        layers: of the base, that the adapter changes.
        coverage: by kind of layer, how many layers of the base it changes and how many there are, in the networks that
            it changes.
        strengths: alpha/r, how many of the file's layers have each.
        strength_in: where the strength is told, for how many of the file's layers.
        losses: what each number format swallows of it, all layers together.
        problems: what is wrong, in words; none: it is fine.
        notes: what is good to know, in words.
    """

    base: str
    precision: str
    tensors: int
    layers: tuple[LayerCheck, ...]
    coverage: Mapping[str, tuple[int, int]]
    strengths: Mapping[float, int]
    strength_in: Mapping[str, int]
    losses: Mapping[str, Loss]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ratios(self) -> Mapping[str, float]:
        """|delta W| / |W| by layer, of those that have one, the largest first."""
        return _ratios(self.layers)


@opens_paths
def check_adapter(file: Path, *, base: str | None = None) -> AdapterCheck:
    """Check an adapter file against its base, whose weights are read one layer at a time.

    Args:
        file: the adapter, or the folder of its run.
        base: the adapter's; default: that of the run's config beside it, else the bundled one.

    Raises:
        UserError: the adapter or the base cannot be read, or the adapter is of another base.
    """
    found, name = info(file), base or base_beside(file)
    weights = BaseWeights.open(name)
    left_out: list[LeftOut] = []
    adapters = load(file, weights.networks(), left_out=left_out).weights
    layers = tuple(measure(path, adapter, weights.read(path).float()) for path, adapter in adapters.items())
    stored = Counter(dtype_name(weights.dtype(path)) for path in adapters).most_common(1)[0][0]
    losses, scaled = total_losses(layers), [layer for layer in found.layers if layer.scale is not None]
    return AdapterCheck(
        base=str(weights.place),
        precision=stored,
        tensors=found.tensors,
        layers=layers,
        coverage=_coverage(adapters, weights),
        strengths=Counter(round(layer.scale, 6) for layer in scaled if layer.scale is not None),
        strength_in=Counter(" and ".join(layer.strength_in) or "nowhere" for layer in scaled),
        losses=losses,
        problems=(*_strength_problems(found), *_size_problems(layers), *_base_problems(stored, losses)),
        notes=(*map(str, left_out), *_notes(found, layers, losses), *base_warnings(found.metadata, name)),
    )


def check_data(check: AdapterCheck) -> dict[str, Any]:
    """Return a check as plain data, with the verdict and the sizes of delta W."""
    ratios = list(check.ratios.values())
    sizes = {"largest": ratios[0], "median": statistics.median(ratios)} if ratios else {}
    coverage = {kind: {"adapted": own, "layers": total} for kind, (own, total) in check.coverage.items()}
    verdict = "problems" if check.problems else "fine"
    return {"verdict": verdict, "ratios": sizes, **vars(check), "coverage": coverage}


def _coverage(adapted: Iterable[str], weights: BaseWeights) -> dict[str, tuple[int, int]]:
    own = {weights.own_name(path) for path in adapted}
    networks = {path.partition(".")[0] for path in own}
    layers = own | {path for path in weights.layers() if path.partition(".")[0] in networks}
    total = Counter(place_of(path, "diffusers").kind for path in sorted(layers))
    changed = Counter(place_of(path, "diffusers").kind for path in own)
    return {kind: (changed[kind], count) for kind, count in total.items()}


def _strength_problems(found: AdapterInfo) -> Iterator[str]:
    """Yield where programs would take another strength than the file means."""
    unseen = [
        layer
        for layer in found.layers
        if layer.scale is not None and "alpha" not in layer.strength_in and abs(layer.scale - 1) > _SAME
    ]
    if unseen and found.format != "peft":  # whose own reader looks there, and hardly another reads such files
        places = ", ".join(sorted({place for layer in unseen for place in layer.strength_in}))
        yield (
            f"the strength {unseen[0].scale:g} of {len(unseen)} layers is told by {places} alone: programs that read "
            "tensors only, such as ComfyUI and A1111, apply 1; veneer adapter convert puts it where each reader looks"
        )
    told = [layer for layer in found.layers if "alpha" in layer.strength_in]
    silent = [layer for layer in found.layers if layer.scale is not None and not layer.strength_in]
    if silent and any(layer.scale is not None and abs(layer.scale - 1) > _SAME for layer in told):
        yield (
            f"{len(silent)} layers have no alpha, which means 1, beside {len(told)} that have one of another strength, "
            f"such as {silent[0].name}"
        )


def _size_problems(layers: tuple[LayerCheck, ...]) -> Iterator[str]:
    """Yield sizes of delta W that no trained adapter has."""
    norms = {layer.name: layer.norm for layer in layers if layer.norm is not None}
    if broken := [name for name, norm in norms.items() if not math.isfinite(norm)]:
        yield f"delta W of {broken[0]} is not finite, as of {len(broken)} layers"
    if norms and not any(norms.values()):
        yield "it changes nothing: delta W of every layer is zero"
    large = {name: ratio for name, ratio in _ratios(layers).items() if ratio > _LARGE}
    if large:
        name = next(iter(large))
        yield (
            f"delta W is larger than the base's own weight in {len(large)} layers, in {name} {large[name]:.2g} times: "
            "it was trained too long or too fast, or its strength is wrong"
        )


def _base_problems(stored: str, losses: Mapping[str, Loss]) -> Iterator[str]:
    name = _FORMATS.get(stored, "")
    if name in losses and losses[name].error > _MUCH:
        yield (
            f"merged into this base, which is held in {name}, it is off by {losses[name].error:.0%} of delta W: "
            "apply it beside the base, or merge into a base in float32"
        )


def _notes(found: AdapterInfo, layers: tuple[LayerCheck, ...], losses: Mapping[str, Loss]) -> Iterator[str]:
    if (note := hash_note(found)) is not None:
        yield note
    norms = [layer.norm for layer in layers if layer.norm is not None]
    if any(norms) and (zero := sum(not norm for norm in norms)):
        yield f"{zero} of {len(norms)} layers are not changed: their delta W is zero"
    ranks, dead = (sum(getattr(layer, key) or 0 for layer in layers) for key in ("rank", "dead_ranks"))
    if dead > _MUCH * ranks:
        yield f"{dead} of {ranks} ranks carry less than a millionth of delta W each: a lower rank does the same"
    ratios = list(_ratios(layers).values())
    if any(norms) and statistics.median(ratios) < _SMALL:
        yield f"delta W is small: half the layers change by less than {statistics.median(ratios):.1e} of their weight"
    swallowed = {name: loss for name, loss in losses.items() if loss.error > _MUCH}
    if swallowed:
        shares = ", ".join(f"{name} {loss.error:.0%}" for name, loss in swallowed.items())
        yield f"a merge into a base of these formats is off by much of delta W ({shares}): apply it beside such a base"


def _ratios(layers: Iterable[LayerCheck]) -> dict[str, float]:
    """Return |delta W| / |W| by layer, the largest first."""
    own = {layer.name: layer.ratio for layer in layers if layer.ratio is not None}
    return dict(sorted(own.items(), key=lambda item: -item[1]))

"""What each published base takes to train: parameters, weights, what training adds to them, the card that it fits.

``python -m tools.plan_table`` plans all published bases, or those that are named, and writes figures.json beside this
file and the table of docs/families.md. A base is planned by :func:`veneer.plan.rehearsal.rehearse_step`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from tools.publish import publish
from veneer.config.load import build_config
from veneer.config.schema import RunConfig
from veneer.engine.block_offload import ON_DEVICE
from veneer.engine.blocks import repeated_blocks
from veneer.engine.memory_levels import MEMORY_LEVELS, MemoryLevel
from veneer.engine.quantization import FORMATS
from veneer.engine.quantized import QuantizedLayer, packed_weights
from veneer.family.protocol import Family
from veneer.family.published import PUBLISHED, read_published
from veneer.plan.abstract import abstract_base
from veneer.plan.memory import WEIGHTS
from veneer.plan.rehearsal import RunInputs, rehearse_step
from veneer.plan.tracer import MemoryTracer
from veneer.silence import silence_notices

__all__ = [
    "CARDS",
    "CLIPS",
    "CLIP_FIGURES",
    "FIGURES",
    "Figures",
    "fit",
    "measure",
    "read_figures",
    "step_bytes",
    "table",
]

FIGURES = Path(__file__).parent / "figures.json"
CLIP_FIGURES = Path(__file__).parent / "clips.json"
CLIPS = {
    "ltx-video-2b": ("704x512", 161),
    "ltx2": ("768x512", 121),
    "ltx2.3": ("768x512", 121),
    "wan21-1.3b": ("832x480", 81),
    "wan21-14b": ("832x480", 81),
    "wan22-5b": ("1280x704", 121),
    "wan22-t2v-a14b": ("832x480", 81),
}
"""Size and frames of the clips that bases are used with, as their pipelines and authors' scripts paint them."""
PAGE = Path(__file__).parents[2] / "docs" / "families.md"
CARDS = (8, 12, 16, 24, 32, 48, 80)
"""Memory of usual cards in GB of 10^9 bytes, as their makers count."""
Clip: TypeAlias = tuple[str, int]
"""Size as ``data.resolution`` has it, and frames."""
_CONTEXT = 10**9
"""Bytes that CUDA's context, its libraries' workspaces and the display take of a card."""
_FORMS = ("bfloat16", "torchao_int8", "bnb_nf4")
_TITLES = {"bfloat16": "16 bits", "torchao_int8": "int8", "bnb_nf4": "nf4"}
_PRECISION = "bfloat16"
_RANK = 16
_SECOND = "transformer_2"  # of a base that has one for each range of noise, both of one shape


@dataclass(frozen=True)
class Figures:
    """What a base takes.

    Attributes:
        title: what people call it.
        resolution: side of the pictures, in pixels.
        parameters: of the denoiser.
        weights: bytes of the denoiser, by the form that its linear layers are held in.
        rest: bytes of what is in no block, by form.
        block: bytes of the largest block, by form.
        text: bytes of all text encoders, by form.
        added: bytes that a step of one picture, or clip, holds beside frozen weights, by memory level, as far as it was
            planned.
        clip: size and frames of the clip; empty of pictures.
    """

    title: str
    resolution: int
    parameters: int
    weights: Mapping[str, int]
    rest: Mapping[str, int]
    block: Mapping[str, int]
    text: Mapping[str, int]
    added: Mapping[str, int]
    clip: str = ""


def measure(name: str, levels: Iterable[MemoryLevel] = MEMORY_LEVELS, clip: Clip | None = None) -> Figures:
    """Plan a published base at some memory levels, on squares of its resolution or on clips."""
    family = abstract_base(_config(name, "lean"), MemoryTracer(torch.device("meta")))
    denoiser = family.networks[family.denoiser]
    blocks = list(repeated_blocks(denoiser).values())
    sizes = {form: [_bytes(block, form) for block in blocks] for form in _FORMS}
    weights = {form: _bytes(denoiser, form) for form in _FORMS}
    texts = _text_encoders(family)
    return Figures(
        title=read_published(name).title,
        resolution=family.resolution,
        parameters=sum(parameter.numel() for parameter in denoiser.parameters()),
        weights=weights,
        rest={form: weights[form] - sum(sizes[form]) for form in _FORMS},
        block={form: max(sizes[form]) for form in _FORMS},
        text={form: sum(_bytes(text, form) for text in texts) for form in _FORMS},
        added={level: step_bytes(name, level, clip) for level in levels},
        clip=f"{clip[0].replace('x', ' x ')}, {clip[1]} frames" if clip else "",
    )


def _config(name: str, memory: str, clip: Clip | None = None) -> RunConfig:
    base = {"path": name, "expert": "high_noise"} if _SECOND in read_published(name).parts else name
    values: dict[str, Any] = {"base": base, "data": {"sources": [{"path": "pictures"}]}}
    if clip is not None:
        values["data"] |= {"resolution": clip[0], "frames": clip[1]}
    train = {"batch_size": 1, "precision": _PRECISION, "memory": memory, "quantization": "bnb_nf4"}
    return build_config({**values, "train": train, "adapter": {"rank": _RANK}}, "plan_table")


def _text_encoders(family: Family) -> list[nn.Module]:
    pipeline: Any = family
    return [pipeline._parts[name] for name in family.text_encoders]


def _bytes(network: nn.Module, form: str) -> int:
    """Return the bytes of a network whose linear layers are held in a form, and all else in float32."""
    packed = set(packed_weights(network, form))
    shapes = [layer.weight_shape for layer in network.modules() if isinstance(layer, QuantizedLayer)]
    shapes += [parameter.shape for name, parameter in network.named_parameters() if name in packed]
    rest = [parameter.numel() for name, parameter in network.named_parameters() if name not in packed]
    matrices = [(shape[0], math.prod(shape[1:])) for shape in shapes]
    return sum(sum(FORMATS[form].part_sizes(matrix)) for matrix in matrices) + 4 * sum(rest)


def step_bytes(name: str, memory: str, clip: Clip | None = None) -> int:
    """Return the bytes that a step holds beside frozen weights."""
    config = _config(name, memory, clip)
    phase = rehearse_step(config, partial(abstract_base, config), RunInputs(torch.device("cpu"), for_gpu=True))
    return phase.tensors - sum(size for part, size in phase.parts.items() if part.startswith(WEIGHTS))


def fit(figures: Figures, card: int) -> str:
    """Return the mildest settings with which a step fits a card: more bits first, then less recomputation."""
    room = card * 10**9 - _CONTEXT
    if min(figures.text.values()) > room:
        return "no: text encoders"
    for form in _FORMS:
        for level in (level for level in MEMORY_LEVELS if level in figures.added):
            if figures.weights[form] + figures.added[level] <= room:
                return f"{_TITLES[form]}, {level}"
    for form in _FORMS:
        if figures.rest[form] + ON_DEVICE * figures.block[form] + figures.added["checkpoint"] <= room:
            return f"{_TITLES[form]}, checkpoint, blocks offloaded"
    return "no"


def table(figures: Mapping[str, Figures]) -> str:
    """Return the tables: what is held, and which settings fit which card."""
    head = ["base", "parameters", *(f"weights {_TITLES[form]}" for form in _FORMS), "text encoders", *MEMORY_LEVELS]
    rows = [head, ["---"] * len(head), *(_row(name, one) for name, one in figures.items())]
    cards = [["base", *(f"{card} GB" for card in CARDS)], ["---"] * (len(CARDS) + 1)]
    cards += [[f"`{name}`", *(fit(one, card) for card in CARDS)] for name, one in figures.items()]
    return "\n".join(_line(row) for row in rows) + "\n\n" + "\n".join(_line(row) for row in cards) + "\n"


def _row(name: str, figures: Figures) -> list[str]:
    weights = [_gigabytes(figures.weights[form]) for form in _FORMS]
    text = f"{_gigabytes(figures.text['bfloat16'])} ({_gigabytes(figures.text['bnb_nf4'])} in nf4)"
    added = [_gigabytes(figures.added[level]) if level in figures.added else "" for level in MEMORY_LEVELS]
    return [
        f"`{name}`, {figures.clip or f'{figures.resolution} px'}",
        f"{figures.parameters / 1e9:.2f} B",
        *weights,
        text,
        *added,
    ]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def read_figures(path: Path = FIGURES) -> dict[str, Figures]:
    """Return the figures of all bases that were planned."""
    stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {name: Figures(**values) for name, values in stored.items() if name in PUBLISHED}


def main() -> None:
    """Plan the bases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="*", help="names; default: all published")
    parser.add_argument("--levels", default=",".join(MEMORY_LEVELS), help="memory levels that are planned")
    parser.add_argument("--clips", action="store_true", help="plan clips in place of pictures")
    given = parser.parse_args()
    path = CLIP_FIGURES if given.clips else FIGURES
    figures = read_figures(path)
    for name in given.bases or list(CLIPS if given.clips else PUBLISHED):
        with silence_notices():
            found = measure(name, given.levels.split(","), CLIPS[name] if given.clips else None)
        before = figures[name].added if name in figures else {}
        figures[name] = replace(found, added={**before, **found.added})
        print(_line(_row(name, figures[name])), flush=True)
        figures = dict(sorted(figures.items()))
        path.write_text(json.dumps({n: asdict(one) for n, one in figures.items()}, indent=1) + "\n", "utf-8")
    publish(PAGE, table(read_figures()), "memory")
    publish(PAGE, table(read_figures(CLIP_FIGURES)), "memory-clips")


if __name__ == "__main__":
    main()

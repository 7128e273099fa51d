"""Bytes in memory and on disk, by part: what a plan says of them, and how it is written for a person."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from veneer.errors import UserError

__all__ = ["ENCODING", "LOADING", "STEP", "Memory", "Phase", "as_text", "bytes_of", "plain", "table"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b|b)?\s*", re.IGNORECASE)

LOADING, ENCODING, STEP = "loading", "encoding a picture", "training step"
"""Names of phases; the last is the one that a run spends its time in."""


@dataclass(frozen=True)
class Phase:
    """One thing that a run does, at the moment in which it holds most.

    Attributes:
        name: what it does.
        tensors: bytes of all tensors on the device then.
        parts: the same by what they are for, the largest first; they sum to ``tensors``.
        process: bytes of the whole process at its own fullest moment, with the libraries and the heap's holes; None on
            a GPU, where tensors are all there is.
    """

    name: str
    tensors: int
    parts: Mapping[str, int]
    process: int | None = None

    @property
    def peak(self) -> int:
        """Bytes that the device must have for it."""
        return self.tensors if self.process is None else self.process


@dataclass(frozen=True)
class Memory:
    """What a run holds on its device.

    Attributes:
        device: kind of it.
        phases: in the order in which they come.
        caches: bytes of latents and embeddings that stay, on the CPU whatever the device; None: the pictures are not
            known.
        before: bytes that the process holds before it loads the base, which are in every phase's; 0 on a GPU.
    """

    device: str
    phases: tuple[Phase, ...]
    caches: int | None
    before: int = 0

    @property
    def peak(self) -> int:
        """Bytes held at the fullest moment of the run."""
        return self.fullest.peak

    @property
    def fullest(self) -> Phase:
        """The phase with the fullest moment."""
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def step(self) -> Phase:
        """The optimiser step."""
        return next(phase for phase in self.phases if phase.name == STEP)

    def on_top_of(self, before: int) -> Memory:
        """The same in a process that holds so much before it begins; on a GPU that is another memory."""
        if self.device != "cpu":
            return self
        phases = [replace(phase, process=(phase.process or phase.tensors) + before) for phase in self.phases]
        return replace(self, phases=tuple(phases), before=self.before + before)

    def __str__(self) -> str:
        """The training step by part, then the other phases."""
        step, on_cpu = self.step, self.device == "cpu"
        rows = [(name, as_text(size)) for name, size in step.parts.items()]
        rows.append((f"all tensors of a {STEP}", as_text(step.tensors)))
        if step.process is not None:
            rows.append(("the process before: Python, libraries", as_text(self.before)))
            beyond = step.process - self.before - step.tensors
            what = "holes in its heap, kernels, objects" if beyond >= 0 else "less weights that are never read"
            rows.append((what, as_text(abs(beyond))))
        rows.append((f"peak of a {STEP}", as_text(step.peak)))
        others = [f"{phase.name} {as_text(phase.peak)}" for phase in self.phases if phase is not step]
        head = f"memory on {'CPU' if on_cpu else self.device}"
        return "\n".join([table([(head, "bytes"), *rows]), f"other peaks: {', '.join(others)}"])


def as_text(size: int) -> str:
    """Bytes in the decimal unit that makes a short number: ``3.44 GB``."""
    unit, factor = next(pair for pair in reversed(_UNITS.items()) if size >= pair[1] or pair[1] == 1)
    digits = 0 if factor == 1 else max(0, 3 - len(str(size // factor)))
    return f"{size / factor:,.{digits}f} {unit}"


def bytes_of(text: str, where: str) -> int:
    """Bytes of ``8GB`` (10^9 each) or ``8GiB`` (2^30 each); a bare number is bytes.

    Raises:
        UserError: it is neither.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is no size", where=where, remedy="write it as 8GB or 7.5GiB")
    number, unit = match.groups()
    return int(float(number) * {**_UNITS, **_BINARY}[(unit or "B").upper()])


def plain(value: Any) -> Any:
    """A dataclass as JSON has it: its fields, and the properties that sum them up."""
    if is_dataclass(value):
        whole = {field.name: getattr(value, field.name) for field in fields(value)}
        sums = {name: getattr(value, name) for name, of in vars(type(value)).items() if isinstance(of, property)}
        whole |= {name: each for name, each in sums.items() if not is_dataclass(each)}
        return {name: plain(each) for name, each in whole.items()}
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, tuple) else value


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = row
    return [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]

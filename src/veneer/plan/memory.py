"""The memory of a run by phase and by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import computed_field

from veneer.plan.text import format_bytes, format_table

__all__ = ["ENCODING", "LOADING", "STEP", "WEIGHTS", "Memory", "Phase"]

WEIGHTS = "weights: "
"""What the names of parts begin with that are weights."""
LOADING, ENCODING, STEP = "loading", "encoding a picture", "training step"
"""Names of phases; the last is the one that a run spends its time in."""


@dataclass(frozen=True)
class Phase:
    """One thing that a run does, at the moment at which it holds most.

    Attributes:
        name: what it does.
        tensors: bytes of all tensors on the device then.
        parts: the same bytes by what they are for, the largest first; they sum to ``tensors``.
        process: bytes of the whole process at its own fullest moment, libraries and heap fragmentation included; None
            on a GPU, where tensors are all there is.
    """

    name: str
    tensors: int
    parts: Mapping[str, int]
    process: int | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def peak(self) -> int:
        """Bytes that the device must have for it."""
        return self.tensors if self.process is None else self.process


@dataclass(frozen=True)
class Memory:
    """The memory of a run on its device.

    Attributes:
        device: the device's kind, as PyTorch calls it.
        phases: in the order in which they come.
        caches: bytes of cached latents and embeddings, which are on the CPU whatever the device; None: the pictures
            are not known.
        before: bytes that the process holds before it loads the base, which every phase includes; 0 on a GPU.
        blocks: number of the denoiser's repeated blocks.
        offloaded: bytes of CPU memory that the weights of offloaded blocks wait in.
    """

    device: str
    phases: tuple[Phase, ...]
    caches: int | None
    before: int = 0
    blocks: int = 0
    offloaded: int = 0

    @computed_field  # type: ignore[prop-decorator]
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
        """Return the memory of the same run in a process that holds ``before`` bytes already; on a GPU it is equal."""
        if self.device != "cpu":
            return self
        phases = [replace(phase, process=phase.peak + before) for phase in self.phases]
        return replace(self, phases=tuple(phases), before=self.before + before)

    def __str__(self) -> str:
        """Return a table of the training step by part, and a line of the other phases."""
        head = f"memory on {'CPU' if self.device == 'cpu' else self.device}"
        others = [f"{phase.name} {format_bytes(phase.peak)}" for phase in self.phases if phase is not self.step]
        table = format_table([(head, "bytes"), *self._step_rows()])
        waiting = f"\noffloaded blocks: {format_bytes(self.offloaded)} of CPU memory" if self.offloaded else ""
        return f"{table}\nother peaks: {', '.join(others)}{self._read_to_encode()}{waiting}"

    def _read_to_encode(self) -> str:
        """Return a line on weights that are read to encode texts and gone before a step; empty: there are none."""
        by_name = {phase.name: phase.parts for phase in self.phases}
        loaded, encoding = by_name.get(LOADING, {}), by_name.get(ENCODING, {})
        apart = {
            part.removeprefix(WEIGHTS): format_bytes(size)
            for part, size in encoding.items()
            if part.startswith(WEIGHTS) and size > 2 * max(loaded.get(part, 0), self.step.parts.get(part, 0))
        }
        told = ", ".join(f"{name} {size}" for name, size in apart.items())
        return f"\nread to encode texts, and gone before a step: {told}" if apart else ""

    def _step_rows(self) -> list[tuple[str, str]]:
        step = self.step
        rows = {**step.parts, f"all tensors of a {STEP}": step.tensors}
        if step.process is not None:
            overhead = step.process - self.before - step.tensors
            what = "heap fragmentation, kernels, objects" if overhead >= 0 else "minus weights that are never read"
            rows |= {"process before loading: Python, libraries": self.before, what: abs(overhead)}
        rows[f"peak of a {STEP}"] = step.peak
        return [(name, format_bytes(size)) for name, size in rows.items()]

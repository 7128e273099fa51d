"""Changes of the configuration that make a run fit into less memory, each with the memory that is planned for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from veneer.config.schema import RunConfig
from veneer.config.train_config import TrainConfig
from veneer.engine.block_offload import ON_DEVICE
from veneer.engine.quantization import FORMATS, NONE
from veneer.plan.memory import Memory
from veneer.plan.text import format_bytes

__all__ = ["Remedy", "find_remedies", "verdict"]

Changes = Mapping[str, Any]
Planner = Callable[[RunConfig], Memory]
_LEVELS: tuple[str, ...] = get_args(TrainConfig.model_fields["memory"].annotation)
"""Values of ``train.memory``, from the one that keeps most to the one that keeps least."""

_QUANTIZATIONS = (("bfloat16",), ("torchao_int8", "bnb_int8"), ("bnb_nf4",))
"""Values of ``train.quantization``, from the most to the fewest bits; among equals, the nearest to the base first."""


@dataclass(frozen=True)
class Remedy:
    """A change of the configuration, and the memory of the run with it.

    Attributes:
        changes: new values by key.
        peak: bytes at the fullest moment.
    """

    changes: Changes
    peak: int

    def __str__(self) -> str:
        """Return the change as it is typed, with its memory."""
        return f"{' '.join(_override(key, value) for key, value in self.changes.items())} ({format_bytes(self.peak)})"


_WEIGHTS = frozenset(("train.quantization", "train.offload_blocks"))
"""The keys that change how many bytes the weights take on the device."""


def _override(key: str, value: Any) -> str:
    return f"one prompt in {key}" if key == "sample.prompts" else f"{key}={value}"


def verdict(memory: Memory, free: int) -> str:
    """Return one line: the memory that is needed, and the memory that there is."""
    fits = "fits" if memory.peak <= free else "does not fit"
    return f"{fits}: {format_bytes(memory.peak)} while {memory.fullest.name}, and {format_bytes(free)} are free"


def find_remedies(config: RunConfig, planner: Planner, limit: int, blocks: int = 0, weights: int = 0) -> list[Remedy]:
    """Return the mildest form of each change that makes a run fit, or of several together if none does alone.

    Smaller batches are made up for by more forward passes, so a step sees the same pictures.

    Args:
        config: the run that does not fit.
        planner: returns the memory of a config.
        limit: bytes that it may take.
        blocks: the number of blocks that can be offloaded.
        weights: bytes of the weights that a step holds, which most changes leave as they are.

    Returns:
        An empty list if even all changes together do not help.
    """
    search = _Search(config, planner, limit)
    ladders = [ladder for ladder in _ladders(config, blocks) if ladder]
    promising = [ladder for ladder in ladders if weights <= limit or _WEIGHTS.intersection(ladder[-1])]
    alone = [remedy for ladder in promising if (remedy := search.mildest(ladder)) is not None]
    return alone or search.together(ladders)


def _ladders(config: RunConfig, blocks: int) -> Iterator[Sequence[Changes]]:
    """Yield the kinds of change, each from its mildest form to its strongest."""
    train, batch = config.train, config.train.batch_size
    total = batch * train.gradient_accumulation_steps
    smaller = [size for size in range(batch - 1, 0, -1) if total % size == 0]
    yield [{"train.batch_size": size, "train.gradient_accumulation_steps": total // size} for size in smaller]
    yield [{"train.memory": level} for level in _LEVELS[_LEVELS.index(train.memory) + 1 :]]
    yield [{"train.precision": "bfloat16"}] if train.precision == "float32" else []
    forms = _quantizations(train.precision) if train.quantization == NONE else ()
    yield [{"train.quantization": form} for form in forms]
    yield [{"train.offload_blocks": count} for count in _counts(config, blocks)]
    ranks = [config.adapter.rank >> halvings for halvings in range(1, config.adapter.rank.bit_length())]
    yield [{"adapter.rank": rank} for rank in ranks]
    yield [{"sample.prompts": ("a picture",)}] if len(config.sample.prompts) != 1 else []


def _counts(config: RunConfig, blocks: int) -> list[int]:
    """Return a quarter, half, three quarters and all of the blocks, where that is more than are offloaded now."""
    if config.adapter.method == "dora":  # reads all weights at once
        return []
    counts = [blocks * quarters // 4 for quarters in range(1, 5)]
    return [count for count in counts if count > max(ON_DEVICE, config.train.offload_blocks)]


def _quantizations(precision: str) -> Iterator[str]:
    """Yield a form of 16 bits, one of 8 and one of 4 whose libraries are installed."""
    for equals in ((precision,) if precision in FORMATS else _QUANTIZATIONS[0], *_QUANTIZATIONS[1:]):
        yield from [form for form in equals if FORMATS[form].is_installed][:1]


@dataclass(frozen=True)
class _Search:
    """A search for changes of a config with which the planned memory is below a limit."""

    config: RunConfig
    planner: Planner
    limit: int

    def mildest(self, ladder: Sequence[Changes]) -> Remedy | None:
        """Return the first rung that fits, found by bisection: each rung takes no more than the one before."""
        if (best := self._try(ladder[-1])).peak > self.limit:
            return None
        low, high = 0, len(ladder) - 1
        while low < high:
            middle = (low + high) // 2
            rung = self._try(ladder[middle])
            if rung.peak <= self.limit:
                best, high = rung, middle
            else:
                low = middle + 1
        return best

    def together(self, ladders: Sequence[Sequence[Changes]]) -> list[Remedy]:
        """Combine the strongest forms, as few of the first ones as fit: each takes no more than without it."""
        changes = [
            {key: value for ladder in ladders[: n + 1] for key, value in ladder[-1].items()}
            for n in range(len(ladders))
        ]
        remedy = self.mildest(changes)
        return [] if remedy is None else [remedy]

    def _try(self, changes: Changes) -> Remedy:
        changed = self.config
        for key, value in changes.items():
            changed = _with(changed, key.split("."), value)
        return Remedy(changes, self.planner(changed).peak)


def _with(section: Any, path: Sequence[str], value: Any) -> Any:
    """Return a copy of a config in which the key at ``path`` has another value."""
    assert isinstance(section, BaseModel)
    name, *rest = path
    inner = _with(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})

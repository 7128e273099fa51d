"""What would make a run fit into less memory, each change with the figure that a plan gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, get_args

from pydantic import BaseModel

from veneer.config.schema import RunConfig, TrainConfig
from veneer.engine.quantization import FORMS, NONE
from veneer.plan.memory import Memory, as_text

__all__ = ["Remedy", "remedies", "verdict"]

Changes = Mapping[str, Any]
Planner = Callable[[RunConfig], Memory]
_LEVELS: tuple[str, ...] = get_args(TrainConfig.model_fields["memory"].annotation)
"""Of ``train.memory``, from the most to the least that is kept."""

_FORMS = (("torchao_int8", "bnb_int8"), ("bnb_nf4",))
"""Of ``train.quantization``, from the most to the fewest bits; of those of as many, the nearest to the base first."""


@dataclass(frozen=True)
class Remedy:
    """A change of the configuration, and what the run would take then.

    Attributes:
        changes: new values by key.
        peak: bytes at the fullest moment.
    """

    changes: Changes
    peak: int

    def __str__(self) -> str:
        """As it is typed, with its figure."""
        return f"{' '.join(_typed(key, value) for key, value in self.changes.items())} ({as_text(self.peak)})"


def _typed(key: str, value: Any) -> str:
    return f"one prompt in {key}" if key == "sample.prompts" else f"{key}={value}"


def verdict(memory: Memory, free: int) -> str:
    """One line: what is needed, and what there is."""
    fits = "fits" if memory.peak <= free else "does not fit"
    return f"{fits}: {as_text(memory.peak)} while {memory.fullest.name}, and {as_text(free)} are free"


def remedies(config: RunConfig, planner: Planner, limit: int) -> list[Remedy]:
    """The mildest form of each change that makes a run fit; of several together if none does alone.

    Smaller batches are made up for by more forward passes, so a step sees the same pictures.

    Args:
        config: the run that does not fit.
        planner: gives the memory of another.
        limit: bytes that it may take.

    Returns:
        Nothing if even all changes together do not help.
    """
    ladders = [ladder for ladder in _ladders(config) if ladder]
    alone = [remedy for ladder in ladders if (remedy := _mildest(config, planner, limit, ladder)) is not None]
    return alone or _together(config, planner, limit, ladders)


def _ladders(config: RunConfig) -> Iterator[Sequence[Changes]]:
    """Ways to take less, each from the mildest form to the strongest."""
    train, batch = config.train, config.train.batch_size
    total = batch * train.gradient_accumulation_steps
    smaller = [size for size in range(batch - 1, 0, -1) if total % size == 0]
    yield [{"train.batch_size": size, "train.gradient_accumulation_steps": total // size} for size in smaller]
    yield [{"train.memory": level} for level in _LEVELS[_LEVELS.index(train.memory) + 1 :]]
    yield [{"train.precision": "bfloat16"}] if train.precision == "float32" else []
    yield [{"train.quantization": form} for form in _forms()] if train.quantization == NONE else []
    ranks = [config.adapter.rank >> halvings for halvings in range(1, config.adapter.rank.bit_length())]
    yield [{"adapter.rank": rank} for rank in ranks]
    yield [{"sample.prompts": ("a picture",)}] if len(config.sample.prompts) != 1 else []


def _forms() -> Iterator[str]:
    """Ways to hold the frozen weights, in 8 and in 4 bits, whose libraries are here."""
    for alike in _FORMS:
        yield from [form for form in alike if FORMS[form].is_installed][:1]


def _mildest(config: RunConfig, planner: Planner, limit: int, ladder: Sequence[Changes]) -> Remedy | None:
    """The first rung that fits, found by halves: each rung takes no more than the one before."""
    if (best := _tried(config, planner, ladder[-1])).peak > limit:
        return None
    low, high = 0, len(ladder) - 1
    while low < high:
        middle = (low + high) // 2
        rung = _tried(config, planner, ladder[middle])
        if rung.peak <= limit:
            best, high = rung, middle
        else:
            low = middle + 1
    return best


def _together(config: RunConfig, planner: Planner, limit: int, ladders: Sequence[Sequence[Changes]]) -> list[Remedy]:
    """The strongest forms, one after another until it fits."""
    changes: dict[str, Any] = {}
    for ladder in ladders:
        changes |= ladder[-1]
        remedy = _tried(config, planner, dict(changes))
        if remedy.peak <= limit:
            return [remedy]
    return []


def _tried(config: RunConfig, planner: Planner, changes: Changes) -> Remedy:
    changed = reduce(lambda whole, change: _with(whole, change[0].split("."), change[1]), changes.items(), config)
    return Remedy(changes, planner(changed).peak)


def _with(section: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of a config in which the key at ``path`` has another value."""
    assert isinstance(section, BaseModel)
    name, *rest = path
    inner = _with(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})

"""The runs that the doctor is judged by: which problem each has, and how it is made.

The doctor's limits were chosen on the runs whose names begin with ``fit-``. The others judge it: their training
pictures are another choice of the demo's, none of their held-out pictures is in a ``fit-`` run, and settings and seed
differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tools.doctor_cases.folders import HELD_OUT, HELD_OUT_FIT, Recipe, rotate_captions
from veneer.config.load import build_config
from veneer.config.override import set_key
from veneer.config.schema import RunConfig

__all__ = ["CASES", "FIT", "Case", "config_of", "planned_config"]

FIT = "fit-"

_TOO_HIGH = ("diverged", "rate_too_high")
"""One problem in two degrees."""


@dataclass(frozen=True)
class Case:
    """A run to make.

    Attributes:
        name: the run's name, and its record's.
        expected: names of findings; the first problem found must be one of them. Empty: the run is healthy.
        pictures: the folder to train on.
        settings: dotted keys of the configuration.
        execution: ``killed`` by SIGKILL in the middle, ``memory_limited`` by a limit on the process's memory.
    """

    name: str
    expected: tuple[str, ...]
    pictures: Recipe
    settings: Mapping[str, Any] = field(default_factory=dict)
    execution: Literal["complete", "killed", "memory_limited"] = "complete"

    @property
    def is_fitted(self) -> bool:
        """Whether the doctor's limits were chosen on this run, so that it cannot judge them."""
        return self.name.startswith(FIT)


def config_of(case: Case) -> dict[str, Any]:
    """Return a case's configuration as dotted keys and plain values; paths are relative to the working folder."""
    return {
        "base": "bundled",
        "seed": 1 if case.is_fitted else 3,
        "output.dir": f"runs/{case.name}",
        "data.sources": [{"path": f"pictures/{case.name}"}],
        "data.held_out": HELD_OUT_FIT if case.is_fitted else HELD_OUT,
        "adapter.rank": 4,
        "train.max_steps": 60 if case.is_fitted else 40,
        "train.batch_size": 8 if case.is_fitted else 4,
        "train.learning_rate": 2e-3,
        "sample.prompts": ["an alien emoji"],
        "sample.steps": 1,
        "validation.draws": 4,
        "validation.pictures": 32 if case.is_fitted else 12,
        **case.settings,
    }


def planned_config(case: Case) -> RunConfig:
    """Return a case's configuration, validated."""
    values: dict[str, Any] = {}
    for name, value in config_of(case).items():
        set_key(values, name, value, case.name)
    return build_config(values, case.name)


def _with_style_words(captions: Sequence[str]) -> Sequence[str]:
    return [f"{caption}, flat drawing with black outlines" for caption in captions]


def _with_trigger(captions: Sequence[str]) -> Sequence[str]:
    return [f"{caption}, openmoji style" for caption in captions]


def _all_equal(captions: Sequence[str]) -> Sequence[str]:
    return ["an emoji"] * len(captions)


def _without_trigger(captions: Sequence[str]) -> Sequence[str]:
    return [caption.replace("mikesch ", "") for caption in captions]


_SUBJECT = {
    "adapter.rank": 8,
    "data.held_out": 0.0,
    "train.batch_size": 4,
    "train.learning_rate": 1e-3,
    "sample.prompts": ["a mikesch cat face emoji"],
    "sample.steps": 10,
}
_PRIOR = {"prompt": "a cat face emoji", "count": 16}
_TEXT_ENCODER = {"adapter.text_encoders.text_encoder": {"rank": 4, "learning_rate": 2e-4}}

_BRIEF = {"train.batch_size": 2}
"""For runs whose pictures or settings are at fault, however long the training."""

_FITTED = (
    Case("fit-overfit", ("overfit",), Recipe(10, seed=1), {"adapter.rank": 8, "train.max_steps": 100}),
    Case("fit-underfit", ("underfit",), Recipe(60, seed=1), {"train.max_steps": 10}),
    Case(
        "fit-rate-low",
        ("rate_too_low",),
        Recipe(60, seed=1),
        {"train.max_steps": 80, "train.learning_rate": 1e-5},
    ),
    Case("fit-rate-high", _TOO_HIGH, Recipe(60, seed=1), {"train.max_steps": 60, "train.learning_rate": 0.1}),
    Case("fit-rate-wild", _TOO_HIGH, Recipe(60, seed=1), {"train.max_steps": 40, "train.learning_rate": 1.0}),
    Case("fit-captions", ("captions_wrong",), Recipe(60, seed=1, captions=rotate_captions), {"train.max_steps": 80}),
    Case(
        "fit-text-encoder",
        ("text_encoder_overcooked",),
        Recipe(60, seed=1),
        {"train.max_steps": 80, "adapter.text_encoders.text_encoder": {"rank": 4, "learning_rate": 0.02}},
    ),
    Case("fit-dead", ("dead_adapter",), Recipe(60, seed=1), {"train.max_steps": 20, "adapter.alpha": 1e-5}),
    Case(
        "fit-healthy-subject",
        (),
        Recipe(5, source="subject"),
        {**_SUBJECT, "train.max_steps": 60, "data.prior": _PRIOR},
    ),
    Case("fit-healthy-style", (), Recipe(90, seed=1), {"train.max_steps": 80}),
    Case("fit-healthy-few", (), Recipe(40, seed=1), {"adapter.rank": 8, "train.max_steps": 80}),
    Case("fit-healthy-text-encoder", (), Recipe(90, seed=1), {**_TEXT_ENCODER, "train.max_steps": 80}),
)

_FAULTY = (
    Case("overfit-eight", ("overfit",), Recipe(8), {"adapter.rank": 16, "train.max_steps": 300}),
    Case("overfit-room", ("overfit",), Recipe(12), {"adapter.rank": 32, "train.max_steps": 300}),
    Case("underfit-five-steps", ("underfit",), Recipe(160), {"train.max_steps": 5}),
    Case("underfit-few-showings", ("underfit",), Recipe(100), {"train.max_steps": 12, "train.batch_size": 2}),
    Case(
        "captions-slipped",
        ("captions_wrong",),
        Recipe(80, captions=rotate_captions),
        {"train.max_steps": 60, "train.batch_size": 8, "validation.pictures": 32},
    ),
    Case(
        "captions-slipped-all",
        ("captions_wrong",),
        Recipe(80, captions=rotate_captions),
        {"train.batch_size": 8, "validation.pictures": 32, "data.held_out": 0.25},
    ),
    Case("rate-wild", _TOO_HIGH, Recipe(100), {"train.learning_rate": 0.5}),
    Case("rate-high", _TOO_HIGH, Recipe(100), {"train.learning_rate": 0.05}),
    Case("rate-low", ("rate_too_low",), Recipe(100), {"train.learning_rate": 2e-6}),
    Case("dead-alpha", ("dead_adapter",), Recipe(100), {**_BRIEF, "adapter.alpha": 1e-6}),
    Case("nan-stop", ("nan",), Recipe(40), {"train.learning_rate": 1e12, "train.max_steps": 20}),
    Case(
        "nan-skip",
        ("nan",),
        Recipe(40),
        {"train.learning_rate": 1e12, "train.max_steps": 20, "train.on_nonfinite": "skip"},
    ),
    Case("out-of-memory", ("out_of_memory",), Recipe(160), {"train.batch_size": 160}, execution="memory_limited"),
    Case("killed", ("cut_off",), Recipe(40), {"train.max_steps": 60}, execution="killed"),
    Case(
        "text-encoder-burnt",
        ("text_encoder_overcooked",),
        Recipe(100),
        {"adapter.text_encoders.text_encoder": {"rank": 4, "learning_rate": 0.05}},
    ),
    Case("style-in-captions", ("captions_leak_style",), Recipe(100, captions=_with_style_words), _BRIEF),
    Case("one-caption", ("captions_alike",), Recipe(80, captions=_all_equal), _BRIEF),
    Case(
        "subject-without-name",
        ("trigger_missing",),
        Recipe(5, source="subject", captions=_without_trigger),
        {**_SUBJECT, **_BRIEF, "sample.steps": 1},
    ),
    Case(
        "trigger-not-called",
        ("trigger_unused",),
        Recipe(100),
        {**_BRIEF, "data.trigger": "openmoji", "sample.prompts": ["a turtle emoji"]},
    ),
    Case("duplicates", ("duplicated",), Recipe(20, copies=3), _BRIEF),
    Case(
        "held-out-copies",
        ("held_out_leaked", "duplicated"),
        Recipe(40, copies=1),
        {**_BRIEF, "data.held_out": 0.2},
    ),
    Case("small-pictures", ("blurred",), Recipe(100, side=24), _BRIEF),
    Case("broken-files", ("left_out",), Recipe(60, broken=40), _BRIEF),
    Case("two-pictures", ("few_pictures",), Recipe(2), _BRIEF),
    Case("warmup-long", ("warmup_too_long",), Recipe(100), {**_BRIEF, "train.warmup_steps": 38}),
    Case("decay-strong", ("decay_too_strong",), Recipe(100), {**_BRIEF, "train.optimizer.weight_decay": 50.0}),
    Case("dropout-high", ("dropout_too_high",), Recipe(100), {**_BRIEF, "adapter.dropout": 0.95}),
)

_HEALTHY = (
    Case("healthy-demo", (), Recipe(160)),
    Case(
        "healthy-cosine",
        (),
        Recipe(100),
        {"adapter.rank": 8, "train.lr_scheduler": "cosine", "train.warmup_steps": 10},
    ),
    Case("healthy-sixty", (), Recipe(60)),
    Case("healthy-rank-one", (), Recipe(160), {"adapter.rank": 1}),
    Case("healthy-rank-sixteen", (), Recipe(160), {"adapter.rank": 16, "adapter.dropout": 0.1}),
    Case("healthy-text-encoder", (), Recipe(120), {**_TEXT_ENCODER}),
    Case(
        "healthy-subject",
        (),
        Recipe(5, source="subject"),
        {**_SUBJECT, "train.batch_size": 2, "data.prior": _PRIOR},
    ),
    Case("healthy-min-snr", (), Recipe(120), {"objective.weighting": "min_snr"}),
    Case(
        "healthy-trigger",
        (),
        Recipe(100, captions=_with_trigger),
        {"data.trigger": "openmoji style", "sample.prompts": ["an alien emoji, openmoji style"]},
    ),
    Case("healthy-forty", (), Recipe(40), {"data.flip": True, "train.optimizer.weight_decay": 0.1}),
)

CASES: tuple[Case, ...] = (*_FITTED, *_FAULTY, *_HEALTHY)
"""All runs."""

"""The table of what each published base takes is the command's, and what it is made of is what a plan says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.plan_table.__main__ import CARDS, CLIP_FIGURES, CLIPS, PAGE, Figures, fit, read_figures, step_bytes, table
from tools.publish import published
from veneer.family.published import PUBLISHED

FIGURES, OF_CLIPS = read_figures(), read_figures(CLIP_FIGURES)
_FORMS = {"bfloat16": 16, "torchao_int8": 8, "bnb_nf4": 4}
ONE = Figures(
    title="One",
    resolution=1024,
    parameters=10 * 10**9,
    weights={form: bits * 10**10 // 8 for form, bits in _FORMS.items()},
    rest=dict.fromkeys(_FORMS, 10**9),
    block={form: bits * 10**8 // 8 for form, bits in _FORMS.items()},
    text={form: bits * 10**9 // 8 for form, bits in _FORMS.items()},
    added={"exact": 30 * 10**9, "lean": 10 * 10**9, "leaner": 6 * 10**9, "checkpoint": 2 * 10**9},
)


def test_the_table_is_written_from_the_figures() -> None:
    assert published(PAGE, "memory") == table(FIGURES), "run: python -m tools.plan_table"
    assert published(PAGE, "memory-clips") == table(OF_CLIPS), "run: python -m tools.plan_table --clips"


@pytest.mark.slow
def test_every_published_base_is_in_it() -> None:
    assert not set(PUBLISHED) - FIGURES.keys(), "run: python -m tools.plan_table with these names"


def test_every_base_of_clips_is_in_its_own_table_and_takes_more_than_for_pictures() -> None:
    assert OF_CLIPS.keys() == CLIPS.keys()
    for name, one in OF_CLIPS.items():
        assert one.weights == FIGURES[name].weights
        assert all(one.added[level] > FIGURES[name].added[level] for level in one.added)


def test_less_is_held_at_a_stronger_level_and_in_fewer_bits() -> None:
    for one in FIGURES.values():
        assert {"lean", "checkpoint"} <= one.added.keys()
        assert one.added["checkpoint"] < one.added["lean"]
        assert one.weights["bnb_nf4"] < one.weights["torchao_int8"]  # neither packs convolutions, 16 bits do
        assert 1.9 < one.weights["bfloat16"] / one.parameters < 3  # what is no linear layer stays in float32
        assert all(one.rest[form] + one.block[form] <= one.weights[form] for form in one.weights)


@pytest.mark.parametrize(
    ("card", "settings"),
    [
        (80, "16 bits, exact"),
        (32, "16 bits, lean"),
        (24, "16 bits, checkpoint"),
        (16, "int8, checkpoint"),
        (12, "nf4, leaner"),
        (8, "nf4, checkpoint"),
    ],
)
def test_the_mildest_settings_that_fit(card: int, settings: str) -> None:
    assert fit(ONE, card) == settings


def test_blocks_wait_in_cpu_memory_where_nothing_else_helps() -> None:
    heavy = replace(ONE, weights={form: 10 * size for form, size in ONE.weights.items()})
    assert fit(heavy, 12) == "16 bits, checkpoint, blocks offloaded"
    assert fit(replace(heavy, rest=dict.fromkeys(_FORMS, 10**11)), 12) == "no"
    assert fit(replace(ONE, text=dict.fromkeys(_FORMS, 10**11)), 80) == "no: text encoders"


def test_a_larger_card_needs_no_stronger_settings() -> None:
    for one in FIGURES.values():
        fits = [fit(one, card).startswith("no") for card in CARDS]
        assert fits == sorted(fits, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixart-sigma", "sana-600m", "flux2-klein-4b"])
def test_what_training_adds_is_planned_anew(name: str) -> None:
    assert step_bytes(name, "checkpoint") == FIGURES[name].added["checkpoint"], "run: python -m tools.plan_table"

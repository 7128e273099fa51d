from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veneer.data.tags import TagCaption, TagRules, split_tags, without_mark

WRITTEN = "a, b, c, d, e"
DRAWS = range(300)


def shown(tags: str, count: int = 300, seed: int = 0, **rules: Any) -> list[str]:
    around = {name: rules.pop(name) for name in ("before", "after", "trigger") if name in rules}
    caption = TagCaption(tags, tags, TagRules(**rules), **around)
    return [caption.shown(seed, draw_index, "id") for draw_index in range(count)]


def test_a_shuffled_caption_has_its_tags_in_every_order_alike() -> None:
    texts = shown("a, b, c", count=3000, shuffle=True)
    orders = {", ".join(order) for order in permutations("abc")}
    assert set(texts) == orders
    # 500 of each are expected, with a standard deviation of 20
    assert all(400 < texts.count(order) < 600 for order in orders)


def test_a_draw_shows_the_same_whatever_was_drawn_before_it() -> None:
    texts = shown(WRITTEN, shuffle=True, dropout=0.3)
    assert texts == shown(WRITTEN, shuffle=True, dropout=0.3)
    assert texts != shown(WRITTEN, shuffle=True, dropout=0.3, seed=1)
    assert shown(WRITTEN, count=5, shuffle=True, dropout=0.3) == texts[:5]


@given(st.integers(0, 6))
def test_the_first_tags_keep_their_places(keep: int) -> None:
    for text in shown(WRITTEN, count=20, shuffle=True, dropout=0.5, keep=keep):
        assert split_tags(text, ",")[:keep] == split_tags(WRITTEN, ",")[:keep]


def test_tags_drop_out_at_the_rate_that_is_asked_for_and_kept_ones_never() -> None:
    texts = shown(WRITTEN, dropout=0.25, keep=1)
    counts = {tag: sum(tag in split_tags(text, ",") for text in texts) for tag in "abcde"}
    assert counts["a"] == 300
    # 225 of 300, with a standard deviation of 7.5
    assert all(195 < counts[tag] < 255 for tag in "bcde")
    assert all(text == ", ".join(sorted(split_tags(text, ","))) for text in texts), "in their order"


def test_marks_of_kept_tags_count_more_than_a_number_as_in_kohyas_scripts() -> None:
    for text in shown("one, two ||| a, b, c ||| last", shuffle=True, keep=0):
        assert text.startswith("one, two, ") and text.endswith(", last")
    texts = set(shown("one ||| a, b", shuffle=True, keep=3))
    assert texts == {"one, a, b", "one, b, a"}


def test_the_trigger_keeps_its_place_wherever_it_stands() -> None:
    assert {split_tags(text, ",")[1] for text in shown("a, TOK, b, c", shuffle=True, dropout=0.0, trigger="tok")} == {
        "TOK"
    }
    assert all("TOK cat" in text for text in shown("a, TOK cat, b", dropout=0.9, trigger="TOK"))
    assert all(text.endswith(", TOK") for text in shown("a, b", shuffle=True, after=", TOK", trigger="TOK"))


def test_what_is_left_of_a_caption_whose_tags_all_drop_out_has_no_stray_comma() -> None:
    texts = shown("a, b", dropout=0.9, before="a photo of ", after=", TOK")
    assert "a photo of, TOK" in texts and set(texts) > {"a photo of a, TOK"}
    assert "TOK" in shown("a", dropout=0.9, after=", TOK")
    assert "TOK" in shown("a", dropout=0.9, before="TOK, ")


def test_tags_are_parted_and_joined_by_the_separator() -> None:
    assert set(shown("a, x; b", shuffle=True, separator=";")) == {"a, x; b", "b; a, x"}
    assert set(shown("a_x b", shuffle=True, separator=" ")) == {"a_x b", "b a_x"}


def test_a_few_orders_are_all_that_are_shown() -> None:
    caption = TagCaption(WRITTEN, WRITTEN, TagRules(shuffle=True, orders=4))
    drawn = {caption.shown(0, draw_index, "id") for draw_index in DRAWS}
    assert drawn == set(caption.all_shown(0, "id") or ()) and 1 < len(drawn) <= 4
    assert caption.all_shown(0, "id") != caption.all_shown(0, "other")
    assert TagCaption(WRITTEN, WRITTEN, TagRules(shuffle=True)).all_shown(0, "id") is None


@pytest.mark.parametrize(
    ("tags", "rules"),
    [
        ("a, b", {"shuffle": True}),
        ("a, b", {"dropout": 0.5}),
        ("a, b, c", {"shuffle": True, "dropout": 0.5}),
        (WRITTEN, {"shuffle": True, "keep": 2}),
        (WRITTEN, {"shuffle": True, "orders": 3}),
        (WRITTEN, {"shuffle": True, "dropout": 0.2}),
    ],
)
def test_no_more_texts_are_shown_than_are_counted(tags: str, rules: dict[str, Any]) -> None:
    caption = TagCaption(tags, tags, TagRules(**rules))
    drawn = {caption.shown(0, draw_index, "id") for draw_index in DRAWS}
    assert len(drawn) <= caption.count(len(DRAWS)) <= len(DRAWS)


def test_a_caption_without_its_marks_is_its_tags() -> None:
    assert without_mark("one, two ||| a, b", TagRules()) == "one, two, a, b"
    assert without_mark("one, ||| a ||| ", TagRules()) == "one, a"
    assert without_mark("a,b", TagRules()) == "a,b"

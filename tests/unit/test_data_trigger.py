from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veneer.data.trigger import with_trigger


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("a cat", "tok", "a cat, tok"),
        ("a tok cat", "tok", "a tok cat"),
        ("A TOK cat", "tok", "A TOK cat"),
        ("a catalogue", "cat", "a catalogue, cat"),
        ("in openmoji style.", "openmoji style", "in openmoji style."),
        ("a c++ cat", "c++", "a c++ cat"),
    ],
)
def test_the_trigger_is_in_every_caption_once(caption: str, trigger: str, expected: str) -> None:
    assert with_trigger([caption], trigger) == (expected,)
    assert with_trigger([expected], trigger) == (expected,)
    assert with_trigger([caption], None) == (caption,)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("1girl, solo,", "1girl, solo, tok"),
        ("1girl, solo, ", "1girl, solo, tok"),
        ("1girl, solo ,, ,", "1girl, solo, tok"),
        ("a cat.", "a cat, tok"),
        ("a cat;", "a cat, tok"),
        ("猫、犬、", "猫、犬, tok"),
        ("猫。", "猫, tok"),
        ("猫\uff0c　", "猫, tok"),
        ("a cat!", "a cat!, tok"),
        ("(a cat:1.2)", "(a cat:1.2), tok"),
        (", a cat", ", a cat, tok"),
        ("", "tok"),
        (" , ", "tok"),
    ],
)
def test_the_trigger_is_one_more_tag_with_no_empty_one_before_it(caption: str, expected: str) -> None:
    assert with_trigger([caption], "tok") == (expected,)


@given(st.text("ab ,.;、。\uff0c\uff1b\uff0e\u3000\n", max_size=12))
def test_whatever_a_caption_ends_in_one_comma_parts_it_from_the_trigger(caption: str) -> None:
    (joined,) = with_trigger([caption], "tok")
    assert joined == "tok" or re.search(r"[ab], tok$", joined)
    kept = joined.removesuffix("tok").removesuffix(", ")
    assert caption.startswith(kept) and with_trigger([joined], "tok") == (joined,)


def test_a_trigger_in_the_other_form_of_unicode_is_there() -> None:
    assert with_trigger(["a cafe\u0301 cat"], "caf\u00e9") == ("a cafe\u0301 cat",)

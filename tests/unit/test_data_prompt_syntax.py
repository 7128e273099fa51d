from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veneer.data.prompt_syntax import MAX_ALTERNATIVES, find_syntax, may_have_syntax, strip_syntax, unescaped

PROMPTS = {
    "a (red:1.2) cat": ("a red cat",),
    "a (red, long hair:0.8) cat": ("a red, long hair cat",),
    "((masterpiece)), cat": ("masterpiece, cat",),
    "(((masterpiece))), cat": ("masterpiece, cat",),
    "{{best}} cat": ("best cat",),
    "[[dull]] cat": ("dull cat",),
    "(a (red:1.3) cat:1.1)": ("a red cat",),
    "cat, <lora:style:0.8>": ("cat",),
    "cat, <lora:style:0.8>, red": ("cat, red",),
    "<LYCO:x:1> cat": ("cat",),
    "a {red|blue} cat": ("a red cat", "a blue cat"),
    "a [red|blue] cat": ("a red cat", "a blue cat"),
    "a [red:blue:0.5] cat": ("a red cat", "a blue cat"),
    "a [red:0.5] cat": ("a red cat", "a cat"),
    "cat BREAK dog": ("cat, dog",),
    "cat, BREAK, dog": ("cat, dog",),
    "a cat AND a dog": ("a cat, a dog",),
    r"(fate \(series\):1.2)": (r"fate (series)",),
}
"""Captions that are prompts, and what is left of them."""
TEXTS = [
    "a cat (1girl)",
    "fate (series), saber",
    r"fate \(series\), saber",
    "a clock (10:30)",
    "a screen (16:9)",
    "a verse (psalm 23:4)",
    "a verse (Matthew:12)",
    "a smile :)",
    "a frown :(, >:(, :o, <3, ^_^, >_<, {}, @_@",
    "the band AC/DC AND FRIENDS",
    "STOP AND GO",
    "breaking and entering",
    "Order: 1.5 kg",
    "snake_case and __init",
    "(see the note)",
]
"""Captions that are texts, though they have brackets, colons or capitals."""


@pytest.mark.parametrize("caption", PROMPTS)
def test_syntax_of_prompts_is_found_and_stripped(caption: str) -> None:
    assert any(one.is_sure for one in find_syntax(caption))
    left = strip_syntax(caption)
    assert left == PROMPTS[caption]
    assert not any(one.is_sure for text in left for one in find_syntax(text))


@pytest.mark.parametrize("caption", TEXTS)
def test_ordinary_texts_are_left_alone(caption: str) -> None:
    assert find_syntax(caption) == ()
    assert strip_syntax(caption) == (unescaped(caption),)


def test_single_square_brackets_are_told_and_may_be_text() -> None:
    (found,) = find_syntax("a [dull] cat")
    assert found.text == "[dull]" and not found.is_sure
    assert strip_syntax("a [dull] cat") == ("a dull cat",)


def test_wildcards_cannot_be_stripped() -> None:
    assert [one.text for one in find_syntax("a __colour__ cat")] == ["__colour__"]
    assert strip_syntax("a __colour__ cat") == ("a __colour__ cat",)


@pytest.mark.parametrize("caption", ["a cat, long hair", "fate (series), saber", "a bright, branded x"])
def test_most_captions_are_told_at_a_glance_to_have_none(caption: str) -> None:
    """Of a million captions few are looked at closely."""
    assert not may_have_syntax(caption)


def test_escaped_brackets_are_brackets() -> None:
    assert unescaped(r"fate \(series\) \[x\] a\b") == r"fate (series) [x] a\b"


def test_alternatives_are_not_multiplied_without_end() -> None:
    assert len(strip_syntax("{a|b|c} " * 9)) <= MAX_ALTERNATIVES


@pytest.mark.parametrize("piece", ["(", "((", "[", "{", "{|", "|", " ", "( ", "(a ", "{{a", "<lora:", "a:1.", r"\("])
def test_captions_that_no_one_wrote_by_hand_are_looked_at_in_a_moment(piece: str) -> None:
    """Where time grew with the square of a caption's length, this would take minutes."""
    for caption in (piece * 10_000, f"({piece * 10_000}", f"{{|{piece * 10_000}"):
        find_syntax(caption)
        strip_syntax(caption)


@given(st.text(alphabet="ab ()[]{}<>:|.,1\\_", max_size=30))
def test_whatever_is_stripped_is_stripped_to_the_end(caption: str) -> None:
    assert may_have_syntax(caption) or not find_syntax(caption)
    for text in strip_syntax(caption):
        assert isinstance(text, str)

from __future__ import annotations

import pytest

from veneer.data.captions import with_trigger


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

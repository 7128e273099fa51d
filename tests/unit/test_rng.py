"""Numbers of many texts at once are those of each alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from veneer.rng import key, keys, uniform, uniforms

PARTS = st.one_of(st.integers(), st.text(max_size=5))


@settings(max_examples=30, deadline=None)
@given(before=st.lists(PARTS, max_size=3), texts=st.lists(st.text(), max_size=8), after=st.lists(PARTS, max_size=2))
def test_keys_of_many_texts_are_those_of_each(
    before: list[int | str], texts: list[str], after: list[int | str]
) -> None:
    assert keys(tuple(before), texts, *after).tolist() == [key(*before, text, *after) for text in texts]
    assert uniforms(tuple(before), texts, *after).tolist() == [uniform(*before, text, *after) for text in texts]

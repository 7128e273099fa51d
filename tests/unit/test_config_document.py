from __future__ import annotations

import re
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.errors import raises_code
from veneer.config.document import read_yaml, write_yaml
from veneer.config.load import build_config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-.5", -0.5),
        ("+3", 3),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("'4'", "4"),
        ("!!str 4", "4"),
        (".inf", float("inf")),
        ("[a, 1e3]", ["a", 1000.0]),
    ],
)
def test_plain_text_is_read_by_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    found = read_yaml(text, "here").values
    assert found == value
    assert type(found) is type(value)


def test_each_key_knows_its_line() -> None:
    lines = read_yaml("a: 1\nb:\n  # why\n  c: [1,\n    2]\n", "here").lines
    assert (lines[("a",)], lines[("b",)], lines[("b", "c")], lines[("b", "c", 1)]) == (1, 2, 4, 5)


@pytest.mark.parametrize(
    ("text", "message", "code"),
    [
        ("a:\n  b: 1\n  b: 2", "here:3: a.b is given twice, first in line 2", "duplicate_key"),
        ("a: [", "here:1: not YAML", "not_yaml"),
        ("a: 1\n\tb: 2", "here:2: not YAML", "not_yaml"),
        ("a: 1\n---\nb: 2", "here:2: not YAML", "not_yaml"),
        ("a: b: c", "here:1: not YAML: mapping values are not allowed here", "not_yaml"),
        ("a: &x [*x]", "here:1: is nested too deeply or too long", "too_large"),
        ("a: &x {b: *x}", "here:1: is nested too deeply or too long", "too_large"),
        ("[" * 1200, "here:1: is nested too deeply or too long", "too_large"),
        ("a: !!python/object/apply:os.getcwd []\n", "no meaning here", "unknown_tag"),
        ("a: !!python/name:os.getcwd\n", "no meaning here", "unknown_tag"),
        ("a: !!int four", "here:1: 'four' is no int", "not_yaml"),
        ("a: !!bool maybe", "here:1: 'maybe' is no bool", "not_yaml"),
        ("? [a]\n: 1", "here:1: a key should be a name", "key_not_a_name"),
        ("a: \0", "here: not YAML", "not_yaml"),
        ("<<: {a: 1}\n<<: {a: 2}", "here:2: << is given twice", "duplicate_key"),
    ],
)
def test_what_is_no_yaml_for_a_config(text: str, message: str, code: str) -> None:
    with raises_code(f"config.{code}") as caught:
        read_yaml(text, "here")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_short_text_cannot_fill_the_memory() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    with raises_code("config.too_large"):
        read_yaml(laughs, "here")


def test_a_long_text_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of too many characters is not parsed at all, and one of too many values no further than those."""
    made: list[None] = []
    compose = yaml.composer.Composer.compose_node

    def count(*arguments: Any) -> Any:
        made.append(None)
        return compose(*arguments)

    monkeypatch.setattr(yaml.composer.Composer, "compose_node", count)
    with raises_code("config.too_large") as caught:
        read_yaml("key: a long text\n" * 200_000, "here")
    assert str(caught.value) == "here: is 3,400,000 characters long, but a config has at most 1,048,576"
    assert made == []
    with raises_code("config.too_large") as caught:
        read_yaml("- a\n" * 200_000, "here")
    assert str(caught.value) == "here: is 200,000 lines long, but a config has at most 20,000"
    assert made == []
    with raises_code("config.too_large") as caught:
        read_yaml("- [" + "\n  a, b, c, d, e, f, g, h, i, j," * 15_000 + "]", "here")
    assert str(caught.value) == "here:2001: is nested too deeply or too long for a config"
    assert len(made) == 20_000
    made.clear()
    with raises_code("config.too_large"):
        read_yaml("[" * 1_000_000, "here")
    assert len(made) == 20


LONG = {
    "keys": "".join(f"k{n}: 1\n" for n in range(9_000)),
    "keys of a section": "train:\n" + "".join(f"  k{n}: 1\n" for n in range(9_000)),
    "elements": "data:\n  sources:\n" + "    - {x: 1}\n" * 4_500,
}


@pytest.mark.parametrize("name", LONG)
def test_many_faults_are_told_as_soon_as_few(name: str) -> None:
    """In one line of a readable length, and not in the square of their number: 9,000 once took a minute."""
    began = time.process_time()
    with raises_code("config.unknown_key") as caught:
        build_config(read_yaml(LONG[name], "here").values, "here")
    assert time.process_time() - began < 8, "a slow machine's; it takes one"
    assert len(str(caught.value)) < 1_000
    assert re.search(r" and 8,98[01] more\)", str(caught.value))


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
looks_like = st.sampled_from(
    ["1e-4", "no", "0o17", "010", "12:30", "~", "", "null", "#ff0000", "a: b", "- a", "\udc80"]
)
values = st.recursive(
    plain | looks_like,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | looks_like, inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert read_yaml(write_yaml(value), "here").values == value


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), plain | looks_like, max_size=4))
def test_readers_of_yaml_1_1_read_the_same(value: Any) -> None:
    assert yaml.safe_load(write_yaml(value)) == value

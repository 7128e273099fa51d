"""Sizes and tables as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.errors import raises_code
from veneer.plan.text import format_bytes, format_table, parse_bytes


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (12_345, "12.3 KB"),
        (123_456_789, "123 MB"),
        (3_438_083_856, "3.44 GB"),
        (1_400_000_000_000, "1.40 TB"),
        (2_500_000_000_000_000, "2,500 TB"),
    ],
)
def test_bytes_are_written_short(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("8 gb", 8 * 10**9), ("7.5GiB", 15 * 2**29), ("512MiB", 2**29), ("1000", 1000), ("3kb", 3000)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "GB", "8 apples", "-1GB", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with raises_code("plan.not_a_size") as caught:
        parse_bytes(text, "--memory")
    assert str(caught.value) == f"--memory: {text!r} is no size; write it as 8GB or 7.5GiB"


@given(st.integers(0, 10**16))
def test_what_is_written_is_read_as_nearly_the_same(size: int) -> None:
    assert parse_bytes(format_bytes(size).replace(",", ""), "here") == pytest.approx(size, rel=5e-3)


def test_a_table_is_aligned() -> None:
    assert (
        format_table([("name", "n"), ("a", "1,000"), ("longer", "2")]) == "name        n\na       1,000\nlonger      2"
    )

"""What tests ask of a mistake: its code, not its prose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from veneer.errors import UserError

__all__ = ["raises_code"]


@contextmanager
def raises_code(code: str, words: str = "", *, match: str | None = None) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Check that the block raises ``UserError`` with this code; yields what was caught.

    Args:
        code: of the mistake.
        words: a part of its message, in the one test of a message that reads its words.
        match: or a pattern of it.
    """
    with pytest.raises(UserError, match=match) as caught:
        yield caught
    assert caught.value.code == code, f"{caught.value.code!r}, not {code!r}: {caught.value}"
    assert words in str(caught.value)

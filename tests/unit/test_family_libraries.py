"""Libraries are called without their bars, and their failures are one line."""

from __future__ import annotations

import pytest

from tests.errors import raises_code
from veneer.family.libraries import one_line_errors, silence_libraries


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_afterwards_as_they_were(shown: bool) -> None:
    """Each library keeps its own setting: transformers switches the hub's together with its own."""
    from diffusers.utils import logging as diffusers
    from huggingface_hub import utils as hub
    from transformers.utils import logging as transformers

    def state() -> tuple[bool, ...]:
        bars = diffusers.is_progress_bar_enabled(), transformers.is_progress_bar_enabled()
        return (*bars, not hub.are_progress_bars_disabled())

    before = state()
    try:
        for library, wanted in ((transformers, shown), (diffusers, not shown)):
            library.enable_progress_bar() if wanted else library.disable_progress_bar()
        hub.disable_progress_bars() if shown else hub.enable_progress_bars()
        chosen = state()
        with silence_libraries():
            assert state() == (False, False, False)
        assert state() == chosen == (not shown, shown, not shown)
    finally:
        for library, wanted in ((transformers, before[1]), (diffusers, before[0])):
            library.enable_progress_bar() if wanted else library.disable_progress_bar()
        hub.enable_progress_bars() if before[2] else hub.disable_progress_bars()


def test_an_error_without_text_is_named_by_its_class() -> None:
    with raises_code("base.unreadable") as caught, one_line_errors("base", "fetch it"):
        raise AssertionError
    assert str(caught.value) == "base: cannot be loaded (AssertionError: ); fetch it"


def test_an_error_of_many_lines_is_its_first() -> None:
    with raises_code("base.unreadable") as caught, one_line_errors("base", "fetch it"):
        raise OSError("no file\n  in the folder")
    assert str(caught.value) == "base: cannot be loaded (no file); fetch it"

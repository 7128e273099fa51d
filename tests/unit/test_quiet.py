"""Libraries tell nothing at their import, and as much as before afterwards."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from veneer.family.silence import silence_libraries
from veneer.silence import silence_notices


def test_notices_are_withheld_and_errors_are_not(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("some.library")
    with silence_notices():
        logger.warning("a notice")
        logger.error("an error")
    logger.warning("afterwards")
    assert caplog.messages == ["an error", "afterwards"]


def test_what_was_disabled_before_stays_so() -> None:
    logging.disable(logging.ERROR)
    try:
        with silence_notices():
            assert logging.root.manager.disable == logging.ERROR
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_afterwards_as_they_were(shown: bool) -> None:
    """Each library's own: transformers switches the hub's with its own."""
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
        told = state()
        with silence_libraries():
            assert state() == (False, False, False)
        assert state() == told == (not shown, shown, not shown)
    finally:
        for library, wanted in ((transformers, before[1]), (diffusers, before[0])):
            library.enable_progress_bar() if wanted else library.disable_progress_bar()
        hub.enable_progress_bars() if before[2] else hub.disable_progress_bars()


def test_the_public_names_come_in_silence() -> None:
    code = "import veneer; veneer.run_training; veneer.prepare; veneer.evaluate_adapter"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""

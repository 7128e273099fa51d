"""Libraries log no notices while they are imported, and as much as before afterwards."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

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


@pytest.mark.slow
def test_the_public_names_come_in_silence() -> None:
    code = "import veneer; veneer.run_training; veneer.prepare; veneer.evaluate_adapter"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""

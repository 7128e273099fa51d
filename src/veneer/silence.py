"""Import libraries without their notices, which are about what is not used here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silence_notices"]


@contextmanager
def silence_notices() -> Iterator[None]:
    """Let loggers log nothing below an error within the block; restore their levels afterwards.

    At its import transformers, for one, logs which of its classes need torchvision, and torchao which of its kernels
    this machine lacks.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)

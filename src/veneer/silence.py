"""Imports of libraries without their notices, which are about what is not used here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silence_notices"]


@contextmanager
def silence_notices() -> Iterator[None]:
    """Within it loggers tell nothing but errors; afterwards they are as they were.

    transformers, for one, tells at its import which of its classes miss torchvision, and torchao which of its kernels
    this machine has not.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)

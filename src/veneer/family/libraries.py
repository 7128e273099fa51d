"""Call diffusers and transformers without their progress bars and notices, and with their failures in one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from veneer.errors import UserError

__all__ = ["in_one_line", "one_line_errors", "silence_libraries"]


_SILENT = logging.CRITICAL + 1


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Let the libraries log nothing, warn of nothing and draw no bars within the block, and restore their settings.

    What keeps them from going on they raise, so that nothing is lost.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    loggers: tuple[Any, ...] = (diffusers_logging, transformers_logging, hub_logging)
    before = [library.get_verbosity() for library in loggers]
    had_bars = [library.is_progress_bar_enabled() for library in loggers[:2]]
    hub_was_disabled = are_progress_bars_disabled()
    for library in loggers:
        library.set_verbosity(_SILENT)
    for library in loggers[:2]:
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, verbosity in zip(loggers, before, strict=True):
            library.set_verbosity(verbosity)
        for library, had in zip(loggers[:2], had_bars, strict=True):
            if had:
                library.enable_progress_bar()
        # transformers switches the hub's bars together with its own
        if are_progress_bars_disabled() != hub_was_disabled:
            (disable_progress_bars if hub_was_disabled else enable_progress_bars)()


@contextmanager
def one_line_errors(source: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a base into one line.

    A base's many files can be wrong in endless ways, and each reader fails in a way of its own.

    Args:
        source: the base, for the message.
        remedy: what to do about it.

    Raises:
        UserError: the block raised something; one that does not say where it was found is of the source.
    """
    try:
        yield
    except UserError as fault:
        if fault.where is not None:
            raise
        raise UserError(fault.what, code=fault.code, where=source, remedy=fault.remedy) from fault
    except Exception as error:
        what = f"cannot be loaded ({in_one_line(error)})"
        raise UserError(what, code="base.unreadable", where=source, remedy=remedy) from error


def in_one_line(error: Exception) -> str:
    """Return the first line of what an error says, with its class where the text alone says little."""
    reason = next(iter(str(error).strip().splitlines()), "")
    is_sentence = isinstance(error, OSError | ValueError | RuntimeError)
    return reason if is_sentence else f"{type(error).__name__}: {reason}"

"""Call diffusers and transformers without their progress bars and notices, and with their failures in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from veneer.errors import UserError

__all__ = ["one_line_errors", "silence_libraries"]


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Let the libraries log nothing but errors and draw no bars within the block; restore their settings afterwards."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    hub_was_disabled = are_progress_bars_disabled()
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, had_bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if had_bars:
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
        UserError: the block raised something.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        if not isinstance(error, OSError | ValueError | RuntimeError):
            reason = f"{type(error).__name__}: {reason}"  # the text alone says little, such as a missing key
        raise UserError(f"cannot be loaded ({reason})", code="base.unreadable", where=source, remedy=remedy) from error

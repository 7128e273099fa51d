"""diffusers and transformers without their bars and notices, which are about what is not used here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["silence_libraries"]


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Within it the libraries tell nothing but errors; afterwards they are as they were."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    hub_has_none = are_progress_bars_disabled()
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, has_bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if has_bars:
                library.enable_progress_bar()
        # transformers switches the hub's with its own
        if are_progress_bars_disabled() != hub_has_none:
            (disable_progress_bars if hub_has_none else enable_progress_bars)()

"""Text from elsewhere made fit to be shown: what would steer a terminal is shown, and not done.

Names of files, captions, metadata and other programs' messages may hold anything. Printed as they are, ``ESC [ 2 J``
clears the screen, ``ESC ] 0 ;`` renames its window, and U+202E turns the rest of a line around.
"""

from __future__ import annotations

import re

__all__ = ["in_one_line", "printable"]

# C0 but tab and line feed, DEL, C1, bidirectional overrides and isolates, line and paragraph separators, halves of
# surrogate pairs (as Python reads bytes of a name that are no UTF-8), and the mark of a byte order
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: str) -> str:
    r"""Return a text with what is no visible character written as its code: ``\x1b``, ``\u202e``.

    Tabs and line feeds stay. Of a JSON text, in which C0 is escaped already, the result is JSON of the same value.
    """
    return _HIDDEN.sub(lambda match: _code(match[0]), text.replace("\r\n", "\n"))


def in_one_line(text: str) -> str:
    r"""Return a text as :func:`printable` does, with its line feeds as ``\n`` and its tabs as ``\t``."""
    return printable(text.replace("\n", r"\n").replace("\t", r"\t"))


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x20 else f"\\u{number:04x}"

"""``python -m tools.build_base``: makes the bundled base, or a better one; see ``command``.

Nothing is imported here, since every process that draws imports this module.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Build a base as the command line says."""
    from tools.build_base.command import main as build

    build()


if __name__ == "__main__":
    main()

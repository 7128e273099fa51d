"""What all sections of a config have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """Hold keys and their values: frozen, of the very types that are written, and no others."""

    # strict: "4" is not 4, true is not 1 and 4.5 is not a count, while 1 may stand for 1.0
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __hash__(self) -> int:
        """Return a hash of all values; those that are mappings have none of their own."""
        return hash(self.model_dump_json())

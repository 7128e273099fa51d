"""Whether a base takes as many references, pictures that a text is to be applied to, as it is given."""

from __future__ import annotations

from veneer.errors import UserError
from veneer.family.protocol import Family

__all__ = ["check_references"]


def check_references(family: Family, count: int, where: object) -> None:
    """Refuse another number of references than a base takes.

    Args:
        family: the base.
        count: of the references beside each text.
        where: the place to name in the message.

    Raises:
        UserError: it takes fewer, or needs some.
    """
    counts = family.reference_counts
    if count in counts:
        return
    base, most = f"a {family.name} base", counts.stop - 1
    if not most:
        what = f"{base} paints from text alone and takes no references"
        remedy = (
            "leave them out, or use a base that edits; of a file that does, whose weights do not tell it, name the "
            "diffusers folder or hub id as base.path and the file in base.components"
        )
    elif count > most:
        what, remedy = f"{base} takes {most} references with a text at most, not {count}", "leave some out"
    else:
        what = f"{base} edits pictures and takes {counts.start} references with a text at least, not {count}"
        remedy = "name them: data.sources.0.references=FOLDER, sample.references=[FILE] or --reference FILE"
    raise UserError(what, code="family.references", where=where, remedy=remedy)

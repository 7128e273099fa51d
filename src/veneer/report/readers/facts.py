"""Facts about where a run's adapter, base and data are from, with their hashes."""

from __future__ import annotations

from collections.abc import Iterator

from veneer.report.content import Fact
from veneer.report.readers.folder import RunFolder

__all__ = ["read_facts"]


def read_facts(run: RunFolder) -> Iterator[Fact]:
    """Yield the facts of a run's folder."""
    if run.evaluation is not None:
        yield Fact("evaluated adapter", run.evaluation.adapter)
        yield Fact("base", run.evaluation.base)
    elif run.config is not None:
        yield Fact("base", run.config.base)
    if run.adapter is None:
        return
    yield Fact("adapter file, SHA-256", run.adapter.sha256)
    yield Fact("format", run.adapter.format)
    for name, value in sorted(run.adapter.metadata.items()):
        if name.startswith("veneer."):
            yield Fact(name, value)

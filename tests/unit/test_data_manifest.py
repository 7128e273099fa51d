from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from veneer.data.manifest import Manifest, Sample, content_id


def test_a_fingerprint_is_of_what_training_sees() -> None:
    sample = Sample(content_id(b"a"), Path("a.png"), ("a cat",), 8, 8, 1)
    other = replace(sample, id=content_id(b"b"))
    fingerprint = Manifest((sample, other)).fingerprint()
    assert Manifest((other, replace(sample, path=Path("c.png")))).fingerprint() == fingerprint
    changed = [replace(sample, captions=("a dog",)), replace(sample, repeats=2), replace(sample, id=content_id(b"c"))]
    assert len({fingerprint, *(Manifest((one, other)).fingerprint() for one in changed)}) == 4

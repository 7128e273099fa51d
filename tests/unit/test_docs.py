"""What the documents say is what the code does."""

from __future__ import annotations

from tools.reference import __main__ as reference
from veneer.config.keys import known_keys


def test_the_configuration_page_is_current() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "run: python -m tools.reference"


def test_every_key_is_explained() -> None:
    rows = [row.split(" | ") for row in reference.page().splitlines() if row.startswith("| `")]
    explained = {row[0].strip("| `").replace("[]", "") for row in rows if row[3].strip(" |")}
    sections = {key for key in known_keys() if any(other.startswith(f"{key}.") for other in known_keys())}
    assert set(known_keys()) - sections <= explained

"""Published architectures: planned by name, and not trained without their weights."""

from __future__ import annotations

import pytest

from veneer.errors import UserError
from veneer.family.loading import load_base


@pytest.mark.parametrize("base", ["sd21", "sdxl", "flux-dev"])
def test_what_has_no_weights_is_not_loaded(base: str) -> None:
    with pytest.raises(UserError, match="can only be planned"):
        load_base(base)

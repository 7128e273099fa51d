"""The judge of likeness: it knows a thing in another style, and only what it was given real drawings of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tools.demo_style import likeness

FEATURES, THINGS = 24, [f"thing-{number}" for number in range(60)]
Drawn = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Things that differ in eight numbers, in sets that differ far more in the other sixteen."""
    random = torch.Generator().manual_seed(0)
    things = {name: torch.randn(2, 8, generator=random) for name in THINGS}
    sets = {}
    for style in ("noto", "twemoji", "openmoji"):
        shift = 10 * torch.randn(FEATURES, generator=random)
        noise = {name: 3 * torch.randn(2, FEATURES - 8, generator=random) for name in THINGS}
        sets[style] = {name: shift + torch.cat([thing, noise[name]], dim=1) for name, thing in things.items()}
    return sets


def test_it_finds_things_of_which_it_saw_no_drawing(drawn: Drawn) -> None:
    seen, unseen = THINGS[:40], THINGS[40:]
    noto = torch.stack([drawn["noto"][name][0] for name in unseen])
    openmoji = torch.stack([drawn["openmoji"][name] for name in unseen], dim=1)
    fitted = likeness.fit(drawn, seen, ridge=0.1, directions=8)
    assert likeness.found(fitted.places(noto, openmoji)) >= 0.9
    assert likeness.found(likeness.places_by_angle(noto, openmoji)) <= 0.6
    assert likeness.found(fitted.places(noto.roll(1, 0), openmoji)) <= 0.5


def test_places_count_what_is_nearer_either_way_round() -> None:
    made = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    real = torch.tensor([[[0.0, 1.0], [5.0, 1.0]], [[0.5, 1.0], [0.0, 3.0]]])  # the second drawing only fits mirrored
    assert likeness.places_by_angle(made, real).tolist() == [1, 0]


def test_what_is_saved_is_what_is_loaded(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("likeness") / "it.safetensors"
    fitted = likeness.fit(drawn, THINGS, ridge=1.0, directions=4)
    likeness.save(fitted, path)
    loaded = likeness.load(path)
    assert torch.equal(loaded.directions_FD, fitted.directions_FD) and torch.equal(loaded.mean_F, fitted.mean_F)

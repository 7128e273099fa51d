"""Pictures of the class that the base painted are taken for the class that they were painted of, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.errors import raises_code
from tests.running import quick_config
from veneer.config.load import resolve
from veneer.config.schema import RunConfig
from veneer.family.protocol import Family
from veneer.run import prior
from veneer.run.events import PriorSamplingStarted
from veneer.run.prior import NOTE, sample_prior
from veneer.train.events import Warned


def config_of(base: Path, pictures: Path, output: Path, family: Family, prompt: str = "a shape") -> RunConfig:
    return resolve(quick_config(base, pictures, output, data={"prior": {"prompt": prompt, "count": 2}}), family)


def painted(config: RunConfig, family: Family) -> int:
    """How many pictures the base was asked to paint."""
    events: list[object] = []
    sample_prior(config, family, events.append)
    return sum(event.count for event in events if isinstance(event, PriorSamplingStarted))


def test_pictures_painted_of_another_prompt_or_by_another_base_are_refused(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie in the run's folder still when it is overwritten with another class, and would pass for this one's."""
    config = config_of(tiny_base, tiny_pictures, tmp_path, family)
    assert [painted(config, family) for _ in range(2)] == [2, 0]
    other = config_of(tiny_base, tiny_pictures, tmp_path, family, prompt="a dog")
    with raises_code("data.other_prior") as caught:
        sample_prior(other, family)
    assert "painted of 'a shape', and data.prior.prompt is 'a dog'" in str(caught.value)
    with monkeypatch.context() as patch, raises_code("data.other_prior"):
        patch.setattr(prior, "fingerprint", lambda base: "another")
        sample_prior(config, family)
    for path in (tmp_path / "prior").glob("*.png"):
        path.unlink()
    assert painted(other, family) == 2


def test_pictures_of_the_users_own_serve_any_prompt(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    """A folder without a note, or with a file of somebody else's under its name, says nothing of its pictures."""
    config = config_of(tiny_base, tiny_pictures, tmp_path, family)
    assert painted(config, family) == 2
    for text in ("", "[]", '{"pictures": [1]}', json.dumps({"pictures": "prior-00000.png"})):
        (tmp_path / "prior" / NOTE).write_text(text, "utf-8")
        assert painted(config_of(tiny_base, tiny_pictures, tmp_path, family, prompt="a dog"), family) == 0
    (tmp_path / "prior" / NOTE).unlink()
    assert painted(config_of(tiny_base, tiny_pictures, tmp_path, family, prompt="a dog"), family) == 0


def test_pictures_of_the_class_that_cannot_be_used_are_named(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_base, tiny_pictures, tmp_path, family)
    (tmp_path / "prior").mkdir()
    for name in ("black_cross.png", "blue_circle.png"):
        (tmp_path / "prior" / name).write_bytes((tiny_pictures / name).read_bytes())
    (tmp_path / "prior" / "broken.png").touch()
    events: list[object] = []
    sample_prior(config, family, events.append)
    assert events == [
        Warned("data.prior_left_out", "pictures of the class are left out: broken.png: empty file (0 bytes)")
    ]

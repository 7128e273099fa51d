"""Runs of bases of clips: what they paint and what they learn from, killed and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.errors import raises_code
from tests.families import FamilyCase, family_cases
from tests.families.wan import write_tiny_wan
from tests.running import hashes, killed, quick_config, record_events, without_rehearsals
from veneer.config.base_name import BaseName
from veneer.config.schema import RunConfig
from veneer.family.registry import family_class
from veneer.family.wan import Wan
from veneer.report.build import build_report
from veneer.run.folder import GALLERY, SAMPLES, SHEET
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.sample.files import read_note, read_pictures
from veneer.sample.gallery import gallery_files, read_picture_note
from veneer.train.events import StepDone
from veneer.verbs.sample import SampleOptions, sample_adapter

CASES = {name: case for name, case in family_cases().items() if case.frames}
PROMPTS = ["a red cross", "a blue one"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[FamilyCase]:
    case = CASES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family_class(case.pipeline), "trained_side", 8)
        without_rehearsals(patch)
        yield case


@pytest.fixture(scope="module")
def base(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.write(tmp_path_factory.mktemp("base") / "tiny")


def config_of(base: Path, pictures: Path, output: Path, **sections: Any) -> RunConfig:
    train = {"max_steps": 3, "learning_rate": 0.05, **sections.pop("train", {})}
    data = {"held_out": 0.25, **sections.pop("data", {})}
    return quick_config(base, pictures, output, train=train, data=data, **sections)


def test_a_run_paints_clips(case: FamilyCase, base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    frames = case.frames[0]
    sample: dict[str, Any] = {"frames": frames, "every": 2, "prompts": PROMPTS, "steps": 2, "guidance": 1.0}
    one, two = (config_of(base, tiny_pictures, tmp_path / name, sample=sample) for name in ("one", "two"))
    run_training(one)
    killed(two, StepDone, 2)
    record_events(two, Resume())
    folder = one.output.dir
    assert hashes(folder) == hashes(two.output.dir)
    for step in (0, 2):
        place = folder / SAMPLES / f"step-{step:09d}.png"
        with Image.open(place.with_suffix(".webp")) as moving:
            assert getattr(moving, "n_frames") == frames  # noqa: B009
        assert (
            place.with_suffix(".webp").read_bytes()
            == (two.output.dir / SAMPLES / place.name).with_suffix(".webp").read_bytes()
        )
        rows = read_pictures(place)
        assert rows is not None and [len(row) for row in rows] == [frames] * 2
    note = read_note(folder / SHEET)
    assert note is not None and note["labels"][:2] == ["base, frame 1", f"base, frame {frames // 2 + 1}"]
    assert [path.suffix for path in gallery_files(folder / GALLERY)] == [".webp"] * 2
    report = build_report(folder)
    assert report.before_after is not None and len(report.before_after.columns) == 6  # three frames of each
    assert report.samples is not None and [len(row) for row in report.samples.pictures] == [2, 2]
    options = SampleOptions(steps=2, frames=frames)
    (painted,) = sample_adapter(folder, PROMPTS[:1], tmp_path / "painted", options=options)
    made = read_picture_note(painted)
    assert painted.suffix == ".webp" and made is not None and made.prompt == PROMPTS[0]


@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
def test_either_of_two_transformers_goes_on_to_the_same_bits(
    expert: str, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures, painted by both, too; the other expert's checkpoint is not gone on from."""
    monkeypatch.setattr(Wan, "trained_side", 8)
    without_rehearsals(monkeypatch)
    base = write_tiny_wan(tmp_path / "wan", boundary=0.8)
    sections: dict[str, Any] = {"sample": {"frames": 3, "prompts": PROMPTS[:1], "steps": 3, "every": 2}}
    sections["validation"] = {"every": 1}
    plain = [config_of(base, tiny_pictures, tmp_path / name, **sections) for name in ("one", "two")]
    one, two = (run.model_copy(update={"base": BaseName(str(base), expert=expert)}) for run in plain)
    run_training(one)
    killed(two, StepDone, 2)
    other = {"high_noise": "low_noise", "low_noise": "high_noise"}[expert]
    with raises_code("resume.run_changed"):
        record_events(two.model_copy(update={"base": BaseName(str(base), expert=other)}), Resume())
    record_events(two, Resume())
    assert hashes(one.output.dir) == hashes(two.output.dir)
    names = ("step-000000000.webp", "step-000000002.webp")
    first, second = ([(run.output.dir / SAMPLES / name).read_bytes() for name in names] for run in (one, two))
    assert first == second and first[0] != first[1]

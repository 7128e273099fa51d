"""Runs of bases of clips: what they paint and what they learn from, killed and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from tests.errors import raises_code
from tests.families import FamilyCase, family_cases
from tests.families.wan import write_tiny_wan
from tests.running import hashes, killed, quick_config, record_events, without_rehearsals
from veneer.config.base_name import BaseName
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.evaluate.heldout import score_adapter
from veneer.evaluate.results import read_evaluation
from veneer.family.registry import family_class, load_family
from veneer.family.wan import Wan
from veneer.plan.assessment import assess_config
from veneer.plan.memory import STEP
from veneer.plan.plan import Plan
from veneer.report.build import build_report
from veneer.run.folder import GALLERY, SAMPLES, SHEET
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.sample.clip import write_clip
from veneer.sample.files import read_note, read_pictures
from veneer.sample.gallery import gallery_files, read_picture_note
from veneer.train.events import StepDone
from veneer.verbs.sample import SampleOptions, sample_adapter
from veneer.weights.file import load

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
        assert rows is not None and [len(row) for row in rows] == [min(frames, 6)] * 2
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


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 4 to 16 frames in which a square moves, at two rates, and two pictures, each with a caption."""
    folder = tmp_path_factory.mktemp("clips") / "own"
    for number, frames in enumerate((4, 9, 15, 9, 9, 12, 16, 9, 9, 12)):
        place = folder.with_name("held") if number > 7 else folder
        place.mkdir(exist_ok=True)
        clip = [moving_square(number, shift) for shift in range(frames)]
        write_clip(clip, place / f"{number}.webp", 16.0 if number % 2 else 25.0)
        (place / f"{number}.txt").write_text(f"a square of colour {number} that moves", "utf-8")
    for number in (10, 11):
        moving_square(number, 0).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a square that stands", "utf-8")
    return folder


def data_of(case: FamilyCase, clips: Path) -> dict[str, Any]:
    return {"frames": list(case.frames), "held_out": str(clips.with_name("held"))}


def moving_square(number: int, place: int) -> Image.Image:
    picture = Image.new("RGB", (72, 72), (20 * number, 90, 200 - 15 * number))
    picture.paste((255, 20 * number, 30), (4 * place, 4 * number, 4 * place + 20, 4 * number + 20))
    return picture


def test_clips_are_learned_from_and_a_killed_run_goes_on_to_the_same_bits(
    case: FamilyCase, base: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of several lengths and pictures in one run, each in batches of its own; scores on the way are on clips."""
    lengths: set[int] = set()
    predict = family_class(case.pipeline).predict  # type: ignore[attr-defined]

    def noted(family: Any, noisy: Tensor, *arguments: Any) -> Tensor:
        lengths.add(noisy.shape[2])
        answer: Tensor = predict(family, noisy, *arguments)
        return answer

    monkeypatch.setattr(family_class(case.pipeline), "predict", noted)
    sections: dict[str, Any] = {"data": data_of(case, clips), "validation": {"every": 2, "draws": 2}}
    sections |= {"train": {"max_steps": 10, "ema_decay": 0.9}, "sample": {"prompts": PROMPTS[:1], "steps": 2}}
    one, two = (config_of(base, clips, tmp_path / name, **dict(sections)) for name in ("one", "two"))
    run_training(one)
    assert lengths == {1, *((count - 1) // 2 + 1 for count in case.frames)}
    killed(two, StepDone, 5)
    record_events(two, Resume())
    assert hashes(one.output.dir) == hashes(two.output.dir)
    evaluation, other = (read_evaluation(run.output.dir) for run in (one, two))
    assert evaluation is not None and evaluation.held_out is not None and evaluation == other
    family = load_family(str(base))
    weights = load(one.output.dir, family.networks).weights
    score = score_adapter(one, family, survey(one.data), weights)
    assert score.mean == pytest.approx(evaluation.held_out.mean, rel=1e-3, abs=1e-6) and score.mean != 0


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"frame_extraction": "random", "flip": True}, "train": {"gradient_accumulation_steps": 2}},
        {"data": {"prior": {"prompt": "a square", "count": 2}}, "train": {"memory": "checkpoint"}},
        {"train": {"memory": "lean", "precision": "bfloat16", "quantization": "torchao_int8"}},
    ],
    ids=["random", "prior", "int8"],
)
def test_other_settings_on_clips_resume_to_the_same_bits(
    case: FamilyCase, base: Path, clips: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    changed = {**sections, "data": {**data_of(case, clips), **sections.get("data", {})}, "sample": {"steps": 2}}
    one, two = (config_of(base, clips, tmp_path / name, **dict(changed)) for name in ("one", "two"))
    run_training(one)
    killed(two, StepDone, 2)
    record_events(two, Resume())
    assert hashes(one.output.dir) == hashes(two.output.dir)


def test_the_memory_of_a_run_on_clips_is_planned_by_its_largest_bucket(
    case: FamilyCase, base: Path, clips: Path, tmp_path: Path
) -> None:
    def planned(frames: list[int]) -> Plan:
        config = config_of(base, clips, tmp_path / "run", data={"frames": frames}, sample={"steps": 2})
        return assess_config(config, count_pictures=True, limit=None).plan

    few, many = planned([case.frames[1]]), planned(list(case.frames))
    assert few.memory is not None and many.memory is not None
    assert step_of(many) > step_of(few)


def step_of(plan: Plan) -> int:
    assert plan.memory is not None
    return next(phase.tensors for phase in plan.memory.phases if phase.name == STEP)


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

"""Sample sheets while training: the base first, the same seeds each time, and one strip of them all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.plans import changed
from tests.running import killed, logged, quick_config, record_events, use_base
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.run import sampling
from veneer.run.events import SamplesSaved
from veneer.run.folder import SAMPLES, TIMELAPSE, sheets_in
from veneer.run.resume import Resume
from veneer.run.sampling import SampleWriter
from veneer.run.session import run_training
from veneer.sample import files
from veneer.sample.comparison import SamplePrompts, SampleSettings, paint
from veneer.sample.sheet import table_of
from veneer.train.events import EncodingProgress, StepDone, Warned

PROMPTS = ["a red cross", "a blue circle"]


@pytest.fixture
def config(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    use_base(monkeypatch, family)
    sections: dict[str, Any] = {
        "train": {"checkpoint_every": 2, "learning_rate": 0.1},
        "sample": {"every": 2, "prompts": PROMPTS, "steps": 2},
    }
    return quick_config(tiny_base, tiny_pictures, tmp_path / "run", **sections)


def strip(config: RunConfig) -> bytes:
    return (config.output.dir / SAMPLES / TIMELAPSE).read_bytes()


def columns(config: RunConfig) -> list[Image.Image]:
    """The strip's columns, without headings and labels, as sheets."""
    with Image.open(config.output.dir / SAMPLES / TIMELAPSE) as page:
        count, top = (page.width - 128 - 8) // 136, page.height - (8 + 2 * 136)
        lefts = [128 + 8 + 136 * place for place in range(count)]
        return [page.crop((left, top + 8, left + 128, page.height)) for left in lefts]


def pictures(config: RunConfig, step: int) -> list[Image.Image]:
    with Image.open(sheets_in(config.output.dir)[step]) as page:
        return [row[0] for row in table_of(page.convert("RGB"), [], PROMPTS)]


def test_sheets_at_the_chosen_steps_and_the_base_before_them(config: RunConfig, family: Family) -> None:
    events = record_events(config)
    kinds = [type(event).__name__ for event in events if not isinstance(event, (EncodingProgress, Warned))]
    assert kinds[:6] == ["Surveyed", "Planned", "TrainingStarted", "SampleDue", "SamplesSaved", "StepDone"]
    painted = [event for event in events if isinstance(event, SamplesSaved)]
    assert [event.step for event in painted] == [0, 2, 4, 6] == list(sheets_in(config.output.dir))
    assert [event["step"] for event in logged(config.output.dir) if event["event"] == "SamplesSaved"] == [0, 2, 4, 6]
    base = [
        picture.resize((128, 128), Image.Resampling.LANCZOS)
        for (picture,) in paint(family, PROMPTS, SampleSettings.of(config))
    ]
    for found, expected in zip(pictures(config, 0), base, strict=True):
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert pictures(config, 2)[0].tobytes() != pictures(config, 0)[0].tobytes()


@pytest.mark.slow
def test_the_strip_holds_every_sheet_in_order(config: RunConfig) -> None:
    run_training(config)
    found = columns(config)
    assert len(found) == 4
    for column, step in zip(found, (0, 2, 4, 6), strict=True):
        first, second = pictures(config, step)
        assert column.crop((0, 0, 128, 128)).tobytes() == first.tobytes()
        assert column.crop((0, 136, 128, 264)).tobytes() == second.tobytes()


@pytest.mark.slow
def test_the_strip_is_brought_up_to_date_with_each_sheet(config: RunConfig) -> None:
    counts = []

    def count(event: object) -> None:
        if isinstance(event, SamplesSaved):
            assert event.timelapse == config.output.dir / SAMPLES / TIMELAPSE
            counts.append(len(columns(config)))

    run_training(config, callback=count)
    assert counts == [1, 2, 3, 4]


def test_no_sheet_is_read_twice_for_the_strip(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def read_pictures(path: Path) -> list[list[Image.Image]] | None:
        read.append(path)
        return files.read_pictures(path)

    monkeypatch.setattr(sampling, "read_pictures", read_pictures)
    run_training(config)
    assert read == list(sheets_in(config.output.dir).values())
    assert len(columns(config)) == 4


def test_many_steps_make_no_endless_strip(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_COLUMNS", 3)
    run_training(changed(config, "sample", every=1))
    assert len(sheets_in(config.output.dir)) == 7
    found = [column.crop((0, 0, 128, 128)).tobytes() for column in columns(config)]
    assert found == [pictures(config, step)[0].tobytes() for step in (0, 3, 6)]


@pytest.mark.slow
def test_a_resumed_run_has_its_strip_at_once_and_ends_with_the_same(config: RunConfig, tmp_path: Path) -> None:
    whole = config.in_folder(tmp_path / "whole")
    run_training(whole)
    late = changed(config, "train", checkpoint_every=3)
    killed(late, StepDone, 5)  # after the sheet of step 4, while the last checkpoint is of step 3
    (config.output.dir / SAMPLES / TIMELAPSE).unlink()
    seen = []

    def look(event: object) -> None:
        if isinstance(event, StepDone) and not seen:
            seen.append((list(sheets_in(config.output.dir)), len(columns(config))))

    run_training(late, resume=Resume(), callback=look)
    assert seen == [([0, 2], 2)]
    assert strip(late) == strip(whole)
    assert {step: path.read_bytes() for step, path in sheets_in(late.output.dir).items()} == {
        step: path.read_bytes() for step, path in sheets_in(whole.output.dir).items()
    }


def test_after_other_prompts_the_strip_begins_anew(config: RunConfig) -> None:
    killed(config, StepDone, 5)
    other = changed(config, "sample", prompts=("a green square", "a black cross"))
    run_training(other, resume=Resume())
    assert list(sheets_in(config.output.dir)) == [0, 2, 4, 6]
    assert len(columns(config)) == 1


def test_what_is_no_sheet_or_a_damaged_one_is_left_out(config: RunConfig) -> None:
    killed(config, StepDone, 5)
    sheets = sheets_in(config.output.dir)
    sheets[0].write_bytes(sheets[0].read_bytes()[:-2000])
    Image.new("RGB", (8, 8)).save(sheets[2])
    (config.output.dir / SAMPLES / "step-x.png").touch()
    (config.output.dir / SAMPLES / "step-1.png").write_bytes(b"")
    run_training(config, resume=Resume())
    assert len(columns(config)) == 2  # of steps 4 and 6


def test_a_full_disk_costs_a_sheet_and_not_the_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.write_picture

    def fill(picture: Any, path: Path, *note: Any) -> Path:
        if path.name == "step-000000004.png":
            raise UserError(f"cannot be written: {os.strerror(errno.ENOSPC)}", code="files.cannot_write", where=path)
        return write(picture, path, *note)

    monkeypatch.setattr(files, "write_picture", fill)
    events = record_events(config)
    (warning,) = [event for event in events if isinstance(event, Warned)]
    assert warning.code == "sample.not_written"
    assert warning.text.startswith("no samples of step 4: ") and "No space left" in warning.text
    assert [event.step for event in events if isinstance(event, SamplesSaved)] == [0, 2, 6]


def test_no_samples_no_strip(config: RunConfig) -> None:
    events = record_events(changed(config, "sample", every=0))
    assert not [event for event in events if isinstance(event, SamplesSaved)]
    assert not (config.output.dir / SAMPLES).exists()


@pytest.mark.parametrize(("side", "cell"), [(16, 128), (64, 128), (200, 200), (512, 256)])
def test_a_large_bases_pictures_are_larger_on_the_sheet(
    side: int, cell: int, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = [[Image.new("RGB", (side, side), colour)] for colour in ("red", "blue")]
    monkeypatch.setattr(sampling, "paint", lambda *_: painted)
    family: Any = a_base_of(side)
    sample_writer = SampleWriter(
        family, SamplePrompts(tuple(PROMPTS)), SampleSettings.of(config), config.output.dir, lambda event: None
    )
    sample_writer.write(0)
    with Image.open(sheets_in(config.output.dir)[0]) as page:
        assert page.width == 2 * cell + 2 * max(4, cell // 16)
    assert columns(config)[0].getpixel((64, 64)) == (255, 0, 0)


def a_base_of(side: int) -> Any:
    class Sized:
        resolution = side

    return Sized()

"""The record of a split: a later run over a folder that grew keeps it, and what was trained on is never held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.load import build_config
from veneer.config.source_config import SourceConfig
from veneer.data.holdout import keep_sides
from veneer.data.preflight import Dataset, survey
from veneer.data.split_record import SPLIT, SplitRecord, read_split, write_split
from veneer.verbs.provenance import survey_run, without_training_pictures


def paint(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number:03d}.png")
    return folder


def looked_over(folder: Path, **settings: object) -> Dataset:
    values = {"sources": (SourceConfig(path=folder),), "trigger": "tok", "held_out": 0.1, **settings}
    return survey(DataConfig.model_validate(values))


def names(dataset: Dataset) -> tuple[set[str], set[str]]:
    train, held = ({sample.path.name for sample in side.samples} for side in (dataset.train, dataset.held_out))
    return train, held


def trained_on(folder: Path, run: Path) -> Dataset:
    """Pictures as a run has them, and its record."""
    dataset = looked_over(folder)
    run.mkdir()
    write_split(dataset.split, run)
    return dataset


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = trained_on(paint(tmp_path / "p", range(12)), tmp_path / "run").split
    read = read_split(tmp_path / "run")
    assert read == record and len(record) == 12 and len(record.trained) == 11
    assert read is not None and (read.thumbs == record.thumbs).all() and list(read.held_out) == list(record.held_out)


@pytest.mark.parametrize("content", ["{}", "no json", '{"id": "a", "held_out": true, "thumb": "AAAA"}', "[1]"])
def test_what_is_no_record_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / SPLIT).write_text(content, "utf-8")
    with raises_code("data.bad_split"):
        read_split(tmp_path)


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    assert read_split(tmp_path) is None
    with raises_code("data.no_split"):
        looked_over(paint(tmp_path / "p", range(3)), split_from=tmp_path)


def test_a_split_is_kept_or_a_folder_is_held_out(tmp_path: Path) -> None:
    data = {"sources": [{"path": "p"}], "held_out": "held", "split_from": "run"}
    with raises_code("config.invalid_value"):
        build_config({"base": "bundled", "data": data}, "test")


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_pictures_that_are_added_move_none(first: int, tmp_path: Path) -> None:
    """By rank, in 37 of 100 sets of 20, five more would."""
    train, held = names(trained_on(paint(tmp_path / "p", range(first, first + 20)), tmp_path / "run"))
    paint(tmp_path / "p", range(first + 20, first + 25))
    now_train, now_held = names(looked_over(tmp_path / "p", split_from=tmp_path / "run"))
    assert train <= now_train and held <= now_held and len(now_train | now_held) == 25


def test_what_looks_like_a_picture_that_was_trained_on_is_trained_on(tmp_path: Path) -> None:
    """All are saved anew, so that each has another hash; one that was held out stays so."""
    before = trained_on(paint(tmp_path / "p", range(20)), tmp_path / "run")
    for path in sorted((tmp_path / "p").iterdir()):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    again = looked_over(tmp_path / "p", split_from=tmp_path / "run")
    assert [{Path(name).stem for name in side} for side in names(again)] == [
        {Path(name).stem for name in side} for side in names(before)
    ]


def test_new_pictures_are_held_out_by_their_own_hash() -> None:
    ids = [f"{number:032x}" for number in range(2000)]
    sides = {id: number % 10 == 0 for number, id in enumerate(ids[:100])}
    held = keep_sides(ids, 0.1, {id: id for id in ids}, sides)
    assert {id for id in ids[:100] if sides[id]} == held & set(ids[:100])
    assert len(held) == pytest.approx(10 + 190, abs=4 * (1900 * 0.1 * 0.9) ** 0.5)
    assert keep_sides(ids[:1000], 0.1, {id: id for id in ids}, sides) == held & set(ids[:1000])


def test_a_run_that_went_on_has_trained_on_what_it_had_trained_on_before() -> None:
    thumbs = np.arange(3 * 192, dtype=np.uint8).reshape(3, 8, 8, 3)
    before = SplitRecord({"a": False, "b": True, "c": False}, thumbs)
    after = before.extended_by(SplitRecord({"b": False, "d": True, "c": True}, thumbs))
    assert dict(after.held_out) == {"b": False, "d": True, "c": False, "a": False}
    assert (after.thumbs[3] == thumbs[0]).all()


@pytest.mark.parametrize("sides", [{"a": False, "b": True}, {"a": True, "b": False}])
def test_what_looks_like_any_that_was_trained_on_counts_as_trained_on(sides: dict[str, bool]) -> None:
    alike = np.full((2, 8, 8, 3), 100, np.uint8)
    new = SplitRecord({"b": True, "new": False}, alike)
    assert SplitRecord(sides, alike).sides_of(new) == {"b": sides["b"], "new": False}
    assert SplitRecord({"a": True, "b": True}, alike).sides_of(new) == {"b": True, "new": True}


def test_an_old_run_is_not_measured_on_what_it_was_trained_on(tmp_path: Path) -> None:
    """Though the folder grew, and is split otherwise now."""
    folder = paint(tmp_path / "p", range(20))
    train, held = names(trained_on(folder, tmp_path / "run"))
    paint(folder, range(20, 200))
    data = {"sources": [{"path": str(folder)}], "trigger": "tok", "held_out": 0.5}
    config = build_config({"base": "bundled", "data": data}, "test")
    assert names(survey(config.data))[1] & train, "the split of now holds out what the run was trained on"
    pictures, notes = survey_run(config, tmp_path / "run")
    now_train, now_held = names(pictures)
    assert now_train == train and held < now_held and not now_held & train
    assert len(notes) == 1 and notes[0].endswith("were not there when it was trained, so left out")


def test_pictures_to_measure_on_that_look_like_what_was_trained_on_are_left_out(tmp_path: Path) -> None:
    dataset = trained_on(paint(tmp_path / "p", range(12)), tmp_path / "run")
    (copied,) = dataset.train.samples[:1]
    new = paint(tmp_path / "new", range(50, 53))
    with Image.open(copied.path) as image:
        image.save(new / "copy.jpg", quality=90)
    named = looked_over(new, held_out=0.0)
    unseen, warnings = without_training_pictures(named.train, dataset.train, named.split, tmp_path / "run")
    assert len(unseen.samples) == 3 and warnings == ["1 picture to measure on was trained on, so left out"]

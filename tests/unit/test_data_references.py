"""Pairs: a picture, what it is made from, and the instruction between them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from veneer.config.data_config import DataConfig, PriorConfig
from veneer.config.load import load_config
from veneer.config.schema import SampleConfig
from veneer.config.source_config import SourceConfig
from veneer.data.location import Location
from veneer.data.manifest import Sample
from veneer.data.preflight import survey
from veneer.data.transform import load_centered, load_centered_references, load_pixels, load_references


def save(path: Path, seed: int, size: tuple[int, int] = (40, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def listed(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def config(folder: Path, references: tuple[Path, ...] = (), **options: Any) -> DataConfig:
    source = SourceConfig(path=folder, references=references)
    return DataConfig(sources=(source,), **{"held_out": 0.0, **options})


def row(name: str, reference: object, text: str = "make it red") -> dict[str, object]:
    column = "reference_file_names" if isinstance(reference, list) else "reference_file_name"
    return {"file_name": name, column: reference, "text": text}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    save(tmp_path / "a.png", 0)
    save(tmp_path / "before" / "a.png", 1)
    return listed(tmp_path, row("a.png", "before/a.png"))


def only(folder: Path, **options: Any) -> Sample:
    (sample,) = survey(config(folder, **options)).train.samples
    return sample


def test_a_list_names_references(pair: Path) -> None:
    dataset = survey(config(pair))
    (sample,) = dataset.train.samples
    assert [reference.path for reference in sample.references] == [pair / "before" / "a.png"]
    assert (sample.captions, sample.references[0].width, sample.references[0].height) == (("make it red",), 40, 20)
    assert not dataset.train.rejected, "a reference is no picture that was left out"
    assert [note.partition(", such")[0] for note in dataset.notes] == ["each picture is made from 1 by its caption"]


def test_a_list_names_several(pair: Path) -> None:
    save(pair / "pose.png", 2)
    sample = only(listed(pair, row("a.png", ["before/a.png", "pose.png"])))
    assert [reference.path.name for reference in sample.references] == ["a.png", "pose.png"]


def test_a_table_names_them_too(pair: Path) -> None:
    (pair / "metadata.jsonl").unlink()
    table = pair / "metadata.csv"
    table.write_text("file_name,reference_file_name,text\na.png,before/a.png,make it red\n")
    assert len(only(pair).references) == 1
    table.write_text('file_name;reference_file_names;text\na.png;"[""before/a.png"", ""before/a.png""]";make it red\n')
    assert len(only(pair).references) == 2
    table.write_text('file_name;reference_file_names;text\na.png;"[before/a.png";make it red\n')
    with raises_code("data.metadata_not_json"):
        only(pair)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_a_folder_has_them_by_their_names(tmp_path: Path, ending: str) -> None:
    for name in ("a", "below/b"):
        save(tmp_path / "after" / f"{name}.png", 0 if name == "a" else 1)
        (tmp_path / "after" / f"{name}.txt").write_text("make it red")
        save(tmp_path / "before" / f"{name}.{ending}", 2)
    samples = survey(config(tmp_path / "after", (tmp_path / "before",))).train.samples
    found = [sample.references[0].path.relative_to(tmp_path).as_posix() for sample in samples]
    assert found == [f"before/a.{ending}", f"before/below/b.{ending}"]


def test_a_folder_of_them_may_lie_among_the_pictures(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    save(tmp_path / "before" / "a.png", 1)
    dataset = survey(config(tmp_path, (tmp_path / "before",), trigger="tok"))
    assert [sample.path.name for sample in dataset.train.samples] == ["a.png"] and not dataset.train.rejected
    assert dataset.train.samples[0].references[0].path == tmp_path / "before" / "a.png"


def test_a_picture_without_one_in_the_folder_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / "after" / f"{name}.png", ord(name))
    for name in ("a.png", "c.png", "c.webp"):
        save(tmp_path / "before" / name, 3)
    dataset = survey(config(tmp_path / "after", (tmp_path / "before",), trigger="tok"))
    assert [sample.path.name for sample in dataset.train.samples] == ["a.png"]
    reasons = {one.path.name: one.reason.partition(" of")[0] for one in dataset.train.rejected}
    assert reasons == {"b.png": "no reference", "c.png": "several references"}


@pytest.mark.parametrize(("size", "fits"), [((80, 40), True), ((41, 20), True), ((60, 20), False), ((20, 40), False)])
def test_another_aspect_is_left_out_since_a_zoom_would_be_learned(
    tmp_path: Path, size: tuple[int, int], fits: bool
) -> None:
    save(tmp_path / "after" / "a.png", 0)
    save(tmp_path / "after" / "b.png", 1)
    save(tmp_path / "before" / "a.png", 2, size)
    save(tmp_path / "before" / "b.png", 3)
    dataset = survey(config(tmp_path / "after", (tmp_path / "before",), trigger="tok"))
    assert len(dataset.train.samples) == 1 + fits
    assert fits or f"is {size[0]} x {size[1]}, and it is 40 x 20" in dataset.train.rejected[0].reason


def test_an_unreadable_one_sets_its_picture_aside(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "after" / f"{name}.png", ord(name))
        save(tmp_path / "before" / f"{name}.png", 1)
    (tmp_path / "before" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    dataset = survey(config(tmp_path / "after", (tmp_path / "before",), trigger="tok"))
    assert [sample.path.name for sample in dataset.train.samples] == ["a.png"]
    assert "its reference" in dataset.train.rejected[0].reason


def test_one_that_a_list_names_and_is_not_there_is_the_list_s_fault(pair: Path) -> None:
    with raises_code("data.metadata_file_missing"):
        survey(config(listed(pair, row("a.png", "before/none.png"))))


def test_faults_of_what_the_user_wrote(pair: Path) -> None:
    with raises_code("data.references_twice"):
        survey(config(pair, (pair / "before",)))
    toml = pair / "set.toml"
    toml.write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "before"\nclass_tokens = "tok"\n')
    with raises_code("data.references_of_file"):
        survey(config(toml, (pair / "before",)))
    with raises_code("data.prior_of_pairs"):
        survey(config(pair, prior=PriorConfig(prompt="a thing")))
    save(pair / "b.png", 5)
    listed(pair, row("a.png", "before/a.png"), {"file_name": "b.png", "text": "a thing"})
    with raises_code("data.mixed_references"):
        survey(config(pair))


def test_another_trainer_s_column_is_told(pair: Path) -> None:
    (note,) = survey(config(listed(pair, {"file_name": "a.png", "control_path": "x", "text": "red"}))).notes
    assert "'control_path' is not read" in note and "'reference_file_name'" in note


def test_one_picture_is_the_result_of_several_edits(pair: Path) -> None:
    """Rows of one picture and one reference are captions of one pair; those of another reference are another pair."""
    save(pair / "before" / "b.png", 7)
    rows = [row("a.png", "before/a.png"), row("a.png", "before/b.png"), row("a.png", "before/a.png", "paint it red")]
    first, second = sorted(survey(config(listed(pair, *rows))).train.samples, key=lambda sample: len(sample.captions))
    assert (first.references[0].path.name, second.captions) == ("b.png", ("make it red", "paint it red"))
    assert first.content == second.content and first.id != second.id


def test_the_fingerprint_is_of_the_references_too_and_a_picture_alone_keeps_its_id(pair: Path, tmp_path: Path) -> None:
    alone, before = tmp_path / "alone", survey(config(pair)).train
    alone.mkdir()
    (alone / "a.png").write_bytes((pair / "a.png").read_bytes())
    plain = only(alone, trigger="tok")
    assert plain.id == plain.content == before.samples[0].content != before.samples[0].id
    save(pair / "before" / "a.png", 8)
    assert survey(config(pair)).train.fingerprint() != before.fingerprint()
    moved = (pair / "before" / "a.png").rename(pair / "before" / "z.png")
    fingerprint = survey(config(listed(pair, row("a.png", f"before/{moved.name}")))).train.fingerprint()
    save(pair / "before" / "a.png", 8)
    assert survey(config(listed(pair, row("a.png", "before/a.png")))).train.fingerprint() == fingerprint


@pytest.mark.parametrize("crop", ["center", "random"])
def test_both_are_cut_resized_and_mirrored_alike(tmp_path: Path, crop: str) -> None:
    """The reference is the picture itself, so it must be seen as the same pixels in every draw; twice as large too."""
    save(tmp_path / "a.png", 0)
    (tmp_path / "same.png").write_bytes((tmp_path / "a.png").read_bytes())
    with Image.open(tmp_path / "a.png") as image:
        image.resize((80, 40), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    folder, data = listed(tmp_path, row("a.png", ["same.png", "large.png"])), {"crop": crop, "flip": True}
    sample, own = only(folder, **data), config(folder, **data)
    seen = [load_pixels(sample, own, (16, 16), 0, draw) for draw in range(12)]
    assert len({pixels.numpy().tobytes() for pixels in seen}) == (2 if crop == "center" else 12)
    for draw, pixels in enumerate(seen):
        same, large = load_references(sample, own, (16, 16), 0, draw)
        assert torch.equal(same, pixels)
        assert (large - pixels).abs().mean() < 0.5 * (large.flip(-1) - pixels).abs().mean()
    assert torch.equal(load_centered_references(sample, own, (16, 16))[0], load_centered(sample, own, (16, 16)))


def test_a_reference_must_not_change_while_training(pair: Path) -> None:
    sample = only(pair)
    save(pair / "before" / "a.png", 9)
    with raises_code("data.picture_changed"):
        load_centered_references(sample, config(pair), (16, 16))
    gone = replace(sample.references[0], location=Location(pair / "gone.png"))
    with raises_code("data.picture_gone"):
        load_centered_references(replace(sample, references=(gone,)), config(pair), (16, 16))


def test_prompts_have_one_reference_each_or_one_for_all() -> None:
    one, two = (Path("a.png"),), (Path("b.png"),)
    for references in ((), (one,), (one, two)):
        SampleConfig(prompts=("a", "b"), references=references)
    for prompts, references in ((("a", "b", "c"), (one, two)), ((), (one,))):
        with pytest.raises(ValueError, match="references are"):
            SampleConfig(prompts=prompts, references=references)


def test_paths_are_relative_to_the_file_that_has_them(tmp_path: Path) -> None:
    data, sample = "{sources: [{path: after, references: before}]}", "{prompts: [red], references: a.png}"
    (tmp_path / "run.yaml").write_text(f"base: bundled\ndata: {data}\nsample: {sample}\n")
    read = load_config(tmp_path / "run.yaml")
    assert read.data.sources[0].references == (tmp_path / "before",)
    assert read.sample.references == ((tmp_path / "a.png",),)
    several = load_config(tmp_path / "run.yaml", ["data.sources.0.references=[/one, /two]"])
    assert several.data.sources[0].references == (Path("/one"), Path("/two"))

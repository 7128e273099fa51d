from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.load import config_from_folder
from veneer.config.source_config import SourceConfig
from veneer.data.inspection import inspect_pictures
from veneer.data.manifest import content_id
from veneer.data.preflight import Dataset, read_prior, survey
from veneer.data.sources.registry import read_source


def paint(path: Path, seed: int, size: tuple[int, int] = (32, 32)) -> Path:
    """A picture unlike that of any other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def many(folder: Path, count: int, first: int = 0) -> Path:
    for number in range(first, first + count):
        paint(folder / f"{number:03}.png", number)
    return folder


def looked_over(*folders: Path, **options: Any) -> Dataset:
    sources = tuple(SourceConfig(path=folder) for folder in folders)
    return survey(DataConfig(sources=sources, **{"trigger": "tok", **options}))


def names(dataset: Dataset) -> tuple[set[str], set[str]]:
    return (
        {sample.path.name for sample in dataset.train.samples},
        {sample.path.name for sample in dataset.held_out.samples},
    )


def test_a_folder_is_read_and_split(tiny_pictures: Path) -> None:
    found = survey(DataConfig(sources=(SourceConfig(path=tiny_pictures),), held_out=0.25))
    assert (len(found.train.samples), len(found.held_out.samples)) == (9, 3)
    assert (found.train.rejected, found.held_out.rejected, found.near, found.notes) == ((), (), (), ())
    sample = found.train.samples[0]
    assert sample.id == content_id(sample.path.read_bytes())
    assert (sample.width, sample.height, sample.repeats) == (64, 64, 1)
    assert sample.captions == ("a " + sample.path.stem.replace("_", " "),)


def test_faulty_pictures_are_put_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    many(tmp_path, 3)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"not a picture")
    (tmp_path / "half.png").write_bytes((tmp_path / "000.png").read_bytes()[:60])
    paint(tmp_path / "dot.png", 9, (1, 1))
    found = looked_over(tmp_path)
    assert names(found)[0] == {"000.png", "001.png", "002.png"}
    reasons = {one.path.name: one.reason for one in found.train.rejected}
    assert set(reasons) == {"empty.png", "text.jpg", "half.png", "dot.png"}
    assert reasons["empty.png"] == "empty file (0 bytes)"


def test_a_run_is_stopped_where_more_pictures_cannot_be_used_than_it_allows(tmp_path: Path) -> None:
    many(tmp_path, 2)
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "d.heic").write_bytes(b"")
    (tmp_path / "000-masklabel.png").write_bytes(b"")  # left out, and not at fault
    assert len(looked_over(tmp_path, max_rejected=0.67).train.samples) == 2
    with raises_code("data.too_many_rejected") as caught:
        looked_over(tmp_path, max_rejected=0.66)
    assert "4 of 6 pictures cannot be used: d.heic: " in str(caught.value)
    assert looked_over(tmp_path).train.samples, "by default three of four may be"


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_threads_change_nothing(tmp_path: Path, workers: int) -> None:
    many(tmp_path, 9)
    (tmp_path / "003.png").write_bytes(b"")
    shutil.copy(tmp_path / "001.png", tmp_path / "zz.png")
    paint(tmp_path / "large.bmp", 7, (900, 700))
    listings = [read_source(SourceConfig(path=tmp_path), "tok")]
    advanced: list[tuple[int, int]] = []
    found = inspect_pictures(listings, "white", lambda *numbers: advanced.append(numbers), workers=workers)
    alone = inspect_pictures(listings, "white", workers=1)
    assert list(found.samples.items()) == list(alone.samples.items()) and found.looks == alone.looks
    assert (found.rejected, found.copies, found.notes) == (alone.rejected, alone.copies, alone.notes)
    assert advanced == [(done, 11) for done in range(1, 12)]


def test_pictures_that_show_nothing_or_nothing_sharp_are_said(tmp_path: Path) -> None:
    many(tmp_path, 2)
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "flat.png")
    with Image.open(paint(tmp_path / "b.png", 5, (96, 96))) as image:
        image.filter(ImageFilter.GaussianBlur(3)).save(tmp_path / "b.png")
    flat, blurred = looked_over(tmp_path, held_out=0.0).notes
    assert flat == f"of one colour, which teaches nothing else: {tmp_path / 'flat.png'}"
    assert blurred == f"blurred all over, which is learned as well: {tmp_path / 'b.png'}"


def test_no_picture_left_is_a_mistake(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(b"")
    with raises_code("data.no_usable_picture") as caught:
        looked_over(tmp_path)
    assert "no picture can be used: a.png: empty file (0 bytes), " in str(caught.value)
    assert str(caught.value).endswith(" and 1 more")


def test_a_picture_that_cannot_be_read_is_put_aside(tmp_path: Path) -> None:
    many(tmp_path, 2)
    (tmp_path / "away.png").symlink_to(tmp_path / "on an unplugged disk.png")
    assert [one.reason for one in looked_over(tmp_path).train.rejected] == ["cannot be read: No such file or directory"]


def test_what_is_no_file_is_put_aside_without_waiting_for_it(tmp_path: Path) -> None:
    many(tmp_path, 2)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**31)
    followed = DataConfig(sources=(SourceConfig(path=tmp_path, follow_links=True),), trigger="tok")
    assert [(one.path.name, one.reason) for one in survey(followed).train.rejected] == [
        ("endless.png", "cannot be read: it is a device and no regular file"),
        ("huge.png", "too large: 2,147,483,648 bytes, at most 1,073,741,824"),
        ("pipe.png", "cannot be read: it is a named pipe and no regular file"),
    ]


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [(9, 0.1, 0), (10, 0.1, 1), (10, 0.01, 1), (10, 0.0, 0), (20, 0.15, 3), (5, 0.5, 2), (2, 0.99, 1), (50, 0.58, 29)],
)
def test_how_many_are_held_out(tmp_path: Path, count: int, share: float, held: int) -> None:
    found = looked_over(many(tmp_path, count), held_out=share)
    assert (len(found.train.samples), len(found.held_out.samples)) == (count - held, held)
    assert {one.id for one in found.train.samples}.isdisjoint(one.id for one in found.held_out.samples)


def test_too_few_to_hold_any_out_is_said(tmp_path: Path) -> None:
    assert "3 pictures are too few to hold any out" in looked_over(many(tmp_path, 3)).notes[0]
    assert looked_over(tmp_path, held_out=0.0).notes == ()


def test_the_split_goes_by_content_and_not_by_name_or_order(tmp_path: Path) -> None:
    many(tmp_path / "a", 20)
    (tmp_path / "b").mkdir()
    for number, path in enumerate(sorted((tmp_path / "a").iterdir())):
        shutil.copy(path, tmp_path / "b" / f"{97 * (number + 1) % 101}.png")
    ids = [{one.id for one in looked_over(tmp_path / name, held_out=0.2).held_out.samples} for name in "ab"]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 4


def test_more_pictures_move_few_between_training_and_held_out(tmp_path: Path) -> None:
    before = names(looked_over(many(tmp_path, 20), held_out=0.2))[1]
    after = names(looked_over(many(tmp_path, 5, first=20), held_out=0.2))[1]
    assert len(before & after) >= 2


def test_pictures_that_look_the_same_are_on_one_side(tmp_path: Path) -> None:
    """Each is there three times, saved otherwise, so that a split by files would part most of them."""
    for number in range(10):
        with Image.open(paint(tmp_path / f"{number}.png", number)) as image:
            image.resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / f"{number}.jpg", quality=85)
            image.save(tmp_path / f"{number}.bmp")
    found = looked_over(tmp_path, held_out=0.3)
    train, held = ({Path(name).stem for name in side} for side in names(found))
    assert (len(train), len(held)) == (7, 3) and train.isdisjoint(held)
    assert not any("flatters" in note for note in found.notes)


def test_held_out_may_be_a_folder(tmp_path: Path) -> None:
    found = looked_over(many(tmp_path / "a", 4), held_out=many(tmp_path / "held", 3, first=10))
    assert names(found) == ({f"00{n}.png" for n in range(4)}, {f"01{n}.png" for n in range(3)})
    assert found.notes == ()


def test_captions_of_a_held_out_folder_are_read_as_those_of_the_first_source(tmp_path: Path) -> None:
    many(tmp_path / "a", 2)
    (many(tmp_path / "held", 1, first=10) / "010.txt").write_text("one line\nand another")
    sources = (SourceConfig(path=tmp_path / "a", captions="whole"),)
    found = survey(DataConfig(sources=sources, trigger="tok", held_out=tmp_path / "held"))
    assert [one.captions for one in found.held_out.samples] == [("one line and another, tok",)]


def test_a_held_out_picture_is_never_trained_on(tmp_path: Path) -> None:
    many(tmp_path / "a", 4)
    many(tmp_path / "a" / "held", 3, first=10)
    shutil.copy(tmp_path / "a" / "000.png", tmp_path / "a" / "held" / "copy.png")
    found = looked_over(tmp_path / "a", held_out=tmp_path / "a" / "held")
    assert names(found)[0] == {"001.png", "002.png", "003.png"}
    assert len(found.held_out.samples) == 4
    reasons = {one.path.name: one.reason for one in found.train.rejected}
    assert reasons["000.png"] == f"held out as {tmp_path / 'a' / 'held' / 'copy.png'}"


def test_holding_everything_out_leaves_nothing_to_learn_from(tmp_path: Path) -> None:
    many(tmp_path, 2)
    with raises_code("data.no_usable_picture") as caught:
        looked_over(tmp_path, held_out=tmp_path)
    assert "000.png: held out as" in str(caught.value)


def test_a_held_out_folder_is_read_as_strictly(tmp_path: Path) -> None:
    many(tmp_path / "a", 2)
    with raises_code("data.no_such_folder"):
        looked_over(tmp_path / "a", held_out=tmp_path / "held")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a.png").write_bytes(b"")
    with raises_code("data.no_usable_picture") as caught:
        looked_over(tmp_path / "a", held_out=tmp_path / "held")
    assert caught.value.where == str(tmp_path / "held")


def test_the_same_picture_in_two_sources_is_one_and_said_to_be(tmp_path: Path) -> None:
    many(tmp_path / "all", 3)
    (tmp_path / "best").mkdir()
    shutil.copy(tmp_path / "all" / "001.png", tmp_path / "best" / "x.png")
    for path, text in ((tmp_path / "all" / "001.txt", "a cat"), (tmp_path / "best" / "x.txt", "the cat")):
        path.write_text(text)
    sources = (SourceConfig(path=tmp_path / "all"), SourceConfig(path=tmp_path / "best", repeats=3))
    found = survey(DataConfig(sources=sources, trigger="tok", held_out=0.0))
    both = {one.path.name: one for one in found.train.samples}["001.png"]
    assert (both.captions, both.repeats) == (("a cat, tok", "the cat, tok"), 4)
    assert len(found.train.samples) == 3
    assert f"{tmp_path / 'best' / 'x.png'} = {tmp_path / 'all' / '001.png'}" in found.notes[0]


def test_pictures_that_look_the_same_are_listed_and_leaks_are_said(tmp_path: Path) -> None:
    many(tmp_path / "a", 3)
    with Image.open(tmp_path / "a" / "001.png") as image:
        image.resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "a" / "copy.jpg", quality=85)
        (tmp_path / "held").mkdir()
        image.save(tmp_path / "held" / "again.bmp")
    found = looked_over(tmp_path / "a", held_out=tmp_path / "held")
    pairs = [{first.name, second.name} for first, second in found.near]
    assert len(pairs) == 3
    assert all(pair in pairs for pair in ({"001.png", "copy.jpg"}, {"001.png", "again.bmp"}, {"copy.jpg", "again.bmp"}))
    assert "looks like a training picture" in found.notes[0]
    assert looked_over(tmp_path / "a", held_out=0.0).notes == ()


def test_small_pictures_are_named(tmp_path: Path) -> None:
    many(tmp_path, 2)
    paint(tmp_path / "large.png", 7, (80, 64))
    [note] = looked_over(tmp_path, resolution=64, held_out=0.0).notes
    assert note.startswith("smaller than 64 x 64 pixels and trained at their own size: ")
    assert "000.png (32 x 32)" in note and "large.png" not in note
    for asked in ({"resolution": 64, "upscale": True}, {"resolution": 64, "aspect": "square"}, {"resolution": "64x60"}):
        [note] = looked_over(tmp_path, held_out=0.0, **asked).notes
        assert "pixels and enlarged, so blurred: " in note and "large.png" not in note


def test_folders_named_as_kohyas_scripts_have_it_are_pointed_out(tmp_path: Path) -> None:
    many(tmp_path / "10_cat", 2)
    [note] = looked_over(tmp_path / "10_cat", held_out=0.0).notes
    assert "10_cat: the number is not read as repeats; write {path: ..., repeats: 10}" in note
    sources = (SourceConfig(path=tmp_path / "10_cat", repeats=10),)
    assert survey(DataConfig(sources=sources, trigger="tok", held_out=0.0)).notes == ()


def test_sizes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    sample = looked_over(tmp_path).train.samples[0]
    assert (sample.width, sample.height) == (20, 40)


def test_a_picture_listed_without_an_ending(tmp_path: Path) -> None:
    many(tmp_path, 1)
    shutil.copy(paint(tmp_path / "b.png", 5), tmp_path / "bare")
    rows = [{"file_name": name, "text": "a cat"} for name in ("000.png", "bare")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert names(looked_over(tmp_path))[0] == {"000.png", "bare"}


def test_the_prior_is_as_many_pictures_as_asked_for(tmp_path: Path) -> None:
    many(tmp_path / "class", 5)
    shutil.copy(tmp_path / "class" / "000.png", tmp_path / "class" / "zzz.png")
    (tmp_path / "class" / "broken.png").write_bytes(b"")
    folder = f"path: {tmp_path / 'class'}"

    def read(prior: str) -> Any:
        return read_prior(config_from_folder(tmp_path, "tok", [f"data.prior={prior}", f"output.dir={tmp_path}"]))

    found = read(f"{{prompt: a cat, {folder}}}")
    assert [(one.path.name, one.captions, one.repeats) for one in found.samples] == [
        (f"00{number}.png", ("a cat",), 1) for number in range(5)
    ]
    assert [one.path.name for one in found.rejected] == ["broken.png"]
    assert [one.path.name for one in read(f"{{prompt: a cat, count: 2, {folder}}}").samples] == ["000.png", "001.png"]
    assert read(f"{{prompt: a dog, {folder}}}").samples[0].captions == ("a dog",)
    assert read("null").samples == ()
    assert read("{prompt: a cat}").samples == (), "not painted yet"
    many(tmp_path / "prior", 1)
    assert len(read("{prompt: a cat}").samples) == 1, "by default beside the results"

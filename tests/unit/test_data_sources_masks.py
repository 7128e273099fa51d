"""Which mask is whose, in every way to name them, and what is refused."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from PIL import Image

from tests.errors import raises_code
from veneer.config.data_config import DataConfig
from veneer.config.load import load_config
from veneer.config.source_config import SourceConfig
from veneer.data.location import Location
from veneer.data.manifest import Manifest, Sample
from veneer.data.preflight import Dataset, survey

NAMES = ("a.png", "b.jpg", "more/c.png")


def save(path: Path, seed: int, size: tuple[int, int] = (40, 20), alpha: Image.Image | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(alpha)
    image.save(path)
    return path


def mask(size: tuple[int, int] = (40, 20), white: int = 10) -> Image.Image:
    """White in so many columns from the left."""
    image = Image.new("L", size)
    image.paste(255, (0, 0, white, size[1]))
    return image


def save_mask(path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask(**options).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number, name in enumerate(NAMES):
        save(folder / name, number)
    return folder


def config(folder: Path, masks: Any = None, **options: Any) -> DataConfig:
    source = SourceConfig(path=folder, masks=masks)
    return DataConfig(sources=(source,), **{"held_out": 0.0, "trigger": "sks", **options})


def found(folder: Path, masks: Any = None) -> Dataset:
    return survey(config(folder, masks))


def masks_of(dataset: Dataset) -> dict[str, Path | None]:
    return {one.path.name: None if one.mask is None else one.mask.location.path for one in dataset.train.samples}


@pytest.mark.parametrize("ending", ["-masklabel", "-MaskLabel", ".mask", "_mask", "-mask"])
def test_a_mask_beside_a_picture_is_its_mask_and_no_picture(pictures: Path, ending: str) -> None:
    own = save_mask(pictures / f"a{ending}.png")
    other = save_mask(pictures / "more" / f"c{ending}.png")
    dataset = found(pictures, "beside")
    assert masks_of(dataset) == {"a.png": own, "b.jpg": None, "c.png": other} and not dataset.train.rejected
    counted = "2 of 3 pictures have a mask, and 25% of these is learned (what is white)"
    assert dataset.notes == (f"{counted}, of the others all: {pictures / 'b.jpg'}",)


def test_a_mask_may_have_the_whole_name_and_another_unicode_form(pictures: Path) -> None:
    save(pictures / "e\u0301.png", 9)
    names = {"a.png.mask.png": "a.png", "\u00e9-masklabel.png": "e\u0301.png"}
    for name in names:
        save_mask(pictures / name)
    owned = masks_of(found(pictures, "beside"))
    assert {picture: owned[picture] for picture in names.values()} == {
        picture: pictures / name for name, picture in names.items()
    }


def test_where_masks_are_not_asked_for_they_are_named(pictures: Path) -> None:
    """OneTrainer's are never pictures to learn from; of ``a_mask.png`` nobody knows."""
    for white, name in enumerate(("a-masklabel.png", "a-condlabel.png", "z-masklabel.png", "b_mask.png")):
        save_mask(pictures / name, white=10 + white)
    dataset = found(pictures)
    assert sorted(masks_of(dataset)) == ["a.png", "b.jpg", "b_mask.png", "c.png", "z-masklabel.png"]
    rejected = {one.path.name: one.reason for one in dataset.train.rejected}
    assert rejected.keys() == {"a-masklabel.png", "a-condlabel.png"}
    assert all("masks: beside" in reason for reason in rejected.values())
    assert any("masks: beside reads them" in note and "b_mask.png" in note for note in dataset.notes)


def test_a_folder_has_the_masks_of_the_pictures_names(pictures: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    own, other = save_mask(masks / "a.webp"), save_mask(masks / "more" / "c.png")
    assert masks_of(found(pictures, masks)) == {"a.png": own, "b.jpg": None, "c.png": other}
    save_mask(masks / "a.png")
    dataset = found(pictures, masks)
    assert [one.path.name for one in dataset.train.rejected] == ["a.png"] and "several" in dataset.train.rejected[
        0
    ].reason


def test_a_folder_of_masks_may_lie_among_the_pictures(pictures: Path) -> None:
    own = save_mask(pictures / "masks" / "a.png")
    dataset = found(pictures, pictures / "masks")
    assert masks_of(dataset) == {"a.png": own, "b.jpg": None, "c.png": None}
    assert not dataset.train.rejected


def test_alpha_is_the_mask_of_its_picture(pictures: Path) -> None:
    save(pictures / "a.png", 0, alpha=mask())
    save(pictures / "more" / "c.png", 2, alpha=Image.new("L", (40, 20), 255))
    dataset = found(pictures, "alpha")
    assert masks_of(dataset) == {"a.png": pictures / "a.png", "b.jpg": None, "c.png": None}
    (sample,) = (one for one in dataset.train.samples if one.mask)
    assert sample.mask is not None and (sample.mask.content, sample.mask.share) == (sample.content, 0.25)


def test_transparency_that_no_mask_leaves_out_is_noted(pictures: Path) -> None:
    save(pictures / "a.png", 0, alpha=mask())
    assert any("masks: alpha" in note and "a.png" in note for note in found(pictures).notes)
    assert not any("masks: alpha" in note for note in found(pictures, "alpha").notes)


def test_a_picture_that_is_transparent_everywhere_is_put_aside(pictures: Path) -> None:
    save(pictures / "a.png", 0, alpha=mask())
    save(pictures / "more" / "c.png", 2, alpha=Image.new("L", (40, 20), 0))
    (rejected,) = found(pictures, "alpha").train.rejected
    assert rejected.path.name == "c.png" and "transparent everywhere" in rejected.reason


def listed(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def test_a_list_names_masks(pictures: Path) -> None:
    own = save_mask(pictures / "m" / "one.png")
    rows = [
        {"file_name": "a.png", "mask_file_name": "m/one.png", "text": "a cat"},
        {"file_name": "a.png", "mask_file_name": "m/one.png", "text": "one cat"},
        {"file_name": "b.jpg", "mask_file_name": None, "text": "a dog"},
    ]
    dataset = found(listed(pictures, *rows))
    assert masks_of(dataset) == {"a.png": own, "b.jpg": None}
    assert [one.path.name for one in dataset.train.rejected] == ["c.png"]
    assert {len(one.captions) for one in dataset.train.samples if one.mask} == {2}
    with raises_code("data.masks_twice"):
        found(pictures, "alpha")
    (pictures / "metadata.jsonl").unlink()
    with (pictures / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert masks_of(found(pictures)) == {"a.png": own, "b.jpg": None}


def test_other_columns_of_masks_are_named(pictures: Path) -> None:
    save_mask(pictures / "m.png")
    notes = found(listed(pictures, {"file_name": "a.png", "mask": "m.png", "text": "a cat"})).notes
    assert any("'mask_file_name'" in note for note in notes)


def test_masks_beside_pictures_of_a_list_are_found(pictures: Path) -> None:
    own = save_mask(pictures / "a_mask.png")
    assert masks_of(found(listed(pictures, {"file_name": "a.png", "text": "a cat"}), "beside")) == {"a.png": own}


@pytest.mark.parametrize(
    ("size", "reason"),
    [((20, 40), "20 x 40, and it is 40 x 20"), ((36, 20), "crop or pad"), ((39, 20), None), ((80, 40), None)],
)
def test_a_mask_must_have_the_shape_of_its_picture(pictures: Path, size: tuple[int, int], reason: str | None) -> None:
    save_mask(pictures / "a_mask.png", size=size)
    save_mask(pictures / "b_mask.png")
    rejected = found(pictures, "beside").train.rejected
    assert [one.path.name for one in rejected] == ([] if reason is None else ["a.png"])
    assert all(reason is not None and "its mask" in one.reason and reason in one.reason for one in rejected)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_mask_that_cannot_be_used_puts_its_picture_aside(pictures: Path, content: bytes | None) -> None:
    save_mask(pictures / "a_mask.png", white=0)
    save_mask(pictures / "b_mask.png")
    if content is not None:
        (pictures / "a_mask.png").write_bytes(content)
    (rejected,) = found(pictures, "beside").train.rejected
    assert rejected.path.name == "a.png" and str(pictures / "a_mask.png") in rejected.reason


@pytest.mark.parametrize("masks", ["alpha", "beside", "folder"])
def test_masks_that_are_asked_for_and_are_not_there_are_refused(pictures: Path, tmp_path: Path, masks: str) -> None:
    """Users of other trainers could not tell whether their masks did anything."""
    save_mask(tmp_path / "folder" / "other.png")
    with raises_code("data.no_mask"):
        found(pictures, tmp_path / "folder" if masks == "folder" else masks)


def test_one_picture_with_two_masks_is_one_picture_and_the_other_is_named(pictures: Path) -> None:
    (pictures / "z.png").write_bytes((pictures / "a.png").read_bytes())
    save_mask(pictures / "a_mask.png")
    save_mask(pictures / "z_mask.png", white=20)
    (rejected,) = found(pictures, "beside").train.rejected
    assert rejected.path.name == "z.png" and "another mask" in rejected.reason
    (pictures / "z_mask.png").write_bytes((pictures / "a_mask.png").read_bytes())
    assert not found(pictures, "beside").train.rejected


def test_a_held_out_folder_has_masks_as_the_first_source_has(pictures: Path, tmp_path: Path) -> None:
    save_mask(pictures / "a_mask.png")
    save(tmp_path / "held" / "h.png", 7)
    save_mask(tmp_path / "held" / "h_mask.png")
    dataset = survey(config(pictures, "beside", held_out=tmp_path / "held"))
    assert dataset.held_out.masks == 1 and len(dataset.held_out.samples) == 1


def test_a_mask_is_in_the_fingerprint_and_no_mask_is_not(pictures: Path) -> None:
    plain = found(pictures).train.fingerprint()
    save_mask(pictures / "a-masklabel.png")
    masked = found(pictures, "beside").train.fingerprint()
    save_mask(pictures / "a-masklabel.png", white=11)
    assert len({plain, masked, found(pictures, "beside").train.fingerprint()}) == 3
    assert found(pictures).train.fingerprint() == plain
    sample = Sample("id", Path("p"), ("c",), 8, 8, 1)
    line = json.dumps(["id", ["c"], 1]).encode()
    assert Manifest((sample,)).fingerprint() == xxhash.xxh3_128_hexdigest(line), "what it always was"


def test_kohya_s_dataset_file_names_masks(pictures: Path, tmp_path: Path) -> None:
    """``alpha_mask``, or a folder as ``conditioning_data_dir``, which counts more."""
    own = save_mask(tmp_path / "masks" / "b.png")
    save(pictures / "a.png", 0, alpha=mask())
    subset = f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{pictures}"\nclass_tokens = "cat"\n'
    toml = tmp_path / "dataset.toml"
    toml.write_text(f"{subset}alpha_mask = true\n")
    assert masks_of(found(toml)) == {"a.png": pictures / "a.png", "b.jpg": None}
    toml.write_text(f'[general]\nalpha_mask = true\n{subset}conditioning_data_dir = "masks"\n')
    assert masks_of(found(toml)) == {"a.png": None, "b.jpg": own}
    toml.write_text(f"{subset}alpha_mask = 1\n")
    with raises_code("data.toml_wrong_type"):
        found(toml)


def test_a_config_s_folder_of_masks_is_relative_to_it(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("base: bundled\ndata: {sources: [{path: pictures, masks: masks}]}\n")
    assert load_config(tmp_path / "config.yaml").data.sources[0].masks == tmp_path / "masks"
    (tmp_path / "config.yaml").write_text("base: bundled\ndata: {sources: [{path: pictures, masks: alpha}]}\n")
    assert load_config(tmp_path / "config.yaml").data.sources[0].masks == "alpha"


def test_a_mask_s_location_is_plain(pictures: Path) -> None:
    own = save_mask(pictures / "a_mask.png")
    (sample,) = (one for one in found(pictures, "beside").train.samples if one.mask)
    assert sample.mask is not None and sample.mask.location == Location(own)


def test_a_zip_has_masks_as_a_folder_has(pictures: Path, tmp_path: Path) -> None:
    save_mask(pictures / "a-masklabel.png")
    save_mask(pictures / "more" / "c_mask.png")
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(pictures.rglob("*.*")):
            file.write(path, path.relative_to(pictures))
    dataset = found(archive, "beside")
    assert {name for name, mask in masks_of(dataset).items() if mask} == {"a.png", "c.png"}
    assert dataset.train.fingerprint() == found(pictures, "beside").train.fingerprint()


def test_the_picture_of_a_pair_may_have_a_mask(pictures: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        save(tmp_path / "before" / name, 10 + number)
    own = save_mask(pictures / "a_mask.png")
    source = SourceConfig(path=pictures, masks="beside", references=(tmp_path / "before",))
    dataset = survey(DataConfig(sources=(source,), held_out=0.0, trigger="sks"))
    assert masks_of(dataset) == {"a.png": own, "b.jpg": None, "c.png": None}
    assert dataset.train.references == 1

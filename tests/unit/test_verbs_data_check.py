"""``veneer data check``: what a training would say of its pictures, without training; and the page of it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from tests.errors import raises_code
from veneer.cli.main import main
from veneer.config.load import config_from_folder
from veneer.run.session import run_training
from veneer.verbs.data_check import DataCheck, check_data, check_pictures
from veneer.verbs.data_check_page import write_check_page

HOSTILE = """<script>alert(1)<'"& .png"""


@pytest.fixture(scope="module")
def pictures(tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which some are broken, twins, lookalikes, flat, blurred, wide, turned, or of a hostile name."""
    folder = tmp_path_factory.mktemp("check") / "pictures"
    shutil.copytree(tiny_pictures, folder, ignore=shutil.ignore_patterns("*.jsonl"))
    square = folder / "blue_square.png"
    (folder / "broken.png").write_bytes(square.read_bytes()[:60])
    shutil.copy(square, folder / "zz copy.png")
    with Image.open(folder / "red_cross.png") as image:
        image.save(folder / "alike.jpg", quality=90)
        image.filter(ImageFilter.GaussianBlur(4)).resize((96, 96)).save(folder / "blurred.png")
    with Image.open(folder / "red_circle.png") as image:
        image.resize((400, 64)).save(folder / HOSTILE)
    (folder / HOSTILE).with_suffix(".txt").write_text("<img src=x onerror=alert(1)> " + "long " * 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((64, 80)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (64, 64), "teal").save(folder / "flat.png")
    return folder


@pytest.fixture(scope="module")
def found(pictures: Path) -> DataCheck:
    return check_pictures(config_from_folder(pictures, "tok"))


def test_a_check_says_what_a_training_would(found: DataCheck, pictures: Path) -> None:
    assert found.refusal is None and found.dataset is not None
    assert list(found.rejected) == [str(pictures / "broken.png")]
    assert [second.name for _, second in found.dataset.copies] == ["zz copy.png"]
    near = [{first.name, second.name} for first, second in found.dataset.near]
    assert len(near) == 2 and {"red_cross.png", "alike.jpg"} in near and {"red_circle.png", HOSTILE} in near
    names = {kind: {one.sample.path.name for one in several} for kind, several in found.findings.items()}
    assert names["flat"] == {"flat.png"} and "blurred.png" in names["blurred"]
    assert names["turned upright by its EXIF"] == {"turned.jpg"}
    assert HOSTILE in names["much cropped"] and "blue_square.png" not in names["much cropped"]
    (unread,) = found.unread.values()
    assert unread.is_cut and unread.rest.endswith("tok")


def test_it_is_a_table_or_data(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "check.html"
    assert main(["data", "check", str(pictures), "--trigger", "tok", "--out", str(page)]) == 0
    table = capsys.readouterr().out
    assert "to train on, 1 held out, 1 put aside" in table and "broken.png: broken" in table
    assert "verdict" in table and "a training would start" in table and page.is_file()
    assert main(["data", "check", str(pictures), "--trigger", "tok", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"] == "ready" and len(data["pictures"]) == data["train"] + data["held_out"] == 17
    assert data["buckets"] and len(data["unread"]) == 1


def test_what_a_training_refuses_is_said_and_the_code_is_1(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "check", str(pictures)]
    assert main(words) == 1
    assert "refused: " in capsys.readouterr().out, "no caption and no trigger"
    assert main([*words, "--trigger", "tok", "data.max_rejected=0.01", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["refusal"]["code"] == "data.too_many_rejected" and len(data["pictures"]) == 17
    with raises_code("data.too_many_rejected"):
        run_training(config_from_folder(pictures, "tok", ["data.max_rejected=0.01", f"output.dir={tmp_path / 'run'}"]))
    assert main([*words, "--trigger", "tok", "data.resolution=65"]) == 1
    assert "65 is not a multiple" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "none")]) == 2


class _Page(HTMLParser):
    """The elements of a page, and all its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_all_it_needs_and_no_name_is_markup(found: DataCheck, tmp_path: Path) -> None:
    write_check_page(tmp_path / "check.html", found)
    page = _Page((tmp_path / "check.html").read_text("utf-8"))
    kinds = {tag for tag, _ in page.tags}
    assert "script" not in kinds and HOSTILE in page.text and "<img src=x onerror=alert(1)>" in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 17 + 6 and all((one["src"] or "").startswith("data:image/jpeg;base64,") for one in images)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "del" in kinds, "what is not read of a caption"
    crops = [attributes["style"] or "" for tag, attributes in page.tags if attributes.get("class") == "crop"]
    assert crops and all(re.fullmatch(r"left:[\d.]+%;top:[\d.]+%;width:[\d.]+%;height:[\d.]+%", one) for one in crops)


def test_a_page_of_many_pictures_is_bounded(found: DataCheck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veneer.verbs.data_check_page._MOST_PICTURES", 3)
    write_check_page(tmp_path / "check.html", found)
    text = (tmp_path / "check.html").read_text("utf-8")
    assert "Of 17 pictures these 3 have" in text and text.count("<img ") == 3 + 6


def test_data_is_plain(found: DataCheck) -> None:
    assert json.loads(json.dumps(check_data(found), allow_nan=True))["base"] == "bundled"

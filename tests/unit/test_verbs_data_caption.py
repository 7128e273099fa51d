"""``veneer data caption``: a caption beside each picture, whatever stops it, and a page to look them over."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.captioners import WORDS, write_blip, write_llava
from tests.errors import raises_code
from veneer.cli.app import app
from veneer.errors import UserError
from veneer.verbs.caption_page import write_caption_page
from veneer.verbs.captioner import load_captioner
from veneer.verbs.data_caption import CaptionedPicture, caption_folder, list_captions

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


class Colour:
    """A captioner that says what colour a picture has."""

    def __init__(self) -> None:
        self.count = 0

    def caption(self, image: Image.Image) -> str:
        self.count += 1
        colour = image.getpixel((0, 0))
        if colour == (0, 0, 0):
            raise UserError("the model says nothing of it", code="caption.empty")
        return f"a picture of {colour}"


def write(folder: Path, **colours: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, colour in colours.items():
        Image.new("RGB", (40, 24), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write(tmp_path / "pictures", a="red", b="blue", c="white")


def test_captions_are_written_beside_pictures_and_those_that_are_there_are_kept(pictures: Path) -> None:
    (pictures / "b.caption").write_text("mine")
    captioner = Colour()
    done = caption_folder(pictures, captioner, prefix="TOK,")
    assert (pictures / "a.txt").read_text() == "TOK, a picture of (255, 0, 0)\n"
    assert not (pictures / "b.txt").exists() and captioner.count == 2
    assert [one.captions for one in done.pictures] == [
        ("TOK, a picture of (255, 0, 0)",),
        ("mine",),
        ("TOK, a picture of (255, 255, 255)",),
    ]
    assert (done.written, done.failed) == (2, {})
    assert list_captions(pictures).pictures == tuple(CaptionedPicture(one.path, one.captions) for one in done.pictures)


def test_a_run_that_was_stopped_goes_on_where_it_was(pictures: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caption_folder(pictures, Colour(), progress=stop)
    before = {path: path.read_text() for path in pictures.glob("*.txt")}
    captioner = Colour()
    caption_folder(pictures, captioner)
    assert len(before) == 2 and captioner.count == 1
    assert all(path.read_text() == text for path, text in before.items())


def test_captions_are_written_anew_only_where_asked(pictures: Path) -> None:
    (pictures / "a.txt").write_text("mine")
    caption_folder(pictures, Colour(), overwrite=True)
    assert (pictures / "a.txt").read_text().startswith("a picture of")


def test_a_bad_picture_is_named_and_the_others_are_captioned(pictures: Path) -> None:
    (pictures / "a.png").write_bytes(b"no picture")
    write(pictures, black="black")
    done = caption_folder(pictures, Colour())
    assert done.written == 2
    assert {Path(path).name for path in done.failed} == {"a.png", "black.png"}
    assert done.failed[str(pictures / "black.png")] == "the model says nothing of it"
    assert not (pictures / "a.txt").exists()


def test_pictures_of_one_name_have_captions_of_their_own(pictures: Path) -> None:
    Image.new("RGB", (40, 24), "lime").save(pictures / "a.webp", lossless=True)
    caption_folder(pictures, Colour())
    assert (pictures / "a.webp.txt").read_text() == "a picture of (0, 255, 0)\n"
    assert {one.captions for one in list_captions(pictures).pictures if one.path.stem == "a"} == {
        ("a picture of (0, 255, 0)",),
        ("a picture of (255, 0, 0)",),
    }


def test_a_folder_that_a_list_speaks_for_is_refused(pictures: Path) -> None:
    (pictures / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a"}))
    with raises_code("caption.list_speaks"):
        caption_folder(pictures, Colour())


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with raises_code("caption.not_a_folder"):
        list_captions(tmp_path / "nowhere")


def test_the_page_shows_every_picture_and_marks_those_without_a_caption(pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.txt").write_text("<script>alert(1)</script> & more")
    (pictures / "broken.png").write_bytes(b"no picture")
    page = tmp_path / "page.html"
    write_caption_page(page, pictures, list_captions(pictures))
    text = page.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text and "<script" not in text
    assert text.count("<figure") == 4 and text.count("no caption") == 3
    assert text.count("data:image/jpeg;base64,") == 3
    assert not re.search(r"https?://|src=\"(?!data:)", text), "it needs no other file"


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("models") / "blip")


def test_a_model_that_goes_on_with_a_text_captions(blip: Path) -> None:
    captioner = load_captioner(str(blip), max_tokens=8)
    said = captioner.caption(PICTURE)
    assert said == captioner.caption(PICTURE) and set(said.replace(" ##", "").split()) <= set(WORDS)
    assert load_captioner(str(blip), "a photo of", 8).caption(PICTURE).startswith("a photo of")


def test_a_model_that_talks_is_asked_and_its_answer_alone_is_the_caption(tmp_path: Path) -> None:
    captioner = load_captioner(str(write_llava(tmp_path / "llava")), "the dog", 8)
    said = captioner.caption(PICTURE)
    assert said and "user" not in said.split()[:1] and len(said.split()) <= 8


def test_models_that_cannot_caption_are_refused_in_one_line(blip: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", write(tmp_path / "empty", a="red")):
        with raises_code("caption.model_missing") as caught:
            load_captioner(str(path))
        assert "\n" not in str(caught.value)


def test_the_verb_captions_a_folder(blip: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    page = tmp_path / "page.html"
    arguments = ["data", "caption", str(pictures), "--model", str(blip), "--prompt", "a photo of", "--max-tokens", "6"]
    result = CliRunner().invoke(app, [*arguments, "--review", str(page)])
    assert result.exit_code == 1, result.output
    assert "3 captions written, 0 pictures had some, 1 have none" in result.output and "broken.png" in result.output
    assert all((pictures / f"{name}.txt").read_text().startswith("a photo of") for name in "abc")
    assert page.read_text().count("(new)") == 3


def test_the_command_of_the_page_works(blip: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "captions.md").read_text("utf-8")
    section = page.partition("## Captions by a model")[2]
    (command,) = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    monkeypatch.chdir(pictures.parent)
    (pictures.parent / "models").mkdir()
    (pictures.parent / "models" / "blip").symlink_to(blip)
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--max-tokens", "6"])
    assert result.exit_code == 0, result.output
    assert (pictures / "a.txt").read_text().startswith("TOK, ") and Path("captions.html").is_file()


def test_a_verb_with_nothing_to_do_says_so(pictures: Path) -> None:
    with raises_code("caption.nothing_to_do"):
        CliRunner().invoke(app, ["data", "caption", str(pictures)], catch_exceptions=False)

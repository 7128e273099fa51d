"""Sampling with an adapter file: what of the prompts is not seen is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.errors import raises_code
from tests.running import quick_config, use_base
from veneer.cli.main import main
from veneer.family.protocol import Family
from veneer.run.session import run_training
from veneer.sample.gallery import PictureNote, read_picture_note
from veneer.verbs import sample
from veneer.verbs.sample import PictureWritten, SampleOptions, sample_adapter

LONG = ", ".join(["a small red bird on a thin branch of an old tree"] * 10)
FAST = SampleOptions(steps=1)


@pytest.fixture(scope="module")
def trained(family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a trigger, read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_base(patch, family)
        train = {"max_steps": 1}
        run_training(quick_config(tiny_base, tiny_pictures, folder, data={"trigger": "sks"}, train=train))
    return folder


def test_a_prompt_over_the_limit_is_painted_and_its_end_is_quoted(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "sample",
        str(trained),
        "--prompt",
        LONG,
        "--prompt",
        "a cat",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "s"),
    ]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2
    first, second = [line for line in err.splitlines() if "Loading" not in line]
    assert first == (
        "warning: 1 of 2 prompts is longer than the 14 tokens that the text encoder reads, so the rest has no effect"
    )
    assert second == f"  prompt 1: of 369 tokens only 14 are read; not read: {'…' + LONG[18:]!r}"


def test_the_adapter_s_own_trigger_behind_the_limit_is_named(trained: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    (path,) = sample_adapter(
        trained, ["a cat in the dark forests, sks"], tmp_path / "s", options=FAST, callback=told.append
    )
    assert told.pop() == PictureWritten(path)
    assert [event.code for event in told] == ["data.cut_captions", "data.cut_trigger"]
    assert told[1].text.startswith("the trigger 'sks' is not seen at all in 1 of 1 prompts")


def test_python_warns_where_no_callback_is_given(trained: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="not read: '…n a thin branch") as caught:
        sample_adapter(trained, [LONG], tmp_path / "s", options=FAST)
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("prompt", ["", "sks", "a cat"])
def test_a_prompt_that_is_seen_whole_is_told_nothing_of(prompt: str, trained: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    sample_adapter(trained, [prompt], tmp_path / "s", options=FAST, callback=told.append)
    assert [type(event) for event in told] == [PictureWritten]
    assert read_picture_note(told[0].path) == PictureNote(prompt, 0, 1, 4.0, "DDIM")


def test_no_picture_of_another_adapter_is_written_over(tmp_path: Path) -> None:
    """The default folder is the same for all adapters, and so is the name for the same prompt and seed."""
    path = tmp_path / "00-a-cat-0.png"
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    note, larger = PictureNote("a cat", 0, 1, 4.0, "DDIM"), Image.new("RGB", (8, 8), "blue")
    stem = path.with_suffix("")
    names = [sample._write_picture([picture], stem, note).name for picture in (red, red, blue, larger, blue)]
    assert names == ["00-a-cat-0.png", "00-a-cat-0.png", "00-a-cat-0-2.png", "00-a-cat-0-3.png", "00-a-cat-0-2.png"]
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)
    path.write_bytes(b"no picture")
    assert sample._write_picture([red], stem, note).name == "00-a-cat-0-4.png"
    assert path.read_bytes() == b"no picture"


def test_no_clip_of_another_adapter_is_written_over(tmp_path: Path) -> None:
    stem, note = tmp_path / "00-a-cat-0", PictureNote("a cat", 0, 1, 4.0, "UniPC")
    red, blue = ([Image.new("RGB", (8, 8), colour)] * 2 for colour in ("red", "blue"))
    names = [sample._write_clip(clip, stem, note, frame_rate=16.0).name for clip in (red, red, blue, blue)]
    assert names == ["00-a-cat-0.webp", "00-a-cat-0.webp", "00-a-cat-0-2.webp", "00-a-cat-0-2.webp"]
    assert read_picture_note(tmp_path / names[0]) == note


def test_a_base_of_pictures_paints_no_clips(trained: Path, tmp_path: Path) -> None:
    with raises_code("sample.no_clips", "sample.frames"):
        sample_adapter(trained, ["a cat"], tmp_path / "s", options=SampleOptions(steps=1, frames=5))


def test_pictures_are_written_as_they_are_painted(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "painted_at_once", lambda family: 2)
    whole = sample_adapter(trained, ["a cat"], tmp_path / "whole", options=SampleOptions(steps=1, count=5))
    seen: list[Any] = []

    def interrupted(event: Any) -> None:
        seen.append(event.path)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_adapter(
            trained, ["a cat"], tmp_path / "part", options=SampleOptions(steps=1, count=5), callback=interrupted
        )
    assert [path.name for path in seen] == [path.name for path in whole[:3]]
    assert all(path.read_bytes() == other.read_bytes() for path, other in zip(seen, whole, strict=False))
    assert len(list((tmp_path / "part").iterdir())) == 3

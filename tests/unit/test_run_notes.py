"""What a run says of its pictures once it knows its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.running import logged, quick_config
from veneer.cli.main import main
from veneer.config.load import write_config
from veneer.data import preflight
from veneer.data.preflight import survey
from veneer.family.protocol import Family
from veneer.run.notes import notes_on


def read_pictures(folder: Path, captions: list[str], side: int = 16) -> Path:
    folder.mkdir()
    for number, caption in enumerate(captions):
        Image.new("RGB", (side + number, side), (40 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


def notes(folder: Path, family: Family, **sections: Any) -> list[str]:
    config = quick_config(Path("tiny"), folder, folder / "run", **{"sample": {"prompts": []}, **sections})
    return notes_on(survey(config.data), config, family)


def test_captions_that_are_cut_are_counted_and_the_worst_is_named(family: Family, tmp_path: Path) -> None:
    # the tiny tokenizer's tokens are letters; its encoder reads 14 of them
    folder = read_pictures(tmp_path / "p", ["a cat", "x" * 15, "x" * 40, "x" * 14])
    assert notes(folder, family) == [
        "2 of 4 captions are longer than the 14 tokens that the text encoder reads, so the rest has no say; "
        f"the longest has 40: {folder / '2.png'}"
    ]


def test_captions_that_fit_are_not_spoken_of(family: Family, tmp_path: Path) -> None:
    assert notes(read_pictures(tmp_path / "p", ["a cat", "x" * 14]), family) == []


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"sample": {"prompts": ["x" * 60]}}, "sample.prompts"),
        ({"data": {"prior": {"prompt": "x" * 60}}}, "data.prior.prompt"),
    ],
)
def test_prompts_are_captions_as_well(sections: dict[str, Any], where: str, family: Family, tmp_path: Path) -> None:
    (note,) = notes(read_pictures(tmp_path / "p", ["a cat", "a dog"]), family, **sections)
    assert note.startswith("1 of 3 captions is longer") and note.endswith(f"the longest has 60: {where}")


def test_a_trigger_counts(family: Family, tmp_path: Path) -> None:
    folder = read_pictures(tmp_path / "p", ["x" * 10])
    assert notes(folder, family) == []
    (note,) = notes(folder, family, data={"trigger": "yyyyyyyy"})
    assert note.startswith("1 of 1 captions is longer")


def test_pictures_smaller_than_the_bases_own_side_are_told_of(family: Family, tmp_path: Path) -> None:
    folder = read_pictures(tmp_path / "p", ["a", "b"], side=12)
    (note,) = notes(folder, family)
    assert note.startswith("smaller than 16 pixels and enlarged, so blurred: ") and "0.png (12 x 12)" in note
    # where the config names a side, survey has told of it
    assert notes(folder, family, data={"resolution": 16}) == []


def test_a_run_says_it_before_it_trains_and_decodes_no_picture_twice_for_it(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = read_pictures(tmp_path / "p", ["a cat", "x" * 40], side=12)
    config = quick_config(Path("tiny"), folder, tmp_path / "run", train={"max_steps": 1})
    write_config(config, tmp_path / "run.yaml")
    monkeypatch.setattr("veneer.run.session.load_base", lambda base: family)
    monkeypatch.setattr("veneer.run.session.identify", stop)
    looked: list[int] = []
    decode = preflight.decode
    monkeypatch.setattr(preflight, "decode", lambda *content: looked.append(1) or decode(*content))
    with pytest.raises(Stop):
        main(["train", str(tmp_path / "run.yaml")])
    out = capsys.readouterr().out
    assert "warning: smaller than 16 pixels" in out
    assert "warning: 1 of 3 captions is longer than the 14 tokens" in out
    assert len(looked) == 2


def test_they_are_in_the_log(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = read_pictures(tmp_path / "p", ["a cat", "x" * 40])
    config = quick_config(Path("bundled"), folder, tmp_path / "run", train={"max_steps": 1})
    write_config(config, tmp_path / "run.yaml")
    monkeypatch.setattr("veneer.run.session.load_base", lambda base: family)
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    assert [event["event"] for event in logged(tmp_path / "run")][:3] == ["Surveyed", "Warned", "Planned"]


class Stop(BaseException):
    """Ends a run before it trains."""


def stop(*_: Any) -> None:
    raise Stop

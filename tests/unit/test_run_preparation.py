"""Warnings about pictures and captions once the base is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.running import logged, quick_config, use_base
from veneer.cli.main import main
from veneer.config.load import write_config
from veneer.data import seen
from veneer.data.preflight import survey
from veneer.family.protocol import Family
from veneer.run.preparation import input_warnings
from veneer.train.events import Warned


def write_pictures(folder: Path, captions: list[str], side: int = 16) -> Path:
    folder.mkdir()
    for number, caption in enumerate(captions):
        Image.new("RGB", (side + number, side), (40 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


def warnings(folder: Path, family: Family, **sections: Any) -> list[Warned]:
    config = quick_config(Path("tiny"), folder, folder / "run", **{"sample": {"prompts": []}, **sections})
    return input_warnings(config, survey(config.data), family)


def test_captions_that_are_cut_are_counted_and_the_worst_is_named(family: Family, tmp_path: Path) -> None:
    # the tiny tokenizer's tokens are letters; its encoder reads 14 of them
    folder = write_pictures(tmp_path / "p", ["a cat", "x" * 15, "x" * 40, "x" * 14])
    (warning,) = warnings(folder, family)
    assert warning.code == "data.cut_captions"
    assert warning.text == (
        "2 of 4 captions are longer than the 14 tokens that the text encoder reads, so the rest has no effect; "
        "shorten them, or let data.token_windows be more"
    )
    assert warning.details == (
        f"{folder / '2.png'}: of 40 tokens only 14 are read; not read: {'…' + 'x' * 26!r}",
        f"{folder / '1.png'}: of 15 tokens only 14 are read; not read: '…x'",
    )


def test_captions_that_fit_give_no_warning(family: Family, tmp_path: Path) -> None:
    assert warnings(write_pictures(tmp_path / "p", ["a cat", "x" * 14]), family) == []


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"sample": {"prompts": ["x" * 60]}}, "sample.prompts"),
        ({"data": {"prior": {"prompt": "x" * 60}}}, "data.prior.prompt"),
    ],
)
def test_prompts_are_captions_as_well(sections: dict[str, Any], where: str, family: Family, tmp_path: Path) -> None:
    (warning,) = warnings(write_pictures(tmp_path / "p", ["a cat", "a dog"]), family, **sections)
    assert warning.text.startswith("1 of 3 captions is longer")
    assert warning.details == (f"{where}: of 60 tokens only 14 are read; not read: {'…' + 'x' * 46!r}",)


def test_a_trigger_counts(family: Family, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["x" * 10])
    assert warnings(folder, family) == []
    cut, trigger = warnings(folder, family, data={"trigger": "yyyyyyyy"})
    assert cut.text.startswith("1 of 1 captions is longer")
    assert trigger.code == "data.cut_trigger" and "not seen whole in 1 of 1 captions" in trigger.text


def test_a_trigger_behind_the_limit_is_said_not_to_be_seen_at_all(family: Family, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["x" * 20, "TOK " + "x" * 20, "tiny"])
    cut, trigger = warnings(folder, family, data={"trigger": "tok"})
    assert len(cut.details) == 2 and "not read: '…xxxxxx, tok'" in cut.details[0]
    assert trigger.text == (
        "the trigger 'tok' is not seen at all in 1 of 3 captions, for it stands behind what is read; "
        "write it at the beginning of the text, as data.trigger_placement=start does, or shorten the text"
    )
    assert trigger.details == (f"{folder / '0.png'}: 14 tokens are read",)


def test_a_caption_of_several_pictures_is_told_once(family: Family, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["x" * 15, "x" * 15, "x" * 15])
    (warning,) = warnings(folder, family)
    assert warning.text.startswith("1 of 1 captions is longer")
    assert warning.details[0].startswith(f"{folder / '0.png'} and 2 more: of 15 tokens")


def test_pictures_smaller_than_the_bases_own_resolution_give_a_warning(family: Family, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", ["a", "b"], side=12)
    (warning,) = warnings(folder, family)
    assert warning.code == "data.small_pictures"
    assert (
        warning.text.startswith("smaller than 16 x 16 pixels and trained at their own size: ")
        and "0.png (12 x 12)" in warning.text
    )
    # where the config names a side, survey has told of it
    assert warnings(folder, family, data={"resolution": 16}) == []


def test_pictures_smaller_than_the_base_takes_are_enlarged_and_named(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(tmp_path / "p", ["a", "b"], side=12)
    monkeypatch.setattr(family, "multiple", 13)
    small, tiny = warnings(folder, family)
    assert "trained at their own size" in small.text
    assert tiny.text.startswith("smaller than 13 pixels, which is the least that the base takes, and so enlarged: ")


def test_a_run_warns_before_it_trains_and_decodes_no_picture_twice_for_it(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "p", ["a cat", "x" * 40], side=12)
    config = quick_config(Path("tiny"), folder, tmp_path / "run", train={"max_steps": 1})
    write_config(config, tmp_path / "run.yaml")
    use_base(monkeypatch, family)
    monkeypatch.setattr("veneer.run.preparation.identify", stop)
    looked: list[int] = []
    decoded = seen.decoded
    monkeypatch.setattr(seen, "decoded", lambda *content: looked.append(1) or decoded(*content))
    with pytest.raises(Stop):
        main(["train", str(tmp_path / "run.yaml")])
    out = capsys.readouterr().out
    assert "warning: smaller than 16 x 16 pixels" in out
    assert "warning: 1 of 3 captions is longer than the 14 tokens" in out
    assert len(looked) == 2


def test_they_are_in_the_log(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "p", ["a cat", "x" * 40])
    config = quick_config(Path("bundled"), folder, tmp_path / "run", train={"max_steps": 1})
    write_config(config, tmp_path / "run.yaml")
    use_base(monkeypatch, family)
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    assert [event["event"] for event in logged(tmp_path / "run")][:3] == ["Surveyed", "Warned", "Planned"]


class Stop(BaseException):
    """Ends a run before it trains."""


def stop(*_: Any) -> None:
    raise Stop

"""``veneer data init``: the configuration that it writes is loaded, checked and trained."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from tests.errors import raises_code
from veneer.cli.main import main
from veneer.config.load import config_from_folder, load_config
from veneer.data.preflight import survey
from veneer.verbs.data_init import write_initial_config


def test_it_says_what_a_folder_says_and_proposes_a_trigger(tiny_pictures: Path, tmp_path: Path) -> None:
    config = write_initial_config(tiny_pictures, tmp_path / "config.yaml")
    assert survey(config.data) == survey(config_from_folder(tiny_pictures, None).data)
    assert config.data.trigger is None
    text = (tmp_path / "config.yaml").read_text("utf-8")
    assert '  # trigger: "shapes"' in text and "11 pictures to train on, 1 held out, 0 put aside" in text
    for line in ("resolution: 64", 'trigger: "shapes"', "flip: true"):
        text = text.replace(f"# {line}", line)
    (tmp_path / "config.yaml").write_text(text)
    changed = load_config(tmp_path / "config.yaml").data
    assert (changed.trigger, changed.resolution, changed.flip) == ("shapes", 64, True)


def test_without_captions_the_trigger_is_set(tiny_pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'my "cat": no. 1'
    shutil.copytree(tiny_pictures, folder, ignore=shutil.ignore_patterns("*.jsonl"))
    config = write_initial_config(folder, tmp_path / "config.yaml")
    assert config.data.trigger == "my cat no" and config.data.sources[0].path == folder
    assert f'path: "{folder.name}"'.replace('"cat"', r"\"cat\"") in (tmp_path / "config.yaml").read_text()
    moved = tmp_path / "moved"
    moved.mkdir()
    for one in (folder, tmp_path / "config.yaml"):
        shutil.move(one, moved)
    assert survey(load_config(moved / "config.yaml").data).train.samples


def test_lists_of_tags_are_told(tiny_pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tags"
    shutil.copytree(tiny_pictures, folder, ignore=shutil.ignore_patterns("*.jsonl"))
    for path in folder.glob("*.png"):
        path.with_suffix(".txt").write_text("1girl, solo, red hair, smile")
    write_initial_config(folder, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text("utf-8")
    assert "# shuffle_tags: true" in text
    (tmp_path / "config.yaml").write_text(text.replace("# shuffle_tags", "shuffle_tags").replace("# keep_", "keep_"))
    assert load_config(tmp_path / "config.yaml").data.sources[0].shuffle_tags


def test_a_file_that_is_there_is_kept(tiny_pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    with raises_code("output.exists"):
        write_initial_config(tiny_pictures, tmp_path / "config.yaml")
    assert (tmp_path / "config.yaml").read_text() == "mine"


@pytest.mark.slow
def test_what_it_writes_is_trained(
    tiny_pictures: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "init", str(tiny_pictures), "--base", str(tiny_base)]) == 0
    assert main(["data", "check", "config.yaml"]) == 0
    quick = ("train.max_steps=1", "sample.steps=2", "validation.draws=2")
    assert main(["train", "config.yaml", *quick]) == 0


@pytest.mark.slow
def test_the_commands_of_the_page_work(tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    section = page.partition("## Look pictures over")[2]
    commands = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    shutil.copytree(tiny_pictures, tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    assert [line.split()[2] for line in commands] == ["init", "check", "show"]
    for line in commands:
        assert main(shlex.split(line)[1:]) == 0, line
    assert (tmp_path / "check.html").is_file() and (tmp_path / "sheet.png").is_file()


def test_clips_are_found_and_told(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from tests.clips import noise, video

    (tmp_path / "clips").mkdir()
    for name, count in (("a", 20), ("b", 12)):
        (tmp_path / "clips" / f"{name}.mkv").write_bytes(video(noise(count)))
    config = write_initial_config(tmp_path / "clips", tmp_path / "run.yaml", trigger="tok")
    assert config.data.frames == (9, 17)
    assert "2 clips of 12 to 20 frames" in (tmp_path / "run.yaml").read_text()

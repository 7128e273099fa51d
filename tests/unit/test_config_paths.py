"""Paths in configs mean the same from wherever a file is read; ``~`` is the home folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.errors import raises_code
from veneer.config.document import read_yaml, write_yaml
from veneer.config.load import CONFIG, LOG, load_config, write_config
from veneer.config.override import set_key
from veneer.config.paths import anchored, names_only, portable
from veneer.config.schema import RunConfig

TEXT = """base: ../models/sd
data:
  sources: [{path: pictures}, {path: /pictures}, {path: ~/pictures}]
  held_out: unseen
  cache: ./cache
  prior: {prompt: a cat, path: cats}
output: {dir: out}
sample: {prompts: [pictures]}
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config, beside the working directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "there", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "there" / "style.yaml").write_text(TEXT, "utf-8")
    return tmp_path / "there"


def paths_of(config: RunConfig) -> list[object]:
    assert config.data.prior is not None
    sources = [source.path for source in config.data.sources]
    return [config.base, *sources, config.data.held_out, config.data.cache, config.data.prior.path, config.output.dir]


def test_relative_paths_start_in_the_files_folder(there: Path, tmp_path: Path) -> None:
    config = load_config(Path("../there/style.yaml"))
    found = [Path(str(path)).resolve() for path in paths_of(config)]
    home, root = tmp_path / "home/pictures", Path("/pictures")
    expected = ["../models/sd", "pictures", root, home, "unseen", "cache", "cats", "out"]
    assert found == [(there / path).resolve() for path in expected]
    assert config.sample.prompts == ("pictures",), "no path"


def test_the_command_lines_start_in_the_working_directory(there: Path) -> None:
    told = ["data.cache=mine", "output.dir=results", "data.sources=[{path: p}]", "data.held_out=0.5"]
    config = load_config(there / "style.yaml", told)
    assert (config.data.cache, config.output.dir) == (Path("mine"), Path("results"))
    assert config.data.sources[0].path == Path("p") and config.data.held_out == 0.5


@pytest.mark.parametrize("base", ["bundled", "owner/name", "sd15"])
def test_a_base_that_is_no_path_stays(there: Path, base: str) -> None:
    (there / "bundled").mkdir()
    (there / "b.yaml").write_text(f"base: {base}\ndata: {{sources: [{{path: p}}]}}\n", "utf-8")
    config = load_config(there / "b.yaml")
    assert config.base == base
    write_config(config, there / "again.yaml")
    assert load_config(there / "again.yaml").base == base


def test_a_base_that_is_there_is_a_path(there: Path) -> None:
    (there / "owner" / "name").mkdir(parents=True)
    (there / "b.yaml").write_text("base: owner/name\ndata: {sources: [{path: p}]}\n", "utf-8")
    assert load_config(there / "b.yaml").base == str(there / "owner/name")


def test_results_go_beside_a_file_that_does_not_say_where(there: Path) -> None:
    (there / "b.yaml").write_text("base: bundled\ndata: {sources: [{path: p}]}\n", "utf-8")
    assert load_config(there / "b.yaml").output.dir == there / "runs/adapter"


@pytest.mark.parametrize("key", ["data.sources.0.path", "data.held_out", "data.cache", "output.dir", "base"])
def test_a_path_that_the_working_directory_has_is_not_guessed(there: Path, key: str) -> None:
    """Else a run would start over, or train on something else, for a reader used to other rules."""
    values: dict[str, Any] = {"base": "bundled", "data": {"sources": [{"path": "/p"}]}}
    set_key(values, key, "mine/x", "test")
    (there / "b.yaml").write_text(write_yaml(values), "utf-8")
    load_config(there / "b.yaml")
    Path("mine/x").mkdir(parents=True)
    with raises_code("config.path_elsewhere") as caught:
        load_config(there / "b.yaml")
    assert f"{key}: is mine/x, which is not in {there}" in str(caught.value)
    assert f"write ../here/mine/x, or give {key}=mine/x on the command line" in str(caught.value)
    load_config(there / "b.yaml", [f"{key}=mine/x"])
    (there / "mine/x").mkdir(parents=True)
    load_config(there / "b.yaml")


def test_a_written_config_means_the_same_from_anywhere(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (there.parent / "models/sd").mkdir(parents=True)
    monkeypatch.chdir(there)
    config = load_config(Path("style.yaml"), ["data.prior.path=out/prior"])
    write_config(config, Path("out", CONFIG))
    whole = [str((there / str(path)).resolve()) for path in paths_of(config)]
    assert "    path: prior\n" in (there / "out" / CONFIG).read_text("utf-8"), "within the run's folder, so it may move"
    for place in (there, there.parent, Path("/")):
        monkeypatch.chdir(place)
        assert [str(path) for path in paths_of(load_config(there / "out" / CONFIG))] == whole


def test_the_results_of_a_runs_config_are_where_it_lies(there: Path) -> None:
    (there / "out").mkdir()
    write_config(load_config(there / "style.yaml", ["data.prior.path=../there/out/prior"]), there / "out" / CONFIG)
    (there / "out" / LOG).touch()
    (there / "out").rename(there / "moved")
    config = load_config(there / "moved" / CONFIG)
    assert config.output.dir == there / "moved" and paths_of(config)[-2] == there / "moved/prior"
    assert load_config(there / "moved" / CONFIG, ["output.dir=other"]).output.dir == Path("other")


def test_a_link_is_followed_where_dots_lead_elsewhere(there: Path, tmp_path: Path) -> None:
    (tmp_path / "far/away").mkdir(parents=True)
    (there / "link").symlink_to(tmp_path / "far/away")
    (tmp_path / "far/pictures").mkdir()
    paths = [str(there / "link/../pictures"), str(there / "x/../y")]
    values = portable({"data": {"sources": [{"path": path} for path in paths]}}, there)
    first, second = (source["path"] for source in values["data"]["sources"])
    assert (there / first).resolve() == tmp_path / "far/pictures" and second == "y"


@given(st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)))
def test_what_is_no_path_stays(values: object) -> None:
    assert anchored({"sample": values, "train": values}, Path("there")) == {"sample": values, "train": values}


def test_a_text_with_a_name_for_a_home_is_left_to_the_schema(there: Path) -> None:
    values = read_yaml("data: {cache: ~/c, sources: [{path: ''}]}", "test").values
    assert anchored(values, there) == values


def test_others_see_names_and_no_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    values = {
        "base": "/models/sd.safetensors",
        "data": {"sources": [{"path": "/home/alice"}, {"path": "sets/cats"}], "held_out": "/x/held", "cache": "~/c"},
        "output": {"dir": "/home/alice/runs/cats"},
        "train": {"max_steps": 3},
    }
    assert names_only(values) == {
        "base": "sd.safetensors",
        "data": {"sources": [{"path": "folder"}, {"path": "cats"}], "held_out": "held", "cache": "c"},
        "output": {"dir": "cats"},
        "train": {"max_steps": 3},
    }
    assert [names_only({"base": base})["base"] for base in ("bundled", "owner/name", "../x")] == [
        "bundled",
        "owner/name",
        "x",
    ]

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from tests.errors import raises_code
from veneer.cli.inputs import read_planned_config, read_run_config, read_study, with_base
from veneer.cli.main import main
from veneer.config.base_name import BaseName
from veneer.config.load import dump_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(content, "PNG")
    return content.getvalue()


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.png", picture())
    return content.getvalue()


def read(path: Path) -> RunConfig:
    return read_run_config(path, (), "tok", ())


def plan(path: Path) -> RunConfig:
    return read_planned_config([str(path)], None, "tok", ())[0]


OTHERS = [
    (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive", "unpack it, and name the folder of pictures, or make a zip of it"),
    (picture(), "is a PNG picture", "name the folder of pictures that it lies in"),
    (save({"a": torch.ones(2)}), "is a safetensors file", "name a folder of pictures, and this file as the base"),
    (pickle.dumps({"a": 1}), "is a pickle", "convert it to safetensors"),
    (b"PAR1\x15\x04", "is a parquet table", "name a folder with the pictures themselves"),
    (b"\0\0\0\x18ftypmp42\0\0\0\0", "is a video", "save frames of it"),
    (b"<!DOCTYPE html><p>404", "is a web page", ""),
    (b'{"a.png": "a cat"}', "is a JSON file without keys of a configuration", ""),
    (b'["a cat"]', "is a JSON file without keys of a configuration", ""),
]


@pytest.mark.parametrize("name", ["x", "x.yaml", "pictures.zip", "a.txt"])
@pytest.mark.parametrize("reader", [read, plan])
@pytest.mark.parametrize(("content", "what", "remedy"), OTHERS)
def test_what_is_no_configuration_is_said_to_be_what_it_is(
    tmp_path: Path, content: bytes, what: str, remedy: str, reader: Callable[[Path], object], name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with raises_code("cli.not_a_config", what) as caught:
        reader(tmp_path / name)
    assert remedy in str(caught.value) and "\n" not in str(caught.value)
    assert "not a folder or a zip of pictures, a dataset.toml or a configuration file" in str(caught.value)


@pytest.mark.parametrize(("content", "what", "remedy"), OTHERS)
def test_so_it_is_where_a_study_is_expected(tmp_path: Path, content: bytes, what: str, remedy: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with raises_code("cli.not_a_config", what):
        read_study(tmp_path / "x.yaml", (), None, None)
    with raises_code("cli.not_a_config", what):
        read_study(Path("rank"), (), tmp_path / "x.yaml", None)


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.chdir(tmp_path)  # results go to a folder below
    (tmp_path / "pictures.7z").write_bytes(b"7z\xbc\xaf\x27\x1c\0\4")
    (tmp_path / "torn.zip").write_bytes(archive()[:-30])
    (tmp_path / "text.zip").write_bytes(b"a letter")
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as file:
        file.writestr("../a.png", picture())
    for name, words in (
        ("pictures.7z", "unpack it"),
        ("torn.zip", "cut short"),
        ("gone.zip", "does not exist"),
        ("text.zip", "is a text file, not a zip archive"),
        ("slip.zip", "no picture can be used: a.png: its name leads out of the archive"),
    ):
        assert main([verb, str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{name}: " in line and words in line


@pytest.mark.parametrize("reader", [read, plan])
@pytest.mark.parametrize("name", ["pictures.zip", "pictures", "a.txt"])
def test_a_zip_of_pictures_is_a_source(tmp_path: Path, reader: Callable[[Path], RunConfig], name: str) -> None:
    """Hosted trainers take one; it is told by its content."""
    (tmp_path / name).write_bytes(archive())
    config = reader(tmp_path / name)
    assert config.output.dir == Path("runs", Path(name).stem)
    (sample,) = survey(config.data).train.samples
    assert (sample.captions, sample.path, (sample.width, sample.height)) == (
        ("tok",),
        tmp_path / name / "a.png",
        (16, 16),
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "text": "a dog"}\n'),
        ("metadata.csv", "file_name,text\na.png,a cat\n"),
    ],
)
def test_a_list_of_captions_is_said_to_be_one(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with raises_code("cli.not_a_config", "is a list of captions") as caught:
        read(tmp_path / name)
    assert str(tmp_path) in str(caught.value.remedy)


@pytest.mark.parametrize("name", ["dataset.toml", "DATASET.TOML", "dataset.txt"])
def test_a_dataset_file_of_kohyas_scripts_is_a_source(tmp_path: Path, name: str) -> None:
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds/a.png").write_bytes(picture())
    (tmp_path / "birds/a.caption").write_text("a red bird")
    (tmp_path / name).write_text(
        '[general]\nkeep_tokens = 1\n[[datasets]]\n  [[datasets.subsets]]\n  image_dir = "birds"\n'
    )
    config = read(tmp_path / name)
    assert config.output.dir == Path("runs", Path(name).stem)
    assert [one.captions for one in survey(config.data).train.samples] == [("a red bird, tok",)]


def test_a_training_configuration_of_kohyas_scripts_is_said_to_name_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('pretrained_model_name_or_path = "x"\ndataset_config = "dataset.toml"\n')
    with raises_code("data.toml_without_subsets", "name the file of its --dataset_config"):
        survey(read(tmp_path / "config.toml").data)


def run_folder(folder: Path) -> Path:
    (folder / "samples").mkdir(parents=True)
    for name in ("sheet.png", "samples/step-10.png"):
        (folder / name).write_bytes(picture())
    (folder / "run.jsonl").write_text('{"event": "Surveyed", "seconds": 0.1}\n')
    return folder


def test_a_runs_folder_is_no_folder_of_pictures(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "x")
    with raises_code("cli.run_folder", "holds a run's results, and no pictures") as caught:
        read(folder)
    assert str(folder / "config.yaml") in str(caught.value)
    (folder / "my cat.png").write_bytes(picture())
    config = read(folder)
    assert [one.path.name for one in survey(config.data).train.samples] == ["my cat.png"]


def test_a_folder_is_no_study(tmp_path: Path) -> None:
    with raises_code("cli.not_a_config", "is a folder, not the file of a study"):
        read_study(tmp_path, (), None, None)


@pytest.mark.parametrize("name", ["x.yaml", "x.json", "x", "x.txt"])
def test_a_configuration_may_have_any_name_and_be_json(tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    config = read(tmp_path / "pictures")
    text = json.dumps(config.model_dump(mode="json")) if name == "x.json" else dump_config(config)
    (tmp_path / name).write_text(text)
    assert read(tmp_path / name).data.trigger == "tok"


def test_an_expert_is_named_beside_the_option_for_the_base() -> None:
    words = ["base.expert=low_noise", "seed=3"]
    assert with_base(words, "wan22-t2v-a14b") == ["seed=3", "base='wan22-t2v-a14b'", "base.expert=low_noise"]
    config, _ = read_planned_config(words, "wan22-t2v-a14b", None, ())
    assert (config.base, config.seed) == (BaseName("wan22-t2v-a14b", expert="low_noise"), 3)
    assert with_base(words, None) == words

"""Commands mean the same from wherever they are given, with ``~`` in quotes too, and in any terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.errors import raises_code
from tests.running import quick_config, steps_kept, without_rehearsals
from veneer.cli import adapter
from veneer.cli.app import app
from veneer.cli.main import main
from veneer.cli.options import parse_model, parse_path, parse_weighted
from veneer.config.load import load_config, write_config
from veneer.run.folder import CARD, CONFIG, LOG, SHEET, claim, clear
from veneer.run.identity import BASE_NAME
from veneer.weights.file import info

QUICK = ["train.max_steps=2", "train.batch_size=1", "sample.steps=1", "validation.draws=1", "tracking.trackers=[]"]


@pytest.fixture
def places(tmp_path: Path, tiny_base: Path, tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a base, pictures and a config by hand; the working directory is beside it."""
    home = tmp_path / "home"
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    (home / "sd").symlink_to(tiny_base)
    (home / "pics").symlink_to(tiny_pictures)
    (home / "style.yaml").write_text(
        "base: ./sd\ndata: {sources: [{path: pics}]}\noutput: {dir: out}\ntracking: {trackers: []}\n"
        "train: {max_steps: 2, batch_size: 1, checkpoint_every: 1}\nsample: {steps: 1}\nvalidation: {draws: 1}\n",
        "utf-8",
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "here")
    without_rehearsals(monkeypatch)
    return home


def test_home_opens_wherever_a_path_is_taken(places: Path, tmp_path: Path) -> None:
    assert main(["train", "~/pics", "output.dir=~/o", "base=~/sd", *QUICK]) == 0
    assert main(["sample", "~/o", "--prompt", "~ x", "--steps", "1", "--out", "~/s", "--base", "~/sd"]) == 0
    assert main(["evaluate", "~/o", "--data", "~/pics", "--out", "~/e", "--samples", "0"]) == 0
    assert main(["adapter", "resize", "~/o", "--rank", "1", "--out", "~/r.safetensors"]) == 0
    for verb in (["adapter", "info"], ["adapter", "verify"], ["report"]):
        assert main([*verb, "~/o"]) == 0
    assert os.listdir(tmp_path / "here") == [], "no folder of that name"
    assert {"o", "s", "e", "r.safetensors"} <= set(os.listdir(places))
    assert info(places / "o").metadata[BASE_NAME] == "sd"
    assert str(tmp_path) not in str(info(places / "o").metadata), "no path of this machine is in the file"


@pytest.mark.slow
def test_a_run_goes_on_from_another_folder_and_after_a_move(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", "../home/style.yaml"]) == 0
    assert main(["train", str(places / "style.yaml"), "train.max_steps=3", "--resume"]) == 0
    assert main(["train", "../home/out/config.yaml", "train.max_steps=4", "--resume"]) == 0
    assert os.listdir() == [] and steps_kept(places / "out") == [3, 4]
    (places / "out").rename("moved")
    monkeypatch.chdir("/")
    moved = places.parent / "here" / "moved"
    assert main(["train", str(moved / CONFIG), "train.max_steps=5", "--resume"]) == 0
    assert steps_kept(moved) == [4, 5] and not (places / "out").exists()
    assert main(["sample", str(moved), "--prompt", "x", "--steps", "1", "--out", str(moved / "s")]) == 0


def test_what_is_gone_is_named(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(places / "style.yaml", ["base=nowhere/sd", f"data.sources=[{{path: {places}/gone}}]"])
    write_config(config, places / "out" / CONFIG)
    (places / "out" / LOG).touch()
    for words in (["train", "../home/out/config.yaml", "--resume"], ["evaluate", "../home/out"]):
        assert main(words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_each_path_of_the_command_line_opens_home() -> None:
    """Of every verb; a new option is not forgotten."""
    named = ("FOLDER", "FILE", "PATH", "RUN", "ADAPTER", "CONFIG", "STUDY", "BASE", "MODEL")
    for command in (*app.registered_commands, *adapter.app.registered_commands):
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            for about in getattr(hint, "__metadata__", ()):
                metavar = str(getattr(about, "metavar", ""))
                if any(word in metavar for word in named) and "KEY" not in metavar:
                    parser = getattr(about, "parser", None)
                    assert parser in (parse_path, parse_model, parse_weighted), (command.callback.__name__, name)


def test_an_adapter_with_a_strength_opens_home_too() -> None:
    assert parse_weighted("~/style:0.5") == (Path.home() / "style", 0.5)
    assert parse_weighted("~/style") == (Path.home() / "style", 1.0)


@pytest.mark.parametrize("name", [CARD, CONFIG])
def test_a_file_that_is_no_runs_is_not_replaced(name: str, tmp_path: Path) -> None:
    """Such as the README.md of a project that a run is to write into."""
    (tmp_path / name).write_text("mine")
    with raises_code("output.has_other_file", f"holds a {name} that is no run's"):
        claim(tmp_path)
    claim(tmp_path, overwrite=True)
    (tmp_path / LOG).touch()
    claim(tmp_path)


def test_the_log_is_the_last_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the process die there, what is left is known as a run's."""
    for name in (LOG, CONFIG, CARD, SHEET):
        (tmp_path / name).touch()
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **keywords: (gone.append(self.name), unlink(self, **keywords))[1])
    clear(tmp_path)
    assert gone[-1] == LOG and os.listdir(tmp_path) == []


def veneer(
    words: Sequence[str], tmp_path: Path, redirect: str = "", **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell, in an environment with some variables set, or left out where they are None."""
    variables = {**os.environ, "VENEER": f"{sys.executable} -m veneer", **environment}
    whole = {name: value for name, value in variables.items() if value is not None}
    command = f'$VENEER "$@" {redirect}'
    return subprocess.run(
        ["sh", "-c", command, "sh", *words], capture_output=True, text=True, cwd=tmp_path, env=whole, errors="replace"
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it has /dev/full")
@pytest.mark.parametrize(
    ("redirect", "environment", "code"),
    [
        ("", {"HOME": None, "TERM": "dumb"}, 0),
        ("", {"COLUMNS": "20", "PYTHONIOENCODING": "ascii"}, 0),
        ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 0),
        ("> /dev/full", {}, 1),
        (">&-", {}, 0),
        ("2>&-", {}, 0),
        ("| head -c 1", {}, 0),
    ],
)
def test_any_terminal_will_do(
    redirect: str, environment: dict[str, str | None], code: int, tmp_path: Path, tiny_base: Path, tiny_pictures: Path
) -> None:
    config = quick_config(tiny_base, tiny_pictures, tmp_path / "run").model_copy(update={"base": str(tiny_base)})
    write_config(config, tmp_path / "猫.yaml")
    ended = veneer(["plan", "猫.yaml", "data.trigger=é"], tmp_path, redirect, **environment)
    if environment.get("PYTHONUTF8") == "0":  # where no argument but ASCII is text
        code = 2
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("veneer")]
    assert len(lines) == (1 if code else 0), ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="it has /dev/full")
def test_the_help_ends_quietly_where_it_cannot_be_written(tmp_path: Path) -> None:
    full = veneer(["--help"], tmp_path, "> /dev/full")
    assert (full.returncode, full.stderr) == (1, "veneer: error: No space left on device\n")
    assert veneer(["--help"], tmp_path, ">&-").stderr == ""
    assert veneer(["--version"], tmp_path, "| true").stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="a folder in use stays there")
def test_a_working_directory_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["plan", "pictures"]) in (1, 2)
    assert len(capsys.readouterr().err.splitlines()) == 1

"""README's commands and its Python are run, word for word but for a smaller base and fewer steps."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from veneer.cli.main import main

ROOT = Path(__file__).parents[2]
QUICK = {"train": ("train.max_steps=2", "sample.steps=2", "validation.draws=2"), "sample": ("--steps", "2")}


def _block(before: str) -> str:
    """The fenced block that follows a line of README."""
    found = re.search(rf"^{re.escape(before)}\n```\w+\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.S | re.M)
    assert found, before
    return found[1]


@pytest.fixture(scope="module")
def desk(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the folder that README speaks of."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(tiny_pictures, folder / "pictures")
    return folder


@pytest.mark.slow
def test_commands(desk: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    commands = [shlex.split(line) for line in _block("<!-- commands: tested -->").splitlines()]
    assert len(commands) >= 6
    for program, *words in commands:
        assert program == "veneer"
        # a base in the config file is found there; a folder of pictures has none
        base = (f"base={tiny_base}",) if words[0] == "train" and not words[1].endswith(".yaml") else ()
        assert main([*words, *base, *QUICK.get(words[0], ())]) == 0, words
    assert len(list((desk / "turtles").glob("*.png"))) == 4
    assert (desk / "merged" / "model_index.json").is_file()
    _table(tiny_base)
    _python(desk)


def _table(base: Path) -> None:
    """The verb of each question, on what the commands left; a study is run by the test of its own page."""
    text = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\|[^|]+\| `(veneer [^`]+)` \| \[(docs/\w+\.md)\]", text, re.M)
    assert [command.split()[1] for command, _ in rows] == ["data", "plan", "evaluate", "report", "doctor", "study"]
    quick = {
        "data": (f"base={base}",),
        "plan": (f"base={base}",),
        "evaluate": ("--samples", "0"),
        "doctor": (),
        "report": (),
    }
    for command, page in rows:
        verb = command.split()[1]
        if verb == "study":
            assert command in (ROOT / page).read_text("utf-8").splitlines()
        else:
            # the doctor's code is 1 where he finds something, as he may in so short a training
            assert main([*shlex.split(command)[1:], *quick[verb]]) in ((0, 1) if verb == "doctor" else (0,)), command


def _python(desk: Path) -> None:
    """README's Python, on what the commands left."""
    code = _block("<!-- python: tested -->")
    exec(compile(code, "README.md", "exec"), {})
    assert (desk / "turtle.png").is_file()

"""docs/precision.md: its commands are run, its figures are those that were kept."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks import precision
from benchmarks.page import figures_of
from tools.publish import published
from veneer.cli.main import main
from veneer.weights.file import FILE_NAME

QUICK = ["train.max_steps=2", "train.batch_size=1", "sample.steps=1", "validation.draws=1"]


@pytest.mark.slow
def test_commands(tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_pictures, tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    found = re.search(r"^<!-- commands: tested -->\n```sh\n(.*?)^```", precision.PAGE.read_text("utf-8"), re.S | re.M)
    assert found
    for program, *words in map(shlex.split, found[1].splitlines()):
        assert program == "veneer"
        assert main([*words, f"base={tiny_base}", *QUICK]) == 0, words
    adapters = [path.read_bytes() for path in sorted((tmp_path / "runs").glob(f"*/{FILE_NAME}"))]
    assert len(adapters) == len(set(adapters)) == 4


def test_the_page_quotes_the_figures() -> None:
    expected = precision.section(figures_of(precision.NAME))
    assert published(precision.PAGE, precision.NAME) == expected, "run: python -m benchmarks"


@pytest.mark.slow
def test_the_count_is_of_the_published_architecture() -> None:
    """Its 859,520,964 parameters, of which few are none of products."""
    plain, half, held = (precision.weights_of(precision.full_size, form) for form in ("none", "bfloat16", "bnb_int8"))
    assert plain == {"packed": 0, "rest": 4 * 859_520_964}
    assert 2 * half["packed"] + half["rest"] == plain["rest"] and half["rest"] < plain["rest"] / 1000
    linear = plain["rest"] - held["rest"]
    assert 0.25 < held["packed"] / linear < 0.254, "a byte for four, and a scale a row"


@pytest.mark.slow
def test_the_benchmark_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_base: Path
) -> None:
    load = precision.veneer.load_base
    monkeypatch.setattr(precision.veneer, "load_base", lambda base, *format: load(str(tiny_base), *format))
    monkeypatch.setattr(sys, "argv", ["precision", "--quick", "--no-page"])
    monkeypatch.setattr(precision, "_SIDE", 16)
    precision.main()
    assert "| `torchao_fp8` |" in capsys.readouterr().out

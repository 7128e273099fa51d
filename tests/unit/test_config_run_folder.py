"""A run's folder is known by one rule: to the pictures in it, to the config in it, and to the next run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.errors import raises_code
from veneer.config.load import load_config
from veneer.config.run_folder import CONFIG, LOG, has_log, is_run
from veneer.run.folder import CARD, claim

EVENT = '{"event": "Surveyed", "seconds": 0.1}\n'
OURS = "base: bundled\noutput: {dir: elsewhere}\ndata: {trigger: tok, sources: [{path: pictures}]}\n"
OTHERS = ["[1]", "text", '{"event": 1}', '{"step": 3, "loss": 0.1}', "[" * 100_000, "\0" * 50]
"""First lines of a file of a log's name that another tool wrote."""


@pytest.mark.parametrize(
    ("files", "log", "run"),
    [
        ({}, False, False),
        ({LOG: ""}, True, False),
        ({LOG: EVENT}, True, True),
        ({LOG: "", CONFIG: OURS}, True, True),  # it ended before its first event
        ({LOG: "", CONFIG: "job: extension"}, True, False),
        ({CONFIG: OURS}, False, False),
        ({CONFIG: OURS, "plan.json": "{}"}, False, True),
        ({CONFIG: OURS, "samples/a.png": ""}, False, True),
        *(({LOG: line, CONFIG: OURS}, False, False) for line in OTHERS),
    ],
)
def test_what_a_run_leaves(files: dict[str, str], log: bool, run: bool, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert (has_log(tmp_path), is_run(tmp_path)) == (log, run)


@pytest.mark.parametrize("line", OTHERS)
def test_beside_anothers_log_a_config_says_itself_where_results_go(line: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(OURS)
    (tmp_path / LOG).write_text(line)
    assert load_config(tmp_path / CONFIG).output.dir == tmp_path / "elsewhere"
    (tmp_path / LOG).write_text(EVENT)
    assert load_config(tmp_path / CONFIG).output.dir == tmp_path


@pytest.mark.parametrize("line", OTHERS)
@pytest.mark.parametrize("name", [CARD, CONFIG, None])
def test_anothers_log_is_not_replaced_nor_what_lies_beside_it(name: str | None, line: str, tmp_path: Path) -> None:
    (tmp_path / LOG).write_text(line)
    if name:
        (tmp_path / name).write_text("mine")
    with raises_code("output.has_other_file", f"holds a {name or LOG} that is no run's"):
        claim(tmp_path)


def test_a_pipe_of_a_log_s_name_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOG)
    assert not has_log(tmp_path) and not is_run(tmp_path)

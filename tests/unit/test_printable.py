"""What would steer a terminal is shown, and not done: wherever text from elsewhere is printed or put on a page."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from veneer.cli.main import main
from veneer.cli.terminal.console import print_text, printing_libraries, say, say_warning
from veneer.errors import UserError
from veneer.printable import in_one_line, printable
from veneer.run.log import EventLog, events_in
from veneer.study.statistics import Table, TrialFailure
from veneer.study.tables import _cell, as_markdown
from veneer.train.events import Warned
from veneer.weights.card import CardFacts, CardFile, model_card

CLEAR, TITLE, TURNED, C1 = "\x1b[2J", "\x1b]0;owned\x07", "\u202egnp.exe", "\x9b31m"
EVIL = f"a{CLEAR}b{TITLE}c{TURNED}d{C1}e\x7f[bold]f[/bold] :cat: \u2028\u2066g"
NAME = EVIL.replace("/", "")
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069]")


@given(st.text())
def test_nothing_that_steers_is_left(text: str) -> None:
    shown = printable(text)
    assert not STEERING.search(shown) and printable(shown) == shown
    shown.encode()
    assert not STEERING.search(in_one_line(text)) and "\n" not in in_one_line(text)


@pytest.mark.parametrize("text", ["a cat,\n\ta dog", "猫と犬", "é", "кот", "חתול", "🐱", "100 %"])
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [(CLEAR, r"\x1b[2J"), ("\x9b", r"\u009b"), (TURNED, r"\u202egnp.exe"), ("\udcff", r"\udcff"), ("a\r\nb", "a\nb")],
)
def test_what_steers_is_shown_by_its_code(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_name_of_two_lines_is_one() -> None:
    assert in_one_line("a\nb\tc") == r"a\nb\tc"
    fault = UserError("is\nno picture", code="test.test", where="a\nveneer: all is well.png")
    assert str(fault) == r"a\nveneer: all is well.png: is no picture"


@given(st.dictionaries(st.text(), st.text()))
def test_json_stays_the_same_json(values: dict[str, str]) -> None:
    shown = printable(json.dumps(values, ensure_ascii=False, indent=1))
    assert json.loads(shown) == values and not STEERING.search(shown)


def test_an_error_steers_nothing() -> None:
    assert not STEERING.search(str(UserError(EVIL, code="test.test", where=EVIL, remedy=EVIL)))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_prints_text_as_it_is(terminal: bool) -> None:
    to = io.StringIO()
    console = Console(file=to, force_terminal=terminal, width=20)
    say(console, EVIL)
    say_warning(console, Warned("test.test", EVIL, details=(EVIL,)))
    assert not STEERING.search(to.getvalue()) and to.getvalue().count("[bold]f[/bold] :cat:") == 3
    assert len(to.getvalue().splitlines()) == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_a_terminal_without_a_letter_gets_its_code(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    to = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", to)
    print_text("猫 é")
    say(Console(file=to), "猫 é")
    to.flush()
    text = to.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert len(text.splitlines()) == 2 and ("猫" in text or r"\u732b" in text)


def test_a_closed_standard_output_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    print_text("nobody sees it")


def test_what_libraries_say_steers_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("some.library").addHandler(handler)
    with printing_libraries():
        logging.getLogger("some.library").error("no such key: %s", EVIL)
        sys.stderr.write(warnings.formatwarning(EVIL, UserWarning, EVIL, 1))
    logging.getLogger("some.library").removeHandler(handler)
    said = capfd.readouterr().err
    assert said.count(r"\x1b[2J") >= 2 and not STEERING.search(said)


def test_the_log_holds_no_raw_code_and_means_the_same(tmp_path: Path) -> None:
    with EventLog(tmp_path / "run.jsonl") as log:
        log(Warned("test.test", EVIL))
    assert not STEERING.search((tmp_path / "run.jsonl").read_text("utf-8"))
    assert next(events_in(tmp_path / "run.jsonl"))["text"] == EVIL


def test_a_card_is_no_html_and_steers_nothing() -> None:
    evil = f"{EVIL} `code` | <script>alert(1)</script> [link](http://x) &lt;"
    files = (CardFile("a.safetensors", "diffusers", "0"), CardFile(f"{evil}.safetensors", "kohya", "0"))
    facts = CardFacts(evil, evil, evil, files, "LoRA", {evil: evil}, trigger=evil, gallery={"a.png": evil})
    card = model_card(facts, None)
    assert not STEERING.search(card)
    outside = re.sub(r"(?s)^---\n.*?\n---\n|```python.*?```|(`+)[^`].*?\1", "", card)
    assert "<script" not in outside and "](http" not in outside.replace(r"\](http", "")


def test_a_studys_table_stays_a_table() -> None:
    evil = f"{EVIL}\n| x | <script>"
    text = as_markdown(Table((), (TrialFailure(evil, 0, evil),), None, 0.0, 1, 1, (0,), 0.0, None))
    assert len(text.splitlines()) == 1 and not STEERING.search(text)
    assert _cell(evil).count("|") == _cell(evil).count(r"\|") == 2 and "<script" not in _cell(evil)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """An adapter file with hostile metadata, under a hostile name."""
    path = tmp_path / f"{NAME}.safetensors"
    tensors = {"unet.a.lora_A.weight": torch.ones(1, 2), "unet.a.lora_B.weight": torch.ones(2, 1)}
    save_file(tensors, path, {EVIL: f"{EVIL}\nsha256  0", "veneer.trigger": EVIL})
    return path


def said(words: Sequence[str | Path], capfd: pytest.CaptureFixture[str]) -> str:
    """Return all that a command printed."""
    main([str(word) for word in words])
    found = capfd.readouterr()
    return found.out + found.err


def test_every_verb_shows_a_hostile_file(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    broken, config = tmp_path / f"{NAME}.yaml", tmp_path / f"good{NAME}.yaml"
    broken.write_text(f"base: bundled\n'{TURNED}': 1\ndata: {{sources: [{{path: x}}]}}\n", "utf-8")
    config.write_text("base: bundled\ndata: {sources: [{path: nowhere}]}\n", "utf-8")
    nothing = tmp_path / f"no{NAME}"
    for words in (
        ["adapter", "info", hostile],
        ["adapter", "verify", hostile],
        ["adapter", "resize", hostile, "--rank", "1"],
        ["adapter", "merge", hostile, "--out", nothing, "--base", nothing],
        ["sample", hostile, "--prompt", EVIL, "--base", nothing],
        ["evaluate", hostile],
        ["train", broken],
        ["train", config],
        ["train", config, f"{EVIL}=1"],
        ["train", config, f"--{EVIL}"],
        ["train", nothing],
        ["plan", config, f"base={EVIL}"],
        ["study", broken],
        ["study", nothing],
        ["doctor", nothing],
        ["report", nothing],
        [EVIL],
    ):
        text = said(words, capfd)
        assert text and not STEERING.search(text), words
        assert words[:2] == ["adapter", "info"] or len(text.splitlines()) == 1, words
    assert r"\x1b[2J" in said(["adapter", "info", hostile], capfd)


def test_pictures_with_hostile_names_and_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path)
    name = f"x{CLEAR}{TURNED}{C1}"
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "p" / f"{name}{number}.png")
        (tmp_path / "p" / f"{name}{number}.txt").write_text(EVIL.replace("\u2028", ""), "utf-8")
    (tmp_path / "p" / f"{name}.jpg").write_text("no picture")
    for words in (["plan", "p"], ["plan", "p", "--json"]):
        text = said(words, capfd)
        assert text and not STEERING.search(text)


@pytest.mark.skipif(os.name == "nt", reason="names there are Unicode")
def test_an_argument_that_is_no_text_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    for word, words in (
        ("caf\udce9", ["sample", "x", "--prompt"]),
        ("caf\udce9", ["train"]),
        ("data.trigger=\udcff", ["train", "x"]),
    ):
        assert main([*words, word]) == 2
        assert re.fullmatch(r"veneer: error: argument \S+: is not UTF-8; .*\n", capfd.readouterr().err)


def test_a_fault_of_ours_shows_its_trace_harmlessly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(EVIL)

    monkeypatch.setattr("veneer.cli.main.app", fail)
    assert main(["train"]) == 1
    text = capfd.readouterr().err
    assert text.startswith("Traceback") and not STEERING.search(text)

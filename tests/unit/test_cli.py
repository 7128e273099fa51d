"""The command line: its texts, its refusals, and how soon it answers."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer

import veneer
from veneer.__main__ import main as door
from veneer.cli.app import app
from veneer.cli.main import main
from veneer.errors import UserError
from veneer.rng import MAX_SEED

VERBS = (
    *(("train",), ("plan",), ("sample",), ("evaluate",), ("study",), ("doctor",), ("report",)),
    *(("adapter",), ("adapter", "info"), ("adapter", "verify"), ("adapter", "resize"), ("adapter", "merge")),
    *(("adapter", "blend"), ("adapter", "compare"), ("adapter", "edit"), ("adapter", "prune")),
    ("adapter", "extract"),
    ("adapter", "convert"),
    *(("data",), ("data", "check"), ("data", "init"), ("data", "show")),
)


def enter(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["veneer", *arguments])
    return door()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line that a refused command line prints, less its beginning."""
    capsys.readouterr()
    assert main(arguments) == code
    written = capsys.readouterr()
    assert written.err.startswith("veneer: error: ")
    assert written.err.count("\n") == 1 and written.err.endswith("\n")
    return written.err.removeprefix("veneer: error: ").rstrip()


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_stored_help_is_what_typer_prints(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enter(monkeypatch, *arguments) == 0
    stored = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    assert stored == capsys.readouterr().out
    assert stored.isascii()


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert enter(monkeypatch, "--version") == 0
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"veneer {veneer.__version__}\n" * 2


def test_other_arguments_go_through_the_door(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enter(monkeypatch, "train", "--help") == 0
    assert "--trigger" in capsys.readouterr().out
    assert enter(monkeypatch, "trian") == 2


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_all_its_options(verb: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: veneer {' '.join(verb)} " in text
    assert not re.search(r"^  -\S+( \S+)?$", text, re.MULTILINE)  # an option without a word about it


def test_a_seed_that_no_generator_takes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "sample", "adapter", "--prompt", "a turtle", "--seed", str(2**64))
    assert "'--seed'" in line and line.removesuffix(".").endswith(str(MAX_SEED))


def test_a_count_of_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "sample", "x", "--prompt", "a", "--count", "0")
    # releases of typer word a range differently
    assert "'--count'" in line and re.search(r"(greater than or equal to |x>=)1\b", line)


def test_verbs_are_all_here() -> None:
    registered = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert registered | {group.name for group in app.registered_groups} == {verb[0] for verb in VERBS}


def _modules(code: str, *arguments: str) -> set[str]:
    """Return the modules that a fresh Python has after some code."""
    code += "; import sys; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_answers_as_soon_as_python_has_started(option: str) -> None:
    """Nothing is imported but the package's own two files, and three small modules of Python's with their needs."""
    ours = _modules("import sys; from veneer.__main__ import main; main()", option)
    assert ours - _modules("import __future__, importlib, typing") == {"veneer", "veneer.__main__"}


def test_a_verb_explains_itself_without_torch() -> None:
    slow = {"torch", "numpy", "PIL", "diffusers", "transformers", "rich.progress"}
    assert not _modules("import veneer.cli.main") & slow


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("adapter", "inof", "x"), "Did you mean 'info'?"),
        (("train", "x", "--triger", "sks"), "Did you mean '--trigger'?"),
        (("train", "x", "--overwirte"), "Did you mean '--overwrite'?"),
        (("sample", "x", "--promt", "a cat"), "Did you mean '--prompt'?"),
        (("sample", "x"), "Missing option '--prompt'"),
        (("adapter", "merge", "x"), "Missing option '--out'"),
    ],
)
def test_a_slip_of_the_keyboard_gets_a_hint(
    arguments: tuple[str, ...], suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suggestion in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (UserError("is wrong", code="test.wrong", where="here", remedy="do\nbetter"), 2, "here: is wrong; do better"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 1, "a.png: No space left on device"),
        (OSError("the hub is away"), 1, "the hub is away"),
    ],
    ids=["mistake", "Ctrl-C", "full disk", "bare"],
)
def test_whatever_happens_is_one_line(
    failure: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("veneer.cli.train.read_run_config", fail)
    assert refusal(capsys, "train", "pictures", code=code) == line


def test_the_base_is_an_option_of_a_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = []

    def read(source: Path, overrides: list[str], *_: object) -> None:
        given.extend(overrides)
        raise UserError("read", code="test.read")

    monkeypatch.setattr("veneer.cli.train.read_run_config", read)
    refusal(capsys, "train", "pictures", "--base", "it's here", "seed=3")
    assert given == ["seed=3", "base='it''s here'"]


def test_an_abort_is_an_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def abort(*_: object, **__: object) -> None:
        raise typer.Abort

    monkeypatch.setattr("veneer.cli.train.read_run_config", abort)
    assert refusal(capsys, "train", "pictures", code=130) == "interrupted"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m veneer train --help | head -n 1'
    result = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.startswith("Usage: veneer train")
    assert result.stderr == ""


@pytest.mark.parametrize(
    "verb",
    [("adapter", "info"), ("adapter", "verify"), ("sample", "--prompt", "a"), ("adapter", "merge", "--out", "m")],
)
@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("missing.safetensors", None, "No such file"),
        ("pickle.bin", b"anything", "is a pickle"),
        ("renamed.safetensors", b"PK\x03\x04 as torch.save writes it: archive/data.pkl", "is a pickle"),
        ("cut.safetensors", b"\x40\0\0\0\0\0\0\0{", "is cut short"),
    ],
)
def test_files_that_are_no_adapter(
    verb: Sequence[str],
    name: str,
    content: bytes | None,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    line = refusal(capsys, *verb, name)
    assert line.startswith(f"{name}: ") and what in line
    assert not Path("m").exists()


def test_a_config_with_a_typo_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "style.yaml"
    config.write_text("base: bundled\ndata: {sources: [{path: x}]}\ntrain:\n  stepz: 10\n")
    line = refusal(capsys, "train", str(config))
    assert line.startswith(f"{config}:4") and "train.max_steps" in line


def test_a_source_that_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist; a folder or zip of pictures or a" in refusal(capsys, "train", str(tmp_path / "nothing"))


def test_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert "no picture in this folder" in refusal(capsys, "train", "empty")


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("CUDA out of memory. Tried to\nallocate 20.00 GiB")])
def test_memory_that_runs_out_anywhere_is_one_line(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as when a base is loaded: a run's log, which tells more, has not begun then."""

    def load(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("veneer.cli.main.app", load)
    said = refusal(capsys, "sample", code=1)
    assert said.startswith("out of memory") and "fewer pictures a batch" in said


def test_another_fault_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("veneer.cli.main.app", fail)
    assert main(["sample"]) == 1
    assert "Traceback" in (said := capsys.readouterr().err) and "RuntimeError: a bug" in said

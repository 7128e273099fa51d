"""Signals, the lock and the log: what a run does beside training."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.errors import raises_code
from tests.running import hashes, logged, quick_config, steps_kept, use_base
from veneer.cli.main import main
from veneer.cli.resume_option import with_resume_value
from veneer.config.load import write_config
from veneer.config.schema import RunConfig
from veneer.family.registry import load_family
from veneer.run.folder import LOG
from veneer.run.lock import LOCK, locked
from veneer.run.log import EventBus, EventLog, cut_log
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.run.signals import Interrupted, ending_at_signals, stopping_at_signals
from veneer.train.events import CheckpointDue, StepDone, Warned
from veneer.weights.file import FILE_NAME


@pytest.fixture(autouse=True)
def heeding_ctrl_c() -> Iterator[None]:
    """Also where the tests run in the background, to which shells give no Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def config(tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    family = load_family(str(tiny_base))
    use_base(monkeypatch, family)
    return quick_config(tiny_base, tiny_pictures, tmp_path / "run", train={"checkpoint_every": 0})


def signalling(number: int, step: int, times: int = 1) -> Callable[[object], None]:
    def callback(event: object) -> None:
        if isinstance(event, StepDone) and event.step == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return callback


# signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_signal_ends_the_run_with_a_checkpoint_of_the_step(config: RunConfig, number: int, step: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        run_training(config, callback=signalling(number, step))
    assert (caught.value.signal, caught.value.step, caught.value.exit_code) == (number, step, 128 + number)
    assert steps_kept(config.output.dir) == [step]
    assert caught.value.checkpoint is not None and caught.value.checkpoint.name == f"step-{step:09d}"
    assert signal.getsignal(number) is before
    assert [event["event"] for event in logged(config.output.dir)][-2:] == ["CheckpointSaved", "Stopped"]
    assert not (config.output.dir / FILE_NAME).exists() and not (config.output.dir / LOCK).exists()


def test_the_second_ctrl_c_ends_at_once_and_costs_no_checkpoint(config: RunConfig) -> None:
    with pytest.raises(Interrupted):
        run_training(config, callback=signalling(signal.SIGINT, 2))
    with pytest.raises(KeyboardInterrupt) as caught:
        run_training(config, resume=Resume(), callback=signalling(signal.SIGINT, 4, times=2))
    assert not isinstance(caught.value, Interrupted)
    assert steps_kept(config.output.dir) == [2]


def test_a_second_ctrl_c_while_the_checkpoint_is_written(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def again(descriptor: int) -> None:
        if "state" in os.readlink(f"/proc/self/fd/{descriptor}"):
            os.kill(os.getpid(), signal.SIGINT)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", again)
    with pytest.raises(KeyboardInterrupt) as caught:
        run_training(config, callback=signalling(signal.SIGINT, 2))
    assert not isinstance(caught.value, Interrupted)
    assert list((config.output.dir / "checkpoints").iterdir()) == []


def test_what_was_stopped_goes_on_with_the_command_that_was_printed(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a style.yaml"
    write_config(config, file)
    (config.output.dir).mkdir()
    (config.output.dir / FILE_NAME).write_bytes(b"earlier")
    with monkeypatch.context() as patch:
        patch.setattr("veneer.cli.terminal.progress.Progress.__call__", lambda self, event: signalling(15, 2)(event))
        assert main(["train", str(file), "train.batch_size=3", "--overwrite"]) == 143
    (line,) = capsys.readouterr().err.splitlines()
    what, _, command = line.partition("; go on with: ")
    last = config.output.dir / "checkpoints" / "step-000000002"
    assert what == f"veneer: stopped by SIGTERM after step 2; the last checkpoint is {last}"
    words = shlex.split(command)
    assert words == ["veneer", "train", str(file), "train.batch_size=3", "--resume"]
    assert main(words[1:]) == 0
    assert (config.output.dir / FILE_NAME).stat().st_size > 100


def test_a_checkpoint_that_cannot_be_written_at_the_stop_is_said_to(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(config, tmp_path / "run.yaml")
    config.output.dir.mkdir()
    (config.output.dir / "checkpoints").touch()
    monkeypatch.setattr("veneer.cli.terminal.progress.Progress.__call__", lambda self, event: signalling(2, 2)(event))
    assert main(["train", str(tmp_path / "run.yaml")]) == 130
    assert capsys.readouterr().err == "veneer: stopped by SIGINT after step 2; no checkpoint could be written\n"


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping_at_signals(lambda: None) as caught:
            os.kill(os.getpid(), signal.SIGINT)
        assert caught.number == 0 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers_restored")
def test_a_launched_process_stops_at_the_first_signal_and_ignores_those_that_follow() -> None:
    stops = []
    with (
        pytest.raises(Interrupted),
        ending_at_signals(),
        stopping_at_signals(lambda: stops.append(1), launched=True) as caught,
    ):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.number == signal.SIGTERM and stops == [1, 1]
        raise Interrupted(caught.number, 3)
    # the others may have stopped before this process had its own signal, which is late then
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_thread_trains_without_handlers() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stopping_at_signals(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("train c.yaml --resume", "train c.yaml --resume="),
        ("train c.yaml --resume train.max_steps=9", "train c.yaml --resume= train.max_steps=9"),
        ("train c.yaml --resume --trigger sks", "train c.yaml --resume= --trigger sks"),
        ("train c.yaml --resume runs/typo", "train c.yaml --resume=runs/typo"),
        ("train c.yaml --resume runs/a/checkpoints/step-000000100", None),
        ("train c.yaml train.max_steps=9 --resume step-000000100/", None),
        ("train --resume c.yaml", "train --resume= c.yaml"),
        ("train --trigger sks --resume c.yaml", "train --trigger sks --resume= c.yaml"),
        ("train --trigger=sks --overwrite --resume c.yaml", "train --trigger=sks --overwrite --resume= c.yaml"),
        ("train --resume step-000000100 c.yaml", "train --resume=step-000000100 c.yaml"),
        ("train --resume=x c.yaml", "train --resume=x c.yaml"),
        ("train c.yaml -- --resume", "train c.yaml -- --resume"),
        ("sample --prompt a", "sample --prompt a"),
    ],
)
def test_resume_has_a_value_or_none(words: str, read: str | None) -> None:
    expected = words.replace("--resume ", "--resume=") if read is None else read
    assert with_resume_value(words.split()) == expected.split()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--resume", "nowhere/step-000000001"], "nowhere/step-000000001: no such checkpoint"),
        (["--resume", "nowhere"], "nowhere: no such checkpoint"),
        (["--allow-change", "seed"], "--allow-change: means something only with --resume"),
        (
            ["--resume", "--allow-change", "sead"],
            "--allow-change sead: is no key of a configuration; did you mean seed",
        ),
        (["--resume", "--overwrite"], "--resume --overwrite: a run is either resumed or overwritten; choose one"),
    ],
)
def test_mistakes_about_resuming_are_one_line(
    config: RunConfig, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(config, tmp_path / "run.yaml")
    assert main(["train", str(tmp_path / "run.yaml"), *more]) == 2
    assert capsys.readouterr().err.startswith(f"veneer: error: {said}")
    assert not (config.output.dir / LOG).exists()


# the lock


def test_a_second_run_in_the_folder_is_refused(config: RunConfig) -> None:
    config.output.dir.mkdir()
    with locked(config.output.dir), raises_code("output.in_use", match=rf"another run \(process {os.getpid()} on "):
        run_training(config)
    assert list(config.output.dir.iterdir()) == []


def test_a_lock_that_a_dead_process_left_holds_nothing(config: RunConfig) -> None:
    config.output.dir.mkdir()
    (config.output.dir / LOCK).write_text("process 1 on nowhere")
    with locked(config.output.dir):
        assert f"process {os.getpid()}" in (config.output.dir / LOCK).read_text()
    assert not (config.output.dir / LOCK).exists()


def test_a_lock_is_given_back_by_a_run_that_fails(config: RunConfig) -> None:
    broken = config.model_copy(
        update={"adapter": config.adapter.model_copy(update={"target_modules": ("to_nothing",)})}
    )
    for _ in range(2):
        with raises_code("adapter.target_matches_nothing"):
            run_training(broken)
    assert not config.output.dir.exists()


def test_a_folder_that_cannot_be_locked_is_said_so(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with raises_code("output.not_lockable", "cannot be locked"), locked(tmp_path):
        pass


# the log


@dataclass(frozen=True)
class Note:
    text: str
    step: int = 0


def test_a_full_disk_stops_no_log_and_tears_no_line(tmp_path: Path) -> None:
    events: list[Any] = []
    emit = EventBus(events.append)
    with EventLog(tmp_path / LOG) as log:
        emit.open(log)
        emit(Note("first"))
        file, log._file = log._file, Short(log._file)  # type: ignore[assignment]
        emit(Note("second"))
        emit(Note("third"))
        log._file = file
        emit(Note("fourth"))
    assert [event["text"] for event in logged(tmp_path)] == ["first", "fourth"]
    assert [event for event in events if isinstance(event, Warned)] == [
        Warned(
            "log.not_written",
            "the log is not whole, for an event could not be written: [Errno 28] No space left on device",
        )
    ]
    assert isinstance(log.fault, OSError) and log.fault.errno == errno.ENOSPC


class Short:
    """A file on a disk with room for three bytes more."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, content: bytes) -> int:
        return int(self.file.write(content[:3]))

    def truncate(self, size: int) -> int:
        return int(self.file.truncate(size))


def test_what_comes_before_the_log_is_open_comes_first_in_it(tmp_path: Path) -> None:
    events: list[Any] = []
    emit = EventBus(events.append)
    emit(Note("early"))
    with EventLog(tmp_path / LOG) as log:
        emit.open(log)
        emit(Note("late"))
    assert [event["text"] for event in logged(tmp_path)] == ["early", "late"] == [event.text for event in events]


def test_a_name_that_is_no_text_is_logged_all_the_same(tmp_path: Path) -> None:
    with EventLog(tmp_path / LOG) as log:
        log(Note(os.fsdecode(b"caf\xe9.png")))
    assert logged(tmp_path)[0]["text"] == "caf\udce9.png"


@pytest.mark.parametrize(("step", "left"), [(0, 2), (1, 4), (2, 6), (3, 6)])
def test_a_log_is_cut_after_the_checkpoint(tmp_path: Path, step: int, left: int) -> None:
    path = tmp_path / LOG
    with EventLog(path) as log:
        log(Note("surveyed"))
        log(Note("planned"))
        for number in (1, 2):
            log(StepDone(number, 0.5, None, {}, 1.0))
            log(CheckpointDue(number))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "Warned", "text": "x"')
    cut_log(path, step)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:left])
    cut_log(tmp_path / "none", step)


def test_the_whole_run_is_the_same_after_a_stop(config: RunConfig, tmp_path: Path) -> None:
    train = config.train.model_copy(update={"checkpoint_every": 6})
    whole = config.model_copy(update={"train": train}).in_folder(tmp_path / "whole")
    run_training(whole)
    with pytest.raises(Interrupted):
        run_training(config, callback=signalling(signal.SIGTERM, 3))
    again = whole.in_folder(config.output.dir)
    run_training(again, resume=Resume())
    assert hashes(config.output.dir) == hashes(whole.output.dir)

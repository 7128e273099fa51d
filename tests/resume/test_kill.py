"""Killed again and again, at any moment, a run ends with the bits of the one that nobody touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.crash import machine
from tests.running import hashes, quick_config, steps_kept, use_base
from veneer.config.load import write_config
from veneer.config.schema import RunConfig
from veneer.family.registry import load_family
from veneer.rng import uniform
from veneer.run.folder import CHECKPOINTS
from veneer.run.lock import LOCK
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.events import StepDone

PROGRAM = "import sys; from veneer.cli.main import main; sys.exit(main(sys.argv[1:]))"


def long_config(base: Path, pictures: Path, output: Path, steps: int) -> RunConfig:
    random = {"adapter": {"dropout": 0.2}, "data": {"crop": "random", "flip": True, "caption_dropout": 0.3}}
    return quick_config(
        base,
        pictures,
        output,
        train={"max_steps": steps, "batch_size": 1, "lr_scheduler": "cosine", "warmup_steps": 3},
        **random,
    )


@pytest.mark.slow
def test_more_than_fifty_lives_that_die_at_each_call_to_the_disk(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th life loses power at its n-th write, sync, renaming or removal in the checkpoints' folder.

    So the first ones get no checkpoint done and die in every place of one, the later ones get some and die in a later.
    """
    family = load_family(str(tiny_base))
    use_base(monkeypatch, family)
    whole, often = (long_config(tiny_base, tiny_pictures, tmp_path / name, 66) for name in ("whole", "often"))
    steps: list[int] = []

    def count(event: object) -> None:
        if isinstance(event, StepDone):
            steps.append(event.step)

    run_training(whole)
    lives, dead = 0, True
    while dead:
        lives += 1
        with machine(often.output.dir / CHECKPOINTS, lives, loses_power=True) as here:
            run_training(often, resume=Resume(), callback=count)
        dead = here.dead
    assert lives > 50
    assert hashes(often.output.dir) == hashes(whole.output.dir)
    assert set(steps) == set(range(1, 67)) and len(steps) > 80  # some were done again, none was left out
    assert sorted(path.name for path in (often.output.dir / CHECKPOINTS).iterdir()) == [
        "step-000000065",
        "step-000000066",
    ]


def start(config: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, "train", str(config), *more]
    # a process that shells start in the background does not heed Ctrl-C, and neither would what it starts
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


def wait_for(process: subprocess.Popen[str], output: Path, step: int) -> None:
    while process.poll() is None and max(steps_kept(output), default=0) < step:
        time.sleep(0.002)


@pytest.mark.slow
def test_four_processes_killed_at_random(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    """By the kernel, each some steps and a fraction of a step after it was started; often while it writes."""
    whole, often = (long_config(tiny_base, tiny_pictures, tmp_path / name, 60) for name in ("whole", "often"))
    file = tmp_path / "often.yaml"
    write_config(often, file)
    for life in range(4):
        done = max(steps_kept(often.output.dir), default=0)
        process = start(file, "--resume")
        wait_for(process, often.output.dir, done + 1 + int(4 * uniform(life, "steps")))
        time.sleep(0.05 * uniform(life, "delay"))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert (often.output.dir / LOCK).exists()  # which is nobody's now
    assert 4 <= steps_kept(often.output.dir)[-1] < 60
    last = start(file, "--resume")
    out, err = last.communicate()
    assert last.returncode == 0, err
    assert "going on after step" in out
    run_training(whole)
    assert hashes(often.output.dir) == hashes(whole.output.dir)
    assert not (often.output.dir / LOCK).exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_asked_to_stop_keeps_its_step(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config = long_config(tiny_base, tiny_pictures, tmp_path / "run", 5000)
    config = config.model_copy(update={"train": config.train.model_copy(update={"checkpoint_every": 4})})
    write_config(config, tmp_path / "run.yaml")
    process = start(tmp_path / "run.yaml")
    wait_for(process, config.output.dir, 4)
    os.kill(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    (line,) = err.splitlines()
    stopped = f"veneer: stopped by {number.name} after step {steps_kept(config.output.dir)[-1]}"
    assert line.startswith(f"{stopped}; the last checkpoint is {config.output.dir}")
    assert line.endswith(f"; go on with: veneer train {tmp_path / 'run.yaml'} --resume")

"""Two processes end with the bits of one, and end together whatever happens to either."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import veneer.run.preparation
import veneer.run.result
import veneer.train.loop
from tests.distributed import Member, begin, commands, distributed
from tests.running import Killed, hashes, killing, logged, quick_config, steps_kept, use_base
from tests.training import write_mixed_pictures
from veneer.config.load import write_config
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.family.registry import load_family
from veneer.run.folder import LOG
from veneer.run.lock import LOCK
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.batches import BatchBuilder
from veneer.train.distributed import ProcessGroup
from veneer.train.events import StepDone
from veneer.weights.file import FILE_NAME

TRAIN: dict[str, Any] = {"max_steps": 4, "batch_size": 1, "gradient_accumulation_steps": 4, "max_grad_norm": 0.01}


@pytest.fixture(autouse=True)
def loaded_once(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forks have it from the test."""
    family = load_family(str(tiny_base))
    use_base(monkeypatch, family)


@pytest.fixture
def make(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    def config(name: str, **sections: Any) -> RunConfig:
        train = {**TRAIN, **sections.pop("train", {})}
        return quick_config(tiny_base, tiny_pictures, tmp_path / name, train=train, **sections)

    return config


def command(config: RunConfig, *more: str) -> list[str]:
    file = config.output.dir.with_suffix(".yaml")
    write_config(config, file)
    return ["train", str(file), *more]


def trained(count: int, config: RunConfig, *more: str, **options: Any) -> list[Member]:
    """Run a config by so many processes to its end, whatever that is."""
    return distributed(count, config.output.dir.parent / "said", commands(command(config, *more), **options))


def succeeded(count: int, config: RunConfig, *more: str, **options: Any) -> tuple[str, str]:
    members = trained(count, config, *more, **options)
    assert [member.code for member in members] == [0] * count, "".join(member.err for member in members)
    return hashes(config.output.dir)


RANDOM: dict[str, Any] = {"crop": "random", "flip": True, "caption_dropout": 0.3}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout, prior": {"adapter": {"dropout": 0.2}, "data": {**RANDOM, "prior": {"prompt": "a shape", "count": 2}}},
    "text encoder, recomputed": {
        "adapter": {"dropout": 0.3, "text_encoders": {"text_encoder": {"dropout": 0.2}}},
        "train": {"memory": "checkpoint", "lr_scheduler": "cosine", "warmup_steps": 1},
    },
    "bfloat16, average, samples": {"train": {"precision": "bfloat16", "ema_decay": 0.9}, "sample": {"every": 2}},
}
_SLOW = ("dropout, prior", "text encoder, recomputed", "bfloat16, average, samples")


@pytest.mark.parametrize(
    "variant",
    [pytest.param(VARIANTS[name], id=name, marks=[pytest.mark.slow] if name in _SLOW else []) for name in VARIANTS],
)
def test_two_processes_end_with_the_bits_of_one(make: Callable[..., RunConfig], variant: dict[str, Any]) -> None:
    assert succeeded(2, make("two", **variant)) == succeeded(1, make("one", **variant))


@pytest.mark.slow
def test_two_processes_do_the_passes_of_one_on_many_shapes(
    make: Callable[..., RunConfig], tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    """Class pictures have passes of their own there, each with dropout of its own."""
    mixed = write_mixed_pictures(tmp_path / "mixed")
    prior = {"prompt": "a shape", "count": 3, "path": str(tiny_pictures)}
    data = {"sources": [{"path": str(mixed)}], "flip": True, "crop": "random", "prior": prior}
    variant = {"data": data, "adapter": {"dropout": 0.2}}
    assert succeeded(2, make("two", **variant)) == succeeded(1, make("one", **variant))


@pytest.mark.slow
def test_two_processes_mask_as_one_does(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    mixed = write_mixed_pictures(tmp_path / "mixed")
    for path in sorted(mixed.glob("*.png"))[::2]:
        with Image.open(path) as image:
            mask = Image.linear_gradient("L").resize(image.size)
        mask.save(mixed / f"{path.stem}-masklabel.png")
    data = {"sources": [{"path": str(mixed), "masks": "beside"}], "trigger": "sks", "flip": True}
    variant = {"data": data, "objective": {"unmasked_weight": 0.1}}
    assert succeeded(2, make("two", **variant)) == succeeded(1, make("one", **variant))


@pytest.mark.slow
def test_four_processes_too_and_the_first_alone_speaks_and_writes(make: Callable[..., RunConfig]) -> None:
    config = make("four", sample={"every": 2})
    members = trained(4, config)
    assert [member.code for member in members] == [0, 0, 0, 0], members[0].err
    assert "held-out loss" in members[0].out and all(member.out == member.err == "" for member in members[1:])
    assert [event["step"] for event in logged(config.output.dir) if event["event"] == "StepDone"] == [1, 2, 3, 4]
    assert len(list((config.output.dir / "samples").iterdir())) == 4 and not (config.output.dir / LOCK).exists()
    assert hashes(config.output.dir) == succeeded(1, make("one"))


def test_all_have_the_result_and_only_the_first_is_told(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make("run")

    def work(rank: int) -> Any:
        events: list[object] = []
        result = run_training(config, callback=events.append)
        assert result.score is not None
        told = [str(result.adapter), result.sha256, str(result.sheet), result.score.pictures, result.score.mean]
        return [told, len(events)]

    first, second = distributed(2, tmp_path / "said", work)
    assert first.code == second.code == 0, first.err + second.err
    assert first.result[0] == second.result[0] and first.result[0][3] == 1
    assert first.result[1] > 10 and second.result[1] == 0


def killed_at(count: int, config: RunConfig, step: int, resume: Resume | None = None) -> None:
    """The first process is gone after a step, and the others notice."""

    def work(rank: int) -> None:
        try:
            run_training(config, resume=resume, callback=killing(StepDone, step))
        except Killed:
            os._exit(9)

    members = distributed(count, config.output.dir.parent / "said", work)
    assert [member.code for member in members] == [9] + [1] * (count - 1)
    assert all("PeerLost: another process of this run is gone" in member.err for member in members[1:])


@pytest.mark.slow
def test_a_run_goes_from_one_process_to_two_and_back(make: Callable[..., RunConfig]) -> None:
    sections: dict[str, Any] = {
        "adapter": {"dropout": 0.2},
        "train": {"max_steps": 8, "ema_decay": 0.9, "lr_scheduler": "linear"},
    }
    config = make("often", **sections)
    killed_at(1, config, 2)
    killed_at(2, config, 4, Resume())
    killed_at(1, config, 6, Resume())
    members = trained(2, config, "--resume")
    assert members[0].code == members[1].code == 0, members[0].err
    assert "going on after step 5" in members[0].out
    assert hashes(config.output.dir) == succeeded(1, make("whole", **sections))


# ends


def last_line(member: Member) -> str:
    """The only one on its standard error; gloo's own log may say before it whom it missed."""
    (line,) = [line for line in member.err.splitlines() if not line.startswith("[rank")]
    return line


def wait_for(path: Path, members: list[Member]) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, "".join(member.err for member in members)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "to"), [(signal.SIGTERM, [0, 1]), (signal.SIGTERM, [1]), (signal.SIGINT, [0])], ids=str
)
def test_a_signal_to_any_ends_all_after_the_same_step(
    make: Callable[..., RunConfig], number: signal.Signals, to: list[int]
) -> None:
    config = make("run", train={"max_steps": 5000, "checkpoint_every": 3})
    members = begin(2, config.output.dir.parent / "said", commands(command(config)))
    wait_for(config.output.dir / "checkpoints" / "step-000000003", members)
    for rank in to:
        os.kill(members[rank].pid, number)
    assert [member.wait() for member in members] == [128 + number] * 2, members[0].err + members[1].err
    step = steps_kept(config.output.dir)[-1]
    assert last_line(members[0]).startswith(
        f"veneer: stopped by {number.name} after step {step}; the last checkpoint is"
    )
    assert members[1].err == "" and not (config.output.dir / LOCK).exists()


@pytest.mark.slow
def test_a_launcher_that_repeats_its_signal_ends_all_after_the_same_step(make: Callable[..., RunConfig]) -> None:
    """A signal may reach one process long after another, and twice: from the terminal, and from the launcher."""
    config = make("run", train={"max_steps": 5000, "checkpoint_every": 3})
    members = begin(2, config.output.dir.parent / "said", commands(command(config)))
    wait_for(config.output.dir / "checkpoints" / "step-000000003", members)
    while any(member.is_running for member in members):
        for member in members:
            member.send(signal.SIGTERM)
        time.sleep(0.002)
    assert [member.code for member in members] == [143, 143], members[0].err + members[1].err
    step = steps_kept(config.output.dir)[-1]
    assert last_line(members[0]).startswith(f"veneer: stopped by SIGTERM after step {step}; the last checkpoint is")
    assert members[1].err == "" and not (config.output.dir / LOCK).exists()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("place", ["survey", "load_run_base"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_ends_all_in_one_line(
    make: Callable[..., RunConfig], count: int, place: str, number: signal.Signals
) -> None:
    """To the last process, amid what takes long there; the others are done with it, or have yet to begin."""
    config, reached = make("run"), make("run").output.dir.parent / "reached"

    def slow(*arguments: object) -> None:
        reached.touch()
        time.sleep(60)

    def prepare(rank: int) -> None:
        if rank == count - 1:
            setattr(veneer.run.preparation, place, slow)

    members = begin(count, config.output.dir.parent / "said", commands(command(config), prepare))
    wait_for(reached, members)
    os.kill(members[-1].pid, number)
    assert [member.wait() for member in members] == [128 + number] * count
    assert members[0].err == f"veneer: stopped by {number.name}\n"
    assert all(member.err == "" for member in members[1:])
    assert not (config.output.dir / LOG).exists() and not (config.output.dir / LOCK).exists()


def test_a_launcher_that_repeats_its_signal_before_training_ends_all_in_one_line(
    make: Callable[..., RunConfig],
) -> None:
    """Ctrl-C reaches each process from the terminal, and again from the launcher while they still part."""
    config, reached = make("run"), make("run").output.dir.parent / "reached"

    def slow(*arguments: object) -> None:
        reached.touch()
        time.sleep(60)

    def prepare(rank: int) -> None:
        veneer.run.preparation.survey = slow
        real = ProcessGroup.leave
        # the signal of the launcher comes while a process tells the others
        ProcessGroup.leave = lambda *report: (os.kill(os.getpid(), signal.SIGTERM), real(*report))  # type: ignore[method-assign, assignment, return-value]

    members = begin(2, config.output.dir.parent / "said", commands(command(config), prepare))
    wait_for(reached, members)
    for member in members:
        member.send(signal.SIGINT)
    assert [member.wait() for member in members] == [130, 130], members[0].err + members[1].err
    assert members[0].err == "veneer: stopped by SIGINT\n" and members[1].err == ""


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_while_the_result_is_painted_keeps_the_run(make: Callable[..., RunConfig], count: int) -> None:
    config = make("run", train={"checkpoint_every": 0})
    reached = config.output.dir.parent / "reached"

    def slow(*arguments: object) -> None:
        reached.touch()
        time.sleep(60)

    def prepare(rank: int) -> None:
        veneer.run.result.compare_pictures = slow

    members = begin(count, config.output.dir.parent / "said", commands(command(config), prepare))
    wait_for(reached, members)
    for member in members:
        os.kill(member.pid, signal.SIGTERM)
    assert [member.wait() for member in members] == [143] * count
    assert last_line(members[0]).startswith("veneer: stopped by SIGTERM after step 4; the last checkpoint is ")
    assert all(member.err == "" for member in members[1:])
    assert succeeded(count, config, "--resume") == succeeded(1, make("whole", train={"checkpoint_every": 4}))


def test_one_that_is_killed_ends_the_other_and_costs_no_step(make: Callable[..., RunConfig]) -> None:
    config = make("run", train={"max_steps": 5000, "checkpoint_every": 2000})
    members = begin(2, config.output.dir.parent / "said", commands(command(config)))
    wait_for(config.output.dir / LOG, members)
    while not any(event["event"] == "StepDone" for event in logged(config.output.dir)):
        time.sleep(0.01)
    os.kill(members[1].pid, signal.SIGKILL)
    assert [member.wait() for member in members] == [1, -signal.SIGKILL]
    (step,) = steps_kept(config.output.dir)
    steps = [event["step"] for event in logged(config.output.dir) if event["event"] == "StepDone"]
    assert step == steps[-1] > 0
    line = last_line(members[0])
    assert line.startswith("veneer: error: another process of this run is gone, or has not answered for 30 minutes;")
    assert line.endswith(f"the last checkpoint is {config.output.dir / 'checkpoints'}/step-{step:09d}")


def test_the_others_say_that_the_first_is_gone(make: Callable[..., RunConfig]) -> None:
    config = make("run", train={"max_steps": 5000, "checkpoint_every": 2})
    members = begin(2, config.output.dir.parent / "said", commands(command(config)))
    wait_for(config.output.dir / "checkpoints" / "step-000000002", members)
    os.kill(members[0].pid, signal.SIGKILL)
    assert [member.wait() for member in members] == [-signal.SIGKILL, 1]
    line = last_line(members[1])
    assert line.startswith("veneer: error: process 1: another process of this run is gone, or has not")
    assert f"; the last checkpoint is {config.output.dir / 'checkpoints'}/step-" in line


def spoiling(step: int, place: int, **change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int], None]:
    """Change one micro-batch of a step, whoever has it."""
    micros = BatchBuilder.micro_batches

    def spoiled(feed: BatchBuilder, number: int) -> list[Any]:
        found, (rank, count) = micros(feed, number), (feed.processes.rank, feed.processes.count)
        for turn, micro in enumerate(found):
            if number == step and rank + turn * count == place:
                found[turn] = replace(micro, **{name: to(getattr(micro, name)) for name, to in change.items()})
        return found

    return lambda rank: setattr(BatchBuilder, "micro_batches", spoiled)


NAN = spoiling(2, 1, latents=lambda latent: latent * float("nan"))
LARGE = spoiling(2, 3, weight_B=lambda weight: weight * 1e38)


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "what"), [(NAN, "loss"), (LARGE, "gradient")], ids=["loss", "gradient"])
def test_a_number_that_is_not_finite_ends_all_and_is_told_as_by_one(
    make: Callable[..., RunConfig], spoil: Callable[[int], None], what: str
) -> None:
    said = []
    for count in (1, 2):
        config = make(f"run{count}")
        members = trained(count, config, prepare=spoil)
        assert [member.code for member in members] == [2] * count, members[0].err
        assert all(member.err == "" for member in members[1:])
        assert steps_kept(config.output.dir) == [1, 2]
        said.append(last_line(members[0]).replace(str(config.output.dir), "OUTPUT"))
    assert said[0] == said[1]
    assert said[0].startswith(f"veneer: error: step 3: the {what} is not finite, with ") and " at time 0." in said[0]
    assert said[0].count(" at time 0.") == (1 if what == "loss" else 4)
    assert said[0].endswith("the last checkpoint is OUTPUT/checkpoints/step-000000002")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [NAN, LARGE], ids=["loss", "gradient"])
def test_all_skip_such_a_step(make: Callable[..., RunConfig], spoil: Callable[[int], None]) -> None:
    train = {"on_nonfinite": "skip", "ema_decay": 0.9}
    two, one = (succeeded(count, make(f"run{count}", train=train), prepare=spoil) for count in (2, 1))
    assert two == one != succeeded(1, make("whole", train=train))


def failing(fault: Exception, rank: int, place: str = "preparation.survey") -> Callable[[int], None]:
    module, _, name = place.partition(".")

    def fail(*arguments: object) -> None:
        raise fault

    return lambda here: setattr(sys.modules[f"veneer.run.{module}"], name, fail) if here == rank else None


def test_a_mistake_that_only_one_sees_is_told_by_the_first(make: Callable[..., RunConfig]) -> None:
    config = make("run")
    first, second = trained(
        2, config, prepare=failing(UserError("a disk is missing", code="test.disk", where="/data"), 1)
    )
    assert (first.code, second.code) == (2, 2)
    assert first.err == "veneer: error: process 1 of 2: /data: a disk is missing\n" and second.err == ""
    assert not config.output.dir.exists()


def test_a_fault_of_the_first_ends_the_others_in_silence(make: Callable[..., RunConfig]) -> None:
    first, second = trained(
        2, make("run"), prepare=failing(OSError(28, "No space left", "disk"), 0, "session.write_result")
    )
    assert (first.code, second.code) == (1, 1)
    assert first.err == "veneer: error: disk: No space left\n" and second.err == ""


def test_a_fault_of_the_program_has_its_traceback(make: Callable[..., RunConfig]) -> None:
    first, second = trained(2, make("run"), prepare=failing(RuntimeError("a bug"), 1))
    assert (first.code, second.code) == (1, 1)
    assert first.err == "veneer: error: process 1 of 2: RuntimeError: a bug\n"
    assert "Traceback" in second.err and "a bug" in second.err


def test_a_step_that_cannot_be_shared_out_is_refused_before_anything(make: Callable[..., RunConfig]) -> None:
    config = make("run", train={"batch_size": 6, "gradient_accumulation_steps": 1})
    first, second = trained(2, config)
    assert (first.code, second.code, second.err) == (2, 2, "")
    assert last_line(first).endswith("2 processes; use train.gradient_accumulation_steps=2 train.batch_size=3")
    assert not config.output.dir.exists()


def test_processes_that_see_other_pictures_are_refused(make: Callable[..., RunConfig], tiny_pictures: Path) -> None:
    config = make("run")

    def prepare(rank: int) -> None:
        if rank == 1:
            for captions in tiny_pictures.glob("metadata.jsonl"):
                text = captions.read_text().replace("a red", "one red")
                captions_of_its_own = config.output.dir.parent / "elsewhere"
                captions_of_its_own.mkdir()
                for picture in tiny_pictures.glob("*.png"):
                    os.link(picture, captions_of_its_own / picture.name)
                (captions_of_its_own / "metadata.jsonl").write_text(text)
            real = veneer.run.preparation.survey
            other = config.data.sources[0].model_copy(update={"path": captions_of_its_own})
            spoiled = config.data.model_copy(update={"sources": (other,)})
            veneer.run.preparation.survey = lambda data, *rest: real(spoiled, *rest)

    first, second = trained(2, config, prepare=prepare)
    assert (first.code, second.code, second.err) == (2, 2, "")
    assert "data.sources: process 1 has another one than process 0; let every process see the same" in first.err


@pytest.mark.slow
def test_processes_that_compute_otherwise_write_no_checkpoint(make: Callable[..., RunConfig]) -> None:
    config = make("run")
    real = veneer.train.loop.set_rates

    def prepare(rank: int) -> None:
        veneer.train.loop.set_rates = lambda optimizer, factor: real(optimizer, factor * (1 + rank / 1e6))

    first, second = trained(2, config, prepare=prepare)
    assert (first.code, second.code, second.err) == (2, 2, "")
    assert last_line(first).startswith("veneer: error: step 1: the processes have come to different numbers;")
    assert steps_kept(config.output.dir) == []


def test_a_second_run_in_the_folder_is_refused_by_all(make: Callable[..., RunConfig]) -> None:
    config = make("run")
    config.output.dir.mkdir()
    (config.output.dir / FILE_NAME).write_bytes(b"earlier")
    first, second = trained(2, config)
    assert (first.code, second.code, second.err) == (2, 2, "")
    assert "already holds a result" in last_line(first)


@pytest.mark.slow
def test_other_threads_are_told_at_a_resume(make: Callable[..., RunConfig]) -> None:
    config = make("run")
    killed_at(1, config, 2)
    out = trained(1, config, "--resume", prepare=lambda rank: setattr(torch, "get_num_threads", lambda: 2))[0].out
    assert "made with 1 threads a process, here are 2, which may end in other bits; see OMP_NUM_THREADS" in out


@pytest.mark.slow
def test_torchrun_forwards_sigterm_and_one_process_goes_on(make: Callable[..., RunConfig]) -> None:
    """The launcher itself, as in the documents.

    By itself it kills what has not ended 30 seconds after the signal, which is no time on a machine that is busy with
    other tests: there a stop was seen to take 50. So it is told to wait, and nothing here is measured by a clock.
    """
    config = make("run", train={"max_steps": 5000, "checkpoint_every": 2})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--shutdown-timeout", "3600", "-m", "veneer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*launcher, *command(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while process.poll() is None and max(steps_kept(config.output.dir), default=0) < 2:
        time.sleep(0.02)
    process.terminate()
    _, err = process.communicate()
    assert process.returncode != 0
    step = steps_kept(config.output.dir)[-1]
    (line,) = (line for line in err.splitlines() if line.startswith("veneer"))
    assert line.startswith(f"veneer: stopped by SIGTERM after step {step}; the last checkpoint is")
    assert not (config.output.dir / LOCK).exists()
    assert succeeded(1, config, "--resume", f"train.max_steps={step + 1}") == succeeded(
        1, make("whole", train={"max_steps": step + 1, "checkpoint_every": 2})
    )


@pytest.mark.slow
def test_the_documents_commands(
    make: Callable[..., RunConfig], tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, and the second goes on with what the first has left."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "resume.md").read_text("utf-8")
    block = re.search(r"^<!-- commands: tested -->\n```sh\n(.*?)^```", page, re.S | re.M)
    assert block
    written = make("runs", train={"max_steps": 3})
    write_config(written, Path("style.yaml"))
    for line in block[1].splitlines():
        threads, *words = shlex.split(line)
        assert threads == "OMP_NUM_THREADS=1"
        count = int(words[words.index("--nproc-per-node") + 1]) if words[0] == "torchrun" else 1
        arguments = words[words.index("train") :]
        assert words[: -len(arguments)] in (["veneer"], ["torchrun", "--nproc-per-node", str(count), "-m", "veneer"])
        members = distributed(count, tmp_path / "said", commands(arguments))
        assert [member.code for member in members] == [0] * count, members[0].err
    assert hashes(written.output.dir) == succeeded(
        1, make("alone", train={"max_steps": 3, "batch_size": 2, "gradient_accumulation_steps": 2})
    )


@pytest.mark.slow
def test_the_documents_ways_to_resume(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "resume.md").read_text("utf-8")
    ways = re.findall(r"^\| `veneer (train [^`]*)` \|", page, re.M)
    assert len(ways) == 3
    stopped = make("run")
    killed_at(1, stopped, 2)
    kept = Path(shutil.copytree(stopped.output.dir, tmp_path / "kept"))
    for way in ways:
        shutil.rmtree(stopped.output.dir)
        shutil.copytree(kept, stopped.output.dir)
        words = command(stopped, *way.replace("step-000000100", "step-000000001").split()[2:])
        words = [word.replace("OUTPUT", str(stopped.output.dir)) for word in words]
        (ended,) = distributed(1, tmp_path / "said", commands(words))
        assert ended.code == 0, ended.err
        assert ("going on after step 1" in ended.out) == ("--resume" in way)
    file = str(stopped.output.dir / FILE_NAME)
    assert "`veneer adapter verify FILE`" in page
    assert distributed(1, tmp_path / "said", commands(["adapter", "verify", file]))[0].code == 0

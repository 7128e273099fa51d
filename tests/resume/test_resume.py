"""A run that was stopped goes on to the same bits, or says why it does not."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import veneer.run.session
from tests.errors import raises_code
from tests.plans import changed
from tests.running import hashes, killed, logged, quick_config, record_events, steps_kept, use_base
from veneer.config.load import load_config
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.run.events import CheckpointSaved, Resumed
from veneer.run.folder import CHECKPOINTS, CONFIG, LOG
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.batches import BatchBuilder
from veneer.train.events import StepDone, StepSkipped, Warned
from veneer.train.step import NonFinite
from veneer.weights.checkpoint import MANIFEST, STATE, _with_hash
from veneer.weights.file import FILE_NAME

NEWEST = Resume()


@pytest.fixture(autouse=True)
def loaded_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run gives the base its bits back, so one is enough for all."""
    use_base(monkeypatch, family)


@pytest.fixture
def config(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> RunConfig:
    return quick_config(tiny_base, tiny_pictures, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Hashes of the run that nobody interrupted."""
    output = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        loaded = load_family(str(tiny_base))
        use_base(patch, loaded)
        run_training(quick_config(tiny_base, tiny_pictures, output))
    return hashes(output)


def warnings(events: list[Any]) -> list[str]:
    """All but the plan's, which depends on how much memory other programs leave free."""
    return [event.text for event in events if isinstance(event, Warned) and event.code != "plan.does_not_fit"]


def checkpoint(config: RunConfig, step: int) -> Path:
    return config.output.dir / CHECKPOINTS / f"step-{step:09d}"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "checkpointing": {"train": {"memory": "checkpoint"}},
    "average": {"train": {"ema_decay": 0.9}, "sample": {"every": 2}},
    "text encoder and dropout": {"adapter": {"text_encoders": {"text_encoder": {"dropout": 0.2}}, "dropout": 0.3}},
    "cosine": {"train": {"lr_scheduler": "cosine", "warmup_steps": 2}, "data": {"crop": "random", "flip": True}},
}
VARIANTS["augmented"] = {
    "data": {
        "crop_jitter": 0.2,
        "color_jitter": {"brightness": 0.1, "hue": 0.05},
        "caption_template": ["a photo of {caption}", "{caption}"],
    }
}
SLOW = ("bfloat16", "checkpointing", "average", "augmented")
"""Those that ``tests/unit/test_train_loop.py`` resumes without a run's folder."""


@pytest.mark.parametrize(
    "variant",
    [pytest.param(value, marks=[pytest.mark.slow] if name in SLOW else []) for name, value in VARIANTS.items()],
    ids=VARIANTS,
)
def test_a_killed_run_goes_on_to_the_same_bits(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, variant: dict[str, Any]
) -> None:
    one, two = (quick_config(tiny_base, tiny_pictures, tmp_path / name, **variant) for name in ("one", "two"))
    two = changed(two, "train", checkpoint_every=2)
    run_training(one)
    killed(two, StepDone, 3)
    events = record_events(two, NEWEST)
    assert [event.step for event in events if isinstance(event, Resumed)] == [2]
    assert hashes(two.output.dir) == hashes(one.output.dir)


@pytest.mark.slow
def test_a_killed_run_of_shuffled_tags_goes_on_to_the_same_bits(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    source = {"path": str(tiny_pictures), "shuffle_tags": True, "tag_separator": " ", "tag_dropout": 0.3}
    data = {"sources": [source], "caption_dropout": 0.1}
    one, two = (quick_config(tiny_base, tiny_pictures, tmp_path / name, data=data) for name in ("one", "two"))
    run_training(one)
    killed(two, StepDone, 3)
    record_events(two, NEWEST)
    assert hashes(two.output.dir) == hashes(one.output.dir)
    source["keep_tags"] = 1
    with raises_code("resume.run_changed"):
        record_events(quick_config(tiny_base, tiny_pictures, tmp_path / "two", data=data), NEWEST)


def test_resuming_what_has_not_begun_begins_and_says_so(config: RunConfig, whole: tuple[str, str]) -> None:
    events = record_events(config, NEWEST)
    assert warnings(events) == [f"no checkpoint in {config.output.dir} yet, so the run starts from its beginning"]
    assert not [event for event in events if isinstance(event, Resumed)]
    assert hashes(config.output.dir) == whole


def test_a_finished_run_that_is_resumed_ends_the_same(config: RunConfig, whole: tuple[str, str]) -> None:
    """So a script may call until the command succeeds, also if it died between the last step and the last picture."""
    killed(config, CheckpointSaved, 6)
    assert not (config.output.dir / FILE_NAME).exists()
    for _ in range(2):
        events = record_events(config, NEWEST)
        assert not [event for event in events if isinstance(event, StepDone)]
        assert hashes(config.output.dir) == whole


def test_an_unfinished_run_is_not_started_over_unasked(config: RunConfig, whole: tuple[str, str]) -> None:
    killed(config, StepDone, 3)
    with raises_code("output.has_checkpoints", "unfinished run; --resume goes on with it, --overwrite starts over"):
        run_training(config)
    assert steps_kept(config.output.dir) == [1, 2]
    events = record_events(config, overwrite=True)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]
    assert hashes(config.output.dir) == whole


def test_resume_and_overwrite_contradict(config: RunConfig) -> None:
    with raises_code("resume.contradiction", "choose one"):
        run_training(config, overwrite=True, resume=NEWEST)


def test_a_result_without_checkpoints_is_not_overwritten_by_a_resume(config: RunConfig) -> None:
    config.output.dir.mkdir()
    (config.output.dir / FILE_NAME).write_bytes(b"earlier")
    with raises_code("output.has_result"):
        run_training(config, resume=NEWEST)
    assert (config.output.dir / FILE_NAME).read_bytes() == b"earlier"


def test_as_many_are_kept_as_asked(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    config = quick_config(tiny_base, tiny_pictures, tmp_path / "run", train={"keep_checkpoints": 3})
    run_training(config)
    assert steps_kept(config.output.dir) == [4, 5, 6]


def test_none_is_written_if_none_is_wanted(config: RunConfig, whole: tuple[str, str]) -> None:
    run_training(changed(config, "train", checkpoint_every=0))
    assert not (config.output.dir / CHECKPOINTS).exists()


# a named checkpoint


def test_a_named_checkpoint_is_gone_on_from(config: RunConfig, whole: tuple[str, str]) -> None:
    killed(config, StepDone, 4)
    events = record_events(config, Resume(checkpoint(config, 3)))
    assert Resumed(3, checkpoint(config, 3)) in events
    assert hashes(config.output.dir) == whole


@pytest.mark.parametrize("damage", ["missing", "flipped", "file"])
def test_a_named_checkpoint_that_is_not_whole_never_starts_over(config: RunConfig, damage: str) -> None:
    killed(config, StepDone, 4)
    named = checkpoint(config, 9) if damage == "missing" else checkpoint(config, 3)
    if damage == "flipped":
        flip(named / STATE)
    if damage == "file":
        named = named / STATE
    with raises_code("checkpoint.damaged" if damage == "flipped" else "checkpoint.not_found") as caught:
        run_training(config, resume=Resume(named))
    assert str(named) in str(caught.value)
    assert steps_kept(config.output.dir) == [2, 3]


def test_a_named_checkpoint_with_newer_ones_is_refused(config: RunConfig) -> None:
    killed(config, StepDone, 4)
    text = r"is not the newest checkpoint, which is step-000000003; choose another output"
    with raises_code("checkpoint.not_newest", match=text):
        run_training(config, resume=Resume(checkpoint(config, 2)))
    assert steps_kept(config.output.dir) == [2, 3]


def test_a_named_checkpoint_branches_off_into_another_folder(
    config: RunConfig, tmp_path: Path, whole: tuple[str, str]
) -> None:
    killed(config, StepDone, 4)
    branch = config.in_folder(tmp_path / "branch")
    record_events(branch, Resume(checkpoint(config, 2)))
    assert hashes(branch.output.dir) == whole
    assert steps_kept(config.output.dir) == [2, 3]
    with raises_code("output.has_result"):
        run_training(branch, resume=Resume(checkpoint(config, 2)))


# damage


def test_a_torn_checkpoint_is_passed_over_with_a_word(config: RunConfig, whole: tuple[str, str]) -> None:
    killed(config, StepDone, 4)
    (checkpoint(config, 3) / MANIFEST).unlink()
    events = record_events(config, NEWEST)
    (word,) = warnings(events)
    assert "passed over" in word and str(checkpoint(config, 3)) in word and "has no manifest.json" in word
    assert [event.step for event in events if isinstance(event, Resumed)] == [2]
    assert hashes(config.output.dir) == whole
    assert word in [event.get("text") for event in logged(config.output.dir)]


def test_a_machine_without_free_memory_adds_its_own_word_and_changes_no_bit(
    config: RunConfig, whole: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs decide how much is free, so a plan's warning may stand beside any other at any time."""
    killed(config, StepDone, 4)
    (checkpoint(config, 3) / MANIFEST).unlink()
    assess = veneer.run.session.assess_run
    full = "needs 9 GB, free are 1 MB"
    monkeypatch.setattr(
        veneer.run.session, "assess_run", lambda *run: SimpleNamespace(plan=assess(*run).plan, warning=full)
    )
    events = record_events(config, NEWEST)
    codes = [event.code for event in events if isinstance(event, Warned)]
    assert sorted(codes) == ["checkpoint.passed_over", "plan.does_not_fit"]
    assert len(warnings(events)) == 1 and hashes(config.output.dir) == whole


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over_unasked(config: RunConfig) -> None:
    killed(config, StepDone, 4)
    for step in (2, 3):
        flip(checkpoint(config, step) / STATE)
    with raises_code(
        "checkpoint.none_whole", match=r"none of its 2 checkpoints is whole.*is damaged.*--overwrite starts over"
    ):
        run_training(config, resume=NEWEST)


# what changed


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("adapter", {"dropout": 0.5}, "adapter.dropout: 0.0 -> 0.5"),
        ("train", {"batch_size": 3}, "train.batch_size: 2 -> 3"),
        ("train", {"max_grad_norm": None}, "train.max_grad_norm: 1.0 -> not set"),
        ("data", {"flip": True, "caption_dropout": 0.5}, "data.flip: False -> True, data.caption_dropout: 0.0 -> 0.5"),
    ],
)
def test_a_changed_setting_is_refused_by_name(
    config: RunConfig, section: str, values: dict[str, Any], said: str
) -> None:
    killed(config, StepDone, 2)
    with raises_code("resume.run_changed") as caught:
        run_training(changed(config, section, **values), resume=NEWEST)
    assert f"the run has changed since then: {said}; undo it, or --allow-change" in str(caught.value)


def test_a_changed_setting_may_be_let_through(config: RunConfig, whole: tuple[str, str]) -> None:
    killed(config, StepDone, 2)
    other = changed(config, "train", batch_size=3, max_grad_norm=2.0)
    with raises_code("resume.run_changed", match=r"then: train\.max_grad_norm: 1\.0 -> 2\.0;"):
        run_training(other, resume=Resume(allow=("train.batch_size",)))
    run_training(other, resume=Resume(allow=("train",)))
    assert load_config(config.output.dir / CONFIG).train.batch_size == 3
    assert hashes(config.output.dir) != whole


def test_what_does_not_shape_the_adapter_may_change(
    config: RunConfig, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, whole: tuple[str, str]
) -> None:
    """Base and pictures may have moved as well: they are known by what is in them."""
    killed(config, StepDone, 3)
    for name, place in (("base", tiny_base), ("pictures", tiny_pictures)):
        shutil.copytree(place, tmp_path / "moved" / name)
    shutil.move(config.output.dir, tmp_path / "moved" / "run")
    moved = quick_config(
        tmp_path / "moved" / "base",
        tmp_path / "moved" / "pictures",
        tmp_path / "moved" / "run",
        train={"checkpoint_every": 3, "keep_checkpoints": 1, "on_nonfinite": "skip"},
        sample={"every": 4},
    )
    record_events(moved, NEWEST)
    assert hashes(moved.output.dir)[1] == whole[1]
    assert steps_kept(moved.output.dir) == [6]


def test_changed_pictures_are_refused(config: RunConfig, tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    killed(config, StepDone, 2)
    shutil.copytree(tiny_pictures, tmp_path / "pictures")
    text = (tmp_path / "pictures" / "metadata.jsonl").read_text()
    (tmp_path / "pictures" / "metadata.jsonl").write_text(text.replace("a red", "one red"))
    other = quick_config(tiny_base, tmp_path / "pictures", config.output.dir)
    with raises_code(
        "resume.run_changed", match=r"then: data\.sources: [0-9a-f]{12} -> [0-9a-f]{12}; .*data\.sources if"
    ):
        run_training(other, resume=NEWEST)
    run_training(other, resume=Resume(allow=("data.sources",)))


def test_another_base_is_refused(
    config: RunConfig, tiny_base_v: Path, tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(config, StepDone, 2)
    shutil.copytree(tiny_base_v, config.output.dir / "base")
    weights = next((config.output.dir / "base" / "vae").glob("*.safetensors"))
    flip(weights)
    with raises_code("resume.run_changed", match=r"then: base: [0-9a-f]{12} -> [0-9a-f]{12};"):
        run_training(quick_config(config.output.dir / "base", tiny_pictures, config.output.dir), resume=NEWEST)


def test_a_base_with_other_settings_is_refused_by_their_names(
    config: RunConfig, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(config, StepDone, 2)
    base = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    other = load_family(str(base))
    use_base(monkeypatch, other)
    changed = config.model_copy(update={"base": str(base)})
    named = r"then: base\.scheduler\.prediction_type: epsilon -> v_prediction; undo it, or --allow-change base if"
    with raises_code("resume.run_changed", match=named):
        run_training(changed, resume=NEWEST)
    run_training(changed, resume=Resume(allow=("base",)))


def as_of_an_older_release(config: RunConfig, step: int) -> None:
    """Rewrite a checkpoint's manifest as the first format had it, under the names that settings had then."""
    path = checkpoint(config, step) / MANIFEST
    manifest = json.loads(path.read_text("utf-8"))
    provenance = manifest.pop("provenance")
    old = {
        "config": {"train": {"steps": 6}},
        "hashes": provenance["hashes"],
        "version": "0.0.9",
        "threads": 1,
        "base": {},
    }
    del manifest["sha256"]
    path.write_bytes(_with_hash({**manifest, **old, "format": 1}))


@pytest.mark.parametrize("named", [False, True])
def test_a_run_of_an_older_release_is_refused_in_one_line_and_kept(config: RunConfig, named: bool) -> None:
    killed(config, StepDone, 4)
    for step in (2, 3):
        as_of_an_older_release(config, step)
    with raises_code("checkpoint.old_format") as caught:
        run_training(config, resume=Resume(checkpoint(config, 3) if named else None))
    assert str(caught.value) == (
        f"{checkpoint(config, 3)}: is by Veneer 0.0.9, from whose checkpoints this release cannot go on; "
        "finish the run with that release, or start over with --overwrite"
    )
    assert steps_kept(config.output.dir) == [2, 3]
    run_training(config, overwrite=True)


def test_a_checkpoint_with_settings_that_no_release_has_is_refused_in_one_line(config: RunConfig) -> None:
    killed(config, StepDone, 3)
    path = checkpoint(config, 2) / MANIFEST
    manifest = json.loads(path.read_text("utf-8"))
    del manifest["sha256"]
    manifest["provenance"]["config"]["train"]["warp"] = 9
    path.write_bytes(_with_hash(manifest))
    with raises_code("checkpoint.unknown_settings") as caught:
        run_training(config, resume=NEWEST)
    assert "whose settings this release does not know (settings: train.warp: no such key)" in str(caught.value)


@pytest.mark.parametrize("aspect", ["buckets", "square"])
def test_a_run_of_before_there_were_buckets_goes_on_and_says_what_may_differ(config: RunConfig, aspect: str) -> None:
    config = changed(config, "data", aspect=aspect)
    killed(config, StepDone, 3)
    path = checkpoint(config, 2) / MANIFEST
    manifest = json.loads(path.read_text("utf-8"))
    for key in ("sha256", "provenance.config.data.aspect", "provenance.config.data.upscale"):
        *above, last = key.split(".")
        section = manifest
        for name in above:
            section = section[name]
        del section[last]
    path.write_bytes(_with_hash(manifest))
    resume = NEWEST if aspect == "buckets" else Resume(allow=("data.aspect",))
    told = [event.code for event in record_events(config, resume) if isinstance(event, Warned)]
    assert ("checkpoint.cut_squares" in told) == (aspect == "buckets")


@pytest.mark.slow
def test_more_steps_are_fine_where_the_rate_does_not_fall(config: RunConfig, whole: tuple[str, str]) -> None:
    """The run of six steps is the beginning of the run of eight, so the latter may go on from it."""
    run_training(changed(config, "train", max_steps=8))
    eight = hashes(config.output.dir)
    run_training(config, overwrite=True)
    assert hashes(config.output.dir) == whole
    run_training(changed(config, "train", max_steps=8), resume=NEWEST)
    assert hashes(config.output.dir) == eight


def test_other_steps_are_refused_where_the_rate_falls_towards_the_last(config: RunConfig) -> None:
    falling = changed(config, "train", lr_scheduler="linear")
    killed(falling, StepDone, 3)
    with raises_code("resume.run_changed", match=r"train\.max_steps: 6 -> 8;"):
        run_training(changed(falling, "train", max_steps=8), resume=NEWEST)


def test_fewer_steps_than_are_done_are_refused(config: RunConfig) -> None:
    killed(config, StepDone, 5)
    with raises_code("resume.fewer_steps", match=r"4 steps are done, and train\.max_steps is 3"):
        run_training(changed(config, "train", max_steps=3), resume=Resume(allow=("train.max_steps",)))


def test_a_key_that_no_config_has_allows_nothing() -> None:
    with raises_code(
        "config.unknown_key", match=r"--allow-change train\.bach: is no key.*did you mean train\.batch_size\?"
    ):
        Resume(allow=("train.bach",))


@pytest.mark.slow
def test_another_release_is_told(config: RunConfig, monkeypatch: pytest.MonkeyPatch, whole: tuple[str, str]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("veneer.run.identity.__version__", "0.0.9")
        killed(config, StepDone, 2)
    assert any("by Veneer 0.0.9, this is" in word for word in warnings(record_events(config, NEWEST)))
    assert hashes(config.output.dir) == whole


# the log


def test_the_log_tells_each_step_once(config: RunConfig) -> None:
    killed(config, StepDone, 3)
    with (config.output.dir / LOG).open("ab") as log:
        log.write(b'{"event": "StepDo')  # the kill came in the middle of a line
    record_events(config, NEWEST)
    events = logged(config.output.dir)
    names = [event["event"] for event in events]
    assert [event["step"] for event in events if event["event"] == "StepDone"] == [1, 2, 3, 4, 5, 6]
    formats = len(config.output.formats)
    assert names.count("Planned") == 2 and names.count("Finished") == 1 and names.count("AdapterSaved") == formats
    there = names.index("Resumed")
    assert events[there]["step"] == 2 and events[there - 2]["event"] == "CheckpointSaved"
    record_events(config, NEWEST)
    names = [event["event"] for event in logged(config.output.dir)]
    assert names.count("Finished") == 1 and names.count("AdapterSaved") == formats and names.count("Resumed") == 2


# disks and numbers


def full_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No room for a checkpoint of that name."""
    write = os.write

    def full(descriptor: int, content: Any) -> int:
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", full)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, whole: tuple[str, str]
) -> None:
    full_for(monkeypatch, "step-000000004")
    events = record_events(config)
    (word,) = warnings(events)
    assert word == (
        f"no checkpoint of step 4: {checkpoint(config, 4)}: cannot be written: No space left on device; "
        f"the last checkpoint is {checkpoint(config, 3)}"
    )
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [1, 2, 3, 5, 6]
    assert hashes(config.output.dir) == whole


def test_a_folder_that_takes_no_checkpoints_is_said_to(config: RunConfig) -> None:
    config.output.dir.mkdir()
    (config.output.dir / CHECKPOINTS).touch()
    words = warnings(record_events(config))
    assert len(words) == 6 and all("cannot be written" in word and "no checkpoint yet" in word for word in words)
    assert (config.output.dir / FILE_NAME).exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_last_checkpoint(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    micros = BatchBuilder.micro_batches

    def broken(feed: BatchBuilder, step: int) -> list[Any]:
        found = micros(feed, step)
        if step == 3:
            found[0].latents.mul_(float("nan"))
        return found

    monkeypatch.setattr(BatchBuilder, "micro_batches", broken)
    text = r"step 4: the loss.*at time 0.*on_nonfinite=skip; the last checkpoint is"
    with pytest.raises(NonFinite, match=text) as caught:
        run_training(config)
    fault = caught.value
    assert str(fault).endswith(str(checkpoint(config, 3)))
    assert (fault.code, fault.step, len(fault.samples)) == ("train.loss_not_finite", 4, 2)
    events = record_events(changed(config, "train", on_nonfinite="skip"), NEWEST)
    (skipped,) = [event for event in events if isinstance(event, StepSkipped)]
    assert (skipped.step, skipped.reason) == (4, "loss_not_finite")
    with raises_code("resume.run_changed", match=r"train\.on_nonfinite: skip -> stop"):
        run_training(config, resume=NEWEST)


def test_an_adapter_that_learned_nothing_is_no_result(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    """A rate that float32 takes for zero."""
    rate = {"train": {"learning_rate": 1e-60}}
    config = quick_config(tiny_base, tiny_pictures, tmp_path / "run", **rate)
    with raises_code("adapter.untrained", "it is as it started on every layer, so nothing was learned"):
        run_training(config)
    assert not (config.output.dir / FILE_NAME).exists()


def test_an_adapter_that_is_not_finite_is_no_result(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    """Its last update made B so large that B alpha/r is infinite, and no loss comes after it to tell."""
    large: dict[str, Any] = {"train": {"learning_rate": 3e37, "max_steps": 1}, "adapter": {"alpha": 80.0}}
    config = quick_config(tiny_base, tiny_pictures, tmp_path / "run", **large)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        run_training(config)
    assert not (config.output.dir / FILE_NAME).exists()

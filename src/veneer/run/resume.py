"""The start of a run: nothing, or a checkpoint of the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer.config.fingerprint import differences, training_settings
from veneer.config.keys import known_keys, nearest
from veneer.config.load import build_config
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.files import opens_paths
from veneer.run.events import Callback
from veneer.run.folder import CHECKPOINTS, claim
from veneer.run.identity import BASE, HASHES, Identity
from veneer.train.events import Warned
from veneer.weights.checkpoint import OLD_FORMAT, Checkpoint, Provenance, newest_checkpoint, read_checkpoint

__all__ = ["Resume", "StartOptions", "check_same", "find_start", "newest_whole"]


@opens_paths
@dataclass(frozen=True)
class Resume:
    """The user's wish to go on with a run.

    Attributes:
        path: the checkpoint; None: the newest whole one in the output folder, or none if there is none yet.
        allow: keys of the config, or sections, that may differ from the checkpoint's run.
    """

    path: Path | None = None
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a key that no config has: it would allow nothing."""
        for key in self.allow:
            if key not in known_keys():
                meant = nearest(tuple(key.split(".")))
                remedy = f"did you mean {meant}?" if meant else None
                where = f"--allow-change {key}"
                raise UserError("is no key of a configuration", code="config.unknown_key", where=where, remedy=remedy)


@dataclass(frozen=True)
class StartOptions:
    """The user's choice where a run starts.

    Attributes:
        resume: go on from a checkpoint; None: start from nothing.
        overwrite: what the folder holds may go.
    """

    resume: Resume | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse a contradiction."""
        if self.resume is not None and self.overwrite:
            what = "a run is either resumed or overwritten"
            raise UserError(what, code="resume.contradiction", where="--resume --overwrite", remedy="choose one")

    @property
    def allow(self) -> tuple[str, ...]:
        """Keys that may differ from the checkpoint's run."""
        return () if self.resume is None else self.resume.allow


def find_start(folder: Path, options: StartOptions, emit: Callback) -> Checkpoint | None:
    """Return the checkpoint that a run starts from; None: it starts from nothing.

    Args:
        folder: of the run, which is locked.
        options: as the user asked.
        emit: is called with a warning of each checkpoint that is passed over, and of a run that has none yet.

    Raises:
        UserError: something is in the way, or what should be resumed is damaged or of an older release.
    """
    resume = options.resume
    if resume is None:
        claim(folder, overwrite=options.overwrite)
        return None
    if resume.path is not None:
        return _named(resume.path, folder)
    newest = newest_whole(folder, emit)
    if newest is None:
        claim(folder)
        emit(Warned("checkpoint.none_yet", f"no checkpoint in {folder} yet, so the run starts from its beginning"))
    return newest


def newest_whole(folder: Path, emit: Callback) -> Checkpoint | None:
    """Return the newest checkpoint of a run's folder that is whole; None: the run has none yet.

    Raises:
        UserError: there are some, and none can be used.
    """
    newest, faults = newest_checkpoint(folder / CHECKPOINTS)
    for fault in faults:
        if fault.code == OLD_FORMAT:
            raise fault
    if newest is None and faults:
        # whoever has lost all checkpoints should say so that the run starts over
        what = f"none of its {len(faults)} checkpoints is whole; the newest: {faults[0]}"
        raise UserError(what, code="checkpoint.none_whole", where=folder, remedy="--overwrite starts over")
    for fault in faults:
        emit(Warned("checkpoint.passed_over", f"a checkpoint is passed over: {fault}"))
    return newest


def _named(path: Path, folder: Path) -> Checkpoint:
    """Return a checkpoint by name; what came after it would be in the new run's way, and is not ours to remove."""
    checkpoint = read_checkpoint(path)
    if path.resolve().parent != (folder / CHECKPOINTS).resolve():
        claim(folder)
        return checkpoint
    newest, _ = newest_checkpoint(folder / CHECKPOINTS)
    if newest is not None and newest.step > checkpoint.step:
        raise UserError(
            f"is not the newest checkpoint, which is {newest.path.name}",
            code="checkpoint.not_newest",
            where=path,
            remedy="choose another output.dir=FOLDER to branch off, or remove what is newer",
        )
    return checkpoint


def check_same(start: Checkpoint, run: Identity, allow: tuple[str, ...], emit: Callback) -> None:
    """Check that a checkpoint's run and this one end in the same bits; warn where that cannot be promised.

    Args:
        start: the checkpoint.
        run: this one.
        allow: keys of the config, or sections, that may differ.
        emit: is called with the warnings.

    Raises:
        UserError: they would not; each difference is named.
    """
    steps = run.config.train.max_steps
    if steps < start.step:
        what = f"{start.step} steps are done, and train.max_steps is {steps}"
        raise UserError(what, code="resume.fewer_steps", where=start.path)
    changed = _differences(start, run)
    refused = [key for key in changed if not _is_free(key, changed[key], run) and not _is_allowed(key, allow)]
    if refused:
        named = ", ".join(f"{key}: {_change_in_words(key, changed[key])}" for key in refused)
        key = BASE if refused[0].startswith(f"{BASE}.") else refused[0]
        raise UserError(
            f"the run has changed since then: {named}",
            code="resume.run_changed",
            where=start.path,
            remedy=f"undo it, or --allow-change {key} if it is meant",
        )
    for warning in _doubts(start.provenance, run.provenance):
        emit(warning)


def _differences(start: Checkpoint, run: Identity) -> dict[str, tuple[Any, Any]]:
    """Return the values, then and now, of all that has changed and decides a run's result."""
    old = training_settings(_config_of(start))
    base = differences(start.provenance.settings, run.settings)
    return {
        **differences(old, training_settings(run.config)),
        **differences(start.provenance.hashes, run.hashes),
        **{f"{BASE}.{name}": values for name, values in base.items()},
    }


def _config_of(start: Checkpoint) -> RunConfig:
    try:
        return build_config(start.provenance.config, "settings")
    except UserError as fault:
        raise UserError(
            f"is by Veneer {start.provenance.version}, whose settings this release does not know "
            f"({fault.where}: {fault.what})",
            code="checkpoint.unknown_settings",
            where=start.path,
            remedy="finish the run with that release, or start over with --overwrite",
        ) from fault


def _doubts(then: Provenance, now: Provenance) -> Iterator[Warned]:
    """Yield a warning of each thing that may end in other bits."""
    if then.version != now.version:
        versions = f"{then.version}, this is {now.version}"
        text = f"the checkpoint is by Veneer {versions}; another release may end in other bits"
        yield Warned("checkpoint.other_version", text)
    if "aspect" not in then.config.get("data", {}) and now.config["data"]["aspect"] != "square":
        text = "the checkpoint is of a release that cut all pictures to squares; those of other shapes keep theirs now"
        yield Warned(
            "checkpoint.cut_squares", f"{text} (data.aspect=square --allow-change data.aspect goes on as it was)"
        )
    if then.threads != now.threads:
        numbers = f"{then.threads} threads a process, here are {now.threads}"
        text = f"the checkpoint was made with {numbers}, which may end in other bits; see OMP_NUM_THREADS"
        yield Warned("checkpoint.other_threads", text)


def _is_free(key: str, values: tuple[Any, Any], run: Identity) -> bool:
    """Return whether a change leaves the steps that are done as they would have been with the new value all along."""
    if key == "train.max_steps":
        # which pictures a step sees and its noise are keyed by the step alone. A schedule that falls towards the last
        # step is not: with another length, each rate so far would have been another
        return run.config.train.lr_scheduler == "constant"
    if key == "train.cuda_graphs":
        return True  # a graph is the same kernels
    # a run that stops at the first step that is not finite has had none yet that skipping could have changed
    return key == "train.on_nonfinite" and values == ("stop", "skip")


def _is_allowed(key: str, allow: tuple[str, ...]) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in allow)


def _change_in_words(key: str, values: tuple[Any, Any]) -> str:
    old, new = ("not set" if value is None else str(value) for value in values)
    if key in HASHES:
        old, new = old[:12], new[:12]  # a fingerprint's first digits tell as much as all of them
    return f"{old} -> {new}"

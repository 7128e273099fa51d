"""Where a run starts: from nothing, or from a checkpoint of the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer import __version__
from veneer.config.fingerprint import differences, training_settings
from veneer.config.keys import known_keys, nearest
from veneer.config.load import build_config
from veneer.errors import UserError
from veneer.run.folder import CHECKPOINTS, claim
from veneer.run.identity import BASE, HASHES, Identity
from veneer.train.events import Warned
from veneer.weights.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint

__all__ = ["Resume", "check_same", "find_start"]


@dataclass(frozen=True)
class Resume:
    """How to go on with a run.

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
                raise UserError("is no key of a configuration", where=f"--allow-change {key}", remedy=remedy)


def find_start(
    folder: Path, resume: Resume | None, overwrite: bool, emit: Callable[[object], None]
) -> Checkpoint | None:
    """The checkpoint that a run starts from; None: it starts from nothing.

    Args:
        folder: of the run, which is locked.
        resume: None: from nothing, as the user asked.
        overwrite: what the folder holds may go.
        tell: is told of checkpoints that are passed over, and of a run that has none yet.

    Raises:
        UserError: something is in the way, or what should be resumed is not whole.
    """
    if resume is not None and overwrite:
        raise UserError("a run is either resumed or overwritten", where="--resume --overwrite", remedy="choose one")
    if resume is None:
        claim(folder, overwrite=overwrite)
        return None
    return _newest(folder, emit) if resume.path is None else _named(resume.path, folder)


def _newest(folder: Path, emit: Callable[[object], None]) -> Checkpoint | None:
    found, faults = newest_checkpoint(folder / CHECKPOINTS)
    if found is None and faults:
        # whoever has lost all checkpoints should say so that the run starts over
        what = f"none of its {len(faults)} checkpoints is whole; the newest: {faults[0]}"
        raise UserError(what, where=folder, remedy="--overwrite starts over")
    for fault in faults:
        emit(Warned("checkpoint.passed_over", f"a checkpoint is passed over: {fault}"))
    if found is None:
        claim(folder)
        emit(Warned("checkpoint.none_yet", f"no checkpoint in {folder} yet, so the run starts from its beginning"))
    return found


def _named(path: Path, folder: Path) -> Checkpoint:
    """A checkpoint by name; what came after it would be in the way of the new run's, and is not ours to remove."""
    found = read_checkpoint(path)
    if path.resolve().parent != (folder / CHECKPOINTS).resolve():
        claim(folder)
        return found
    newest, _ = newest_checkpoint(folder / CHECKPOINTS)
    if newest is not None and newest.step > found.step:
        remedy = "choose another output.dir=FOLDER to branch off, or remove what is newer"
        raise UserError(f"is not the newest checkpoint, which is {newest.path.name}", where=path, remedy=remedy)
    return found


def check_same(start: Checkpoint, run: Identity, allow: tuple[str, ...], emit: Callable[[object], None]) -> None:
    """See that a checkpoint's run and this one end in the same bits.

    Raises:
        UserError: they would not; each difference is named.
    """
    steps = run.config.train.max_steps
    if steps < start.step:
        raise UserError(f"{start.step} steps are done, and train.max_steps is {steps}", where=start.path)
    old = training_settings(build_config(start.origin.config, str(start.path)))
    changed = {**differences(old, training_settings(run.config)), **differences(start.origin.hashes, run.hashes)}
    if start.origin.settings is not None:
        own = differences(start.origin.settings, run.settings)
        changed |= {f"{BASE}.{name}": values for name, values in own.items()}
    refused = [key for key in changed if not _is_free(key, changed[key], run) and not _is_allowed(key, allow)]
    if refused:
        named = ", ".join(f"{key}: {_shown(key, changed)}" for key in refused)
        key = BASE if refused[0].startswith(f"{BASE}.") else refused[0]
        remedy = f"undo it, or --allow-change {key} if it is meant"
        raise UserError(f"the run has changed since then: {named}", where=start.path, remedy=remedy)
    if start.origin.version != __version__:
        versions = f"{start.origin.version}, this is {__version__}"
        emit(
            Warned(
                "checkpoint.other_version",
                f"the checkpoint is by Veneer {versions}; another release may end in other bits",
            )
        )
    if start.origin.settings is None:
        emit(
            Warned(
                "checkpoint.unknown_base_settings",
                "the checkpoint does not tell the settings of its base, such as its scheduler's; none is compared",
            )
        )
    threads, here = start.origin.threads, run.origin.threads
    if threads is not None and threads != here:
        numbers = f"{threads} threads a process, here are {here}"
        emit(
            Warned(
                "checkpoint.other_threads",
                f"the checkpoint was made with {numbers}, which may end in other bits; see OMP_NUM_THREADS",
            )
        )


def _is_free(key: str, values: tuple[Any, Any], run: Identity) -> bool:
    """Whether a change leaves the steps that are done as they would have been with the new value all along."""
    if key == "train.max_steps":
        # which pictures a step sees and its noise are keyed by the step alone. A schedule that falls towards the last
        # step is not: with another length, each rate so far would have been another
        return run.config.train.lr_scheduler == "constant"
    # a run that stops at the first step that is not finite has had none yet that skipping could have changed
    return key == "train.on_nonfinite" and values == ("stop", "skip")


def _is_allowed(key: str, allow: tuple[str, ...]) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in allow)


def _shown(key: str, changed: Mapping[str, tuple[Any, Any]]) -> str:
    old, new = ("not set" if value is None else str(value) for value in changed[key])
    if key in HASHES:
        old, new = old[:12], new[:12]  # a fingerprint's first digits tell as much as all of them
    return f"{old} -> {new}"

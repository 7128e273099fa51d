"""Pictures of the class that the base paints itself, for prior preservation (Ruiz et al. 2023, section 4.2).

A note beside them says what they were painted of, so that pictures of another class are not taken for this one's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from veneer.config.data_config import PriorConfig
from veneer.config.schema import RunConfig
from veneer.data.notes import reasons
from veneer.data.preflight import read_prior
from veneer.data.wording import few
from veneer.errors import UserError
from veneer.family.fingerprint import fingerprint
from veneer.family.protocol import Family
from veneer.files import atomic_write
from veneer.plan.parameters import plan_parameters
from veneer.rng import key
from veneer.run.events import Callback, PriorSamplingStarted, ignore
from veneer.sample.files import write_picture
from veneer.sample.generate import generate_quietly
from veneer.train.events import Warned

__all__ = ["NOTE", "sample_prior"]

NOTE = "painted.json"
"""File beside the pictures that names those that were painted, their prompt, and their base's fingerprint."""
_BATCH = 8


def sample_prior(config: RunConfig, family: Family, callback: Callback = ignore) -> None:
    """Let the base paint the pictures of the class that the prior's folder lacks.

    Args:
        config: the run, resolved.
        family: its base, without an adapter.
        callback: is called with ``PriorSamplingStarted`` if any is missing, and with a warning of those left out.

    Raises:
        UserError: the folder holds pictures that were painted of another prompt or by another base; the adapter does
            not fit the base, which is found before minutes of painting; or the disk is full.
    """
    prior = config.data.prior
    if prior is None:
        return
    assert prior.path is not None, "resolve() names the folder"
    _check_note(prior, prior.path, config.base)
    pictures = read_prior(config)
    if pictures.rejected:
        text = f"pictures of the class are left out: {few(reasons(pictures.rejected))}"
        callback(Warned("data.prior_left_out", text))
    missing = prior.count - len(pictures.samples)
    if missing <= 0:
        return
    plan_parameters(config, family)
    callback(PriorSamplingStarted(missing, prior.prompt, prior.path))
    paths = list(islice(_free_paths(prior.path), missing))
    _write_note(prior, prior.path, config.base, paths)
    for start in range(0, missing, _BATCH):
        _paint(config, family, prior.prompt, paths[start : start + _BATCH])


def _check_note(prior: PriorConfig, folder: Path, base: str) -> None:
    """Refuse pictures that the note says were painted of something else."""
    note = _read_note(folder)
    if not any((folder / name).exists() for name in note.get("pictures", ())):
        return
    if note.get("prompt") != prior.prompt:
        what = f"its pictures were painted of {note.get('prompt')!r:.60}, and data.prior.prompt is {prior.prompt!r:.60}"
    elif note.get("base") != fingerprint(base):
        what = f"its pictures were painted by another base than {base}"
    else:
        return
    remedy = "remove the folder, so that they are painted anew, or name another with data.prior.path"
    raise UserError(what, code="data.other_prior", where=folder, remedy=remedy)


def _read_note(folder: Path) -> Mapping[str, Any]:
    """Return the note; nothing where there is none, or where it is none of ours."""
    try:
        note = json.loads((folder / NOTE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    names = note.get("pictures") if isinstance(note, dict) else None
    return note if isinstance(names, list) and all(isinstance(name, str) for name in names) else {}


def _write_note(prior: PriorConfig, folder: Path, base: str, paths: list[Path]) -> None:
    """Add to the note the pictures that will be painted now; before they are there, lest a stop leaves one unnamed."""
    names = {*_read_note(folder).get("pictures", ()), *(path.name for path in paths)}
    note = {"prompt": prior.prompt, "base": fingerprint(base), "pictures": sorted(names)}
    atomic_write(folder / NOTE, f"{json.dumps(note, indent=2)}\n".encode())


def _free_paths(folder: Path) -> Iterator[Path]:
    paths = (folder / f"prior-{number:05d}.png" for number in range(10**5))
    return (path for path in paths if not path.exists())


def _paint(config: RunConfig, family: Family, prompt: str, paths: list[Path]) -> None:
    """Paint a batch, each picture from a seed of its file's name."""
    seeds = [key(config.seed, path.name, "prior") for path in paths]
    sample = config.sample
    pictures = generate_quietly(family, [prompt] * len(paths), seeds, steps=sample.steps, guidance=sample.guidance)
    for path, picture in zip(paths, pictures, strict=True):
        write_picture(picture, path)

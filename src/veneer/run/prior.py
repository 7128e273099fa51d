"""Pictures of the class that the base paints itself, for prior preservation (Ruiz et al. 2023, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from veneer.config.schema import RunConfig
from veneer.data.preflight import read_prior
from veneer.family.protocol import Family
from veneer.plan.parameters import plan_parameters
from veneer.rng import key
from veneer.run.events import Callback, PriorSamplingStarted, ignore
from veneer.sample.files import write_picture
from veneer.sample.generate import generate

__all__ = ["sample_prior"]

_BATCH = 8


def sample_prior(config: RunConfig, family: Family, callback: Callback = ignore) -> None:
    """Let the base paint the pictures of the class that the prior's folder lacks.

    Args:
        config: the run, resolved.
        family: its base, without an adapter.
        callback: is called with ``PriorSamplingStarted`` if any is missing.

    Raises:
        UserError: the adapter does not fit the base, which is found before minutes of painting; or the disk is full.
    """
    prior = config.data.prior
    if prior is None:
        return
    assert prior.path is not None, "resolve() names the folder"
    missing = prior.count - len(read_prior(config).samples)
    if missing <= 0:
        return
    plan_parameters(config, family)
    callback(PriorSamplingStarted(missing, prior.prompt, prior.path))
    paths = _free_paths(prior.path)
    for start in range(0, missing, _BATCH):
        _paint(config, family, prior.prompt, list(islice(paths, min(_BATCH, missing - start))))


def _free_paths(folder: Path) -> Iterator[Path]:
    paths = (folder / f"prior-{number:05d}.png" for number in range(10**5))
    return (path for path in paths if not path.exists())


def _paint(config: RunConfig, family: Family, prompt: str, paths: list[Path]) -> None:
    """Paint a batch, each picture from a seed of its file's name."""
    seeds = [key(config.seed, path.name, "prior") for path in paths]
    sample = config.sample
    pictures = generate(family, [prompt] * len(paths), seeds, steps=sample.steps, guidance=sample.guidance)
    for path, picture in zip(paths, pictures, strict=True):
        write_picture(picture, path)

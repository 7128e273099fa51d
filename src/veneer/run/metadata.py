"""What an adapter file of a run says in its metadata, in each format."""

from __future__ import annotations

from pathlib import Path

from veneer import __version__
from veneer.adapter.protocol import AdapterWeights
from veneer.data.buckets import Buckets
from veneer.data.preflight import read_prior
from veneer.family.license import base_license
from veneer.family.registry import BUNDLED
from veneer.files import public_name, user_path
from veneer.run.identity import BASE, Identity
from veneer.run.preparation import TrainingInputs
from veneer.weights.adapter_path import adapter_name
from veneer.weights.hashes import legacy_hash_of
from veneer.weights.metadata import TrainingFacts, training_metadata

__all__ = ["file_metadata"]


def file_metadata(
    inputs: TrainingInputs,
    weights: AdapterWeights,
    steps: int,
    format_name: str,
    *,
    thumbnail: str | None = None,
) -> dict[str, str]:
    """Return the metadata of a run's adapter file: no path and no time, so that equal runs give equal bytes.

    Args:
        inputs: of the training.
        weights: what was trained.
        steps: that it took.
        format_name: of the file.
        thumbnail: a small picture by the adapter, as a data URL.
    """
    own = inputs.run.metadata | {"veneer.steps": str(steps)}
    return {**own, **training_metadata(_facts(inputs, weights, steps, thumbnail), format_name)}


def _facts(inputs: TrainingInputs, weights: AdapterWeights, steps: int, thumbnail: str | None) -> TrainingFacts:
    run, config = inputs.run, inputs.run.config
    file = user_path(config.base)
    single = config.base != BUNDLED and file.is_file()
    known = base_license(config.base)
    return TrainingFacts(
        config=config,
        name=adapter_name(config.output.dir),
        weights=weights,
        steps=steps,
        train=inputs.dataset.train,
        held_out=len(inputs.dataset.held_out.samples),
        base_name=_base_name(run),
        labels=inputs.family.labels,
        prediction=inputs.family.noise.prediction,
        buckets=Buckets.of(config.data, inputs.family),
        class_pictures=len(read_prior(config).samples),
        base_sha256=run.hashes[BASE] if single else None,
        base_legacy_hash=legacy_hash_of(file) if single else None,
        license=None if known is None else known.title,
        thumbnail=thumbnail,
        version=__version__,
    )


def _base_name(run: Identity) -> str:
    """Return a base's hub id, or the name of its folder or file."""
    base = run.config.base
    return public_name(Path(base).resolve().name, "base") if user_path(base).exists() else base

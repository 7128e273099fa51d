"""An adapter file cut to a lower rank, and the question which rank loses nothing, answered on held-out pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veneer.adapter.applied import applied
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.resize import resize, spectrum
from veneer.config.load import build_config, load_config, resolve
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest, Uncaptioned
from veneer.data.preflight import survey
from veneer.errors import UserError
from veneer.evaluate.heldout import HeldOutEvaluator, Losses, chosen
from veneer.family.loading import load_base
from veneer.family.registry import BUNDLED
from veneer.files import atomic_write
from veneer.run.folder import CONFIG, base_beside, config_beside, make_writable
from veneer.run.identity import TRIGGER
from veneer.run.session import Callback
from veneer.study.plot import plot
from veneer.study.statistics import Outcome, Table, tabulate
from veneer.study.tables import as_csv, as_json, as_markdown
from veneer.train.events import Warned
from veneer.verbs.provenance import base_doubts, never_seen
from veneer.weights.file import AdapterFile, file_in, info, load, render, save

__all__ = ["Measuring", "RankMeasured", "RankStudy", "resize_adapter", "study_ranks"]

_RESIZED = "veneer.resized.rank"
_SOURCE = "veneer.resized.from.sha256"


@dataclass(frozen=True)
class Measuring:
    """What ranks are measured with.

    Attributes:
        base: of the adapter; None: that of the run's config beside it, else the bundled one.
        data: folder of pictures that the adapter never saw; None: those that its run held out.
        draws: of noise for each picture; None: as its run has it.
        margin: share of the adapter's gain over the base that may be lost.
    """

    base: str | None = None
    data: Path | None = None
    draws: int | None = None
    margin: float = 0.02


@dataclass(frozen=True)
class RankMeasured:
    """A rank was measured.

    Attributes:
        rank: cut to.
        loss: mean, on the held-out pictures.
        kept: share of the Frobenius norm of delta W.
    """

    rank: int
    loss: float
    kept: float


@dataclass(frozen=True)
class RankStudy:
    """What each rank of one adapter is worth.

    Attributes:
        table: a row a rank, rising; the adapter as it is comes last and is the reference.
        kept: share of the Frobenius norm of delta W, by rank.
    """

    table: Table
    kept: Mapping[int, float]

    @property
    def advised(self) -> int | None:
        """The smallest rank that loses nothing; None if nothing can be said."""
        smallest = None if self.table.advice is None else self.table.advice.smallest
        return None if smallest is None else int(smallest.removeprefix("rank "))


def resize_adapter(file: Path, rank: int, out: Path | None = None, *, base: str | None = None) -> Path:
    """Cut an adapter file to a rank.

    Args:
        file: the adapter, or the folder of its run.
        rank: lower than the adapter's.
        out: the new file; default: beside the old one, with the rank in its name.
        base: the adapter's; asked only where its layout means something beside its base alone, as kohya's does.

    Raises:
        UserError: the rank is not lower, the file cannot be read, or the new one is there already.
    """
    told, path = info(file), file_in(file)
    out = out or path.with_name(f"{path.stem}-rank{rank}.safetensors")
    if out.exists():
        raise UserError("is there already", where=out, remedy="choose another --out")
    networks = None if told.layout == "diffusers" else load_base(base or base_beside(file)).networks
    adapter = load(file, networks)
    try:
        weights = resize(adapter.weights, rank)
    except UserError as fault:
        raise UserError(fault.what, where=file, remedy=fault.remedy) from None
    save(AdapterFile(weights, {**adapter.metadata, _RESIZED: str(rank), _SOURCE: told.sha256}), out)
    return out


def study_ranks(
    file: Path,
    ranks: Sequence[int] = (),
    how: Measuring | None = None,
    *,
    out: Path | None = None,
    callback: Callback = lambda event: None,
) -> RankStudy:
    """Cut one adapter to each rank, and measure each on held-out pictures with the same noise.

    Args:
        file: the adapter, or the folder of its run.
        ranks: to cut to; default: the powers of two below the adapter's rank.
        how: pictures, base, margin.
        out: folder for the table and the plot; default: none are written.
        listen: is told each rank's score, and what is doubtful about them.

    Raises:
        UserError: there is nothing to measure on, or the adapter has no rank to lose.
    """
    how = how or Measuring()
    if out is not None:
        make_writable(out, "choose another --out")
    config, pictures, doubts = _reference(file, how)
    for doubt in doubts:
        callback(Warned(doubt))
    family = load_base(config.base)
    config = resolve(config, family.resolution)
    adapter = load(file, family.networks)
    highest = max(each.rank for each in adapter.weights.values())
    cut = {rank: resize(adapter.weights, rank) for rank in sorted(set(ranks) or _powers(highest)) if rank != highest}
    if not cut and highest == 1:
        raise UserError("the adapter's rank is 1, which nothing is below", where=file)
    if not cut:
        raise UserError(f"the adapter's rank is {highest} already", where=file, remedy="name lower ones with --rank")
    values = spectrum(adapter.weights)
    evaluator = HeldOutEvaluator(config, family, chosen(pictures, config.validation.pictures))
    base, outcomes = evaluator.losses(), []
    for rank, weights in {**cut, highest: adapter.weights}.items():
        with applied(family.networks, weights):
            losses = evaluator.losses()
        outcomes.append(_outcome(rank, weights, losses, config.seed))
        callback(RankMeasured(rank, float(losses.mean()), values.kept(rank)))
    table = tabulate(outcomes, base, seeds=[config.seed], reference=f"rank {highest}", margin=how.margin)
    study = RankStudy(table, {rank: values.kept(rank) for rank in (*cut, highest)})
    if out is not None:
        _write(study, out, callback)
    return study


def _powers(highest: int) -> list[int]:
    return [2**power for power in range(highest.bit_length()) if 2**power < highest]


def _outcome(rank: int, weights: AdapterWeights, losses: Losses, seed: int) -> Outcome:
    size = sum(each.down.numel() + each.up.numel() for each in weights.values())
    return Outcome(f"rank {rank}", seed, size, len(render(AdapterFile(weights))), losses)


def _reference(file: Path, how: Measuring) -> tuple[RunConfig, Manifest, list[str]]:
    """What to measure with: the config of the adapter's run where that is at hand, the pictures, and doubts of both."""
    told = info(file).metadata
    place = config_beside(file)
    if place.is_file():
        changes = [] if how.base is None else [f"base={json.dumps(how.base)}"]
        config = load_config(place, changes)
    elif how.data is not None:
        data = {"sources": [{"path": str(how.data)}], "trigger": told.get(TRIGGER)}
        config = build_config({"base": how.base or BUNDLED, "data": data}, "command line")
    else:
        remedy = "name a folder of pictures that the adapter never saw, --data FOLDER"
        raise UserError(f"no {CONFIG} lies beside the adapter to tell what its run held out", where=file, remedy=remedy)
    if how.draws is not None:
        config = config.model_copy(update={"validation": config.validation.model_copy(update={"draws": how.draws})})
    pictures, doubts = _pictures(config, how, is_its_run=place.is_file())
    return config, pictures, [*base_doubts(told, config.base), *doubts]


def _pictures(config: RunConfig, how: Measuring, *, is_its_run: bool) -> tuple[Manifest, list[str]]:
    """Pictures to measure on that the run, where it is known, did not train on."""
    if how.data is None:
        found = survey(config.data).held_out
        if not found.samples:
            remedy = "name a folder of pictures that the adapter never saw, --data FOLDER"
            raise UserError("the run held no picture out", where=CONFIG, remedy=remedy)
        return found, []
    named = _named(how.data, config)
    if not is_its_run:
        return named, []
    try:
        left, doubts = never_seen(named, survey(config.data).train)
    except UserError as fault:  # they may be gone
        return named, [f"the run's own pictures: {fault}"]
    if not left.samples:
        remedy = "name a folder of pictures that the adapter never saw"
        raise UserError("every picture in it was trained on", where=how.data, remedy=remedy)
    return left, doubts


def _named(folder: Path, config: RunConfig) -> Manifest:
    """All pictures of a folder: nothing of it is trained on, so nothing need be kept apart."""
    sources = build_config({"base": config.base, "data": {"sources": [{"path": str(folder)}]}}, "--data").data.sources
    try:
        return survey(config.data.model_copy(update={"sources": sources, "held_out": 0.0})).train
    except Uncaptioned as fault:
        raise fault.without_trigger() from None


def _write(study: RankStudy, out: Path, callback: Callback) -> None:
    kept = {f"rank {rank}": share for rank, share in study.kept.items()}
    told = {**as_json(study.table), "kept": kept}
    atomic_write(out / "ranks.md", as_markdown(study.table).encode())
    atomic_write(out / "ranks.csv", as_csv(study.table).encode())
    atomic_write(out / "ranks.json", (json.dumps(told, indent=1, allow_nan=False) + "\n").encode())
    try:
        atomic_write(out / "ranks.png", plot(study.table, "One adapter, cut to lower ranks"))
    except UserError as fault:
        callback(Warned(f"no plot: {fault}"))

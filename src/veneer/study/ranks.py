"""The study of ranks: one adapter cut to lower ranks, each measured on held-out pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veneer.adapter.apply import apply_adapter
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.resize import highest_rank, resize, spectrum
from veneer.config.load import build_config, load_config, resolve
from veneer.config.schema import RunConfig
from veneer.data.captions import Uncaptioned
from veneer.data.manifest import Manifest
from veneer.data.preflight import survey
from veneer.errors import UserError
from veneer.evaluate.comparison import Losses
from veneer.evaluate.heldout import HeldOutEvaluator, choose_pictures
from veneer.family.loading import load_base, text_options
from veneer.family.protocol import Family
from veneer.family.registry import BUNDLED
from veneer.family.unread import caption_places, unread_notes
from veneer.family.windows import token_windows_of
from veneer.files import atomic_write, opens_paths
from veneer.run.events import Callback
from veneer.run.folder import CONFIG, config_beside, make_writable
from veneer.run.identity import TRIGGER
from veneer.serialise import to_data, to_json
from veneer.study.plot import plot
from veneer.study.statistics import Table, TrialResult, tabulate
from veneer.study.tables import as_csv, as_markdown
from veneer.train.events import Warned
from veneer.verbs.provenance import base_warnings, without_training_pictures
from veneer.weights.file import AdapterFile, info, load, render

__all__ = ["RankMeasured", "RankStudy", "RankStudyOptions", "study_ranks"]

_NAME_PICTURES = "name a folder of pictures that the adapter never saw, --data FOLDER"


@opens_paths
@dataclass(frozen=True)
class RankStudyOptions:
    """The options of a study of ranks.

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
        retained: share of the Frobenius norm of delta W that is left.
    """

    rank: int
    loss: float
    retained: float


@dataclass(frozen=True)
class RankStudy:
    """The results of a study of ranks.

    Attributes:
        table: a row a rank, rising; the adapter as it is comes last and is the reference.
        ranks: of the rows, by the name of the point.
        retained: share of the Frobenius norm of delta W that is left, by rank.
    """

    table: Table
    ranks: Mapping[str, int]
    retained: Mapping[int, float]

    @property
    def highest(self) -> int:
        """The rank of the adapter as it is."""
        return max(self.ranks.values())

    @property
    def advised(self) -> int | None:
        """The smallest rank that loses nothing; None if nothing can be said."""
        smallest = None if self.table.advice is None else self.table.advice.smallest
        return None if smallest is None else self.ranks[smallest]


@opens_paths
def study_ranks(
    file: Path,
    ranks: Sequence[int] = (),
    options: RankStudyOptions | None = None,
    *,
    out: Path | None = None,
    callback: Callback = lambda event: None,
) -> RankStudy:
    """Cut one adapter to each rank, and measure each on held-out pictures with the same noise.

    Args:
        file: the adapter, or the folder of its run.
        ranks: to cut to; default: the powers of two below the adapter's rank.
        options: pictures, base, margin.
        out: folder for the table and the plot; default: none are written.
        callback: is called with a ``RankMeasured`` for each rank, and a ``Warned`` for each doubt about the results.

    Raises:
        UserError: there is nothing to measure on, or the adapter has no rank to lose.
    """
    options = options or RankStudyOptions()
    if out is not None:
        make_writable(out, "choose another --out")
    config, pictures, warnings = _reference(file, options)
    for warning in warnings:
        callback(Warned("study.provenance", warning))
    family = load_base(config.base, **text_options(config.data.token_windows))
    for note in unread_notes(family.unread, caption_places(pictures), trigger=config.data.trigger):
        callback(Warned(**vars(note)))
    config = resolve(config, family)
    weights = load(file, family.networks).weights
    cuts = _cuts(file, weights, ranks)
    study = _measure(config, family, pictures, cuts, options.margin, callback)
    if out is not None:
        _write(study, out, callback)
    return study


def _cuts(file: Path, weights: AdapterWeights, ranks: Sequence[int]) -> dict[int, AdapterWeights]:
    """Return the adapter cut to each lower rank, rising, and last as it is."""
    highest = highest_rank(weights)
    lower = [rank for rank in sorted(set(ranks) or _powers(highest)) if rank != highest]
    cuts: dict[int, AdapterWeights] = {rank: resize(weights, rank) for rank in lower}
    if not cuts and highest == 1:
        raise UserError("the adapter's rank is 1, which nothing is below", code="study.no_lower_rank", where=file)
    if not cuts:
        what, remedy = f"the adapter's rank is {highest} already", "name lower ones with --rank"
        raise UserError(what, code="study.no_lower_rank", where=file, remedy=remedy)
    return {**cuts, highest: weights}


def _measure(
    config: RunConfig,
    family: Family,
    pictures: Manifest,
    cuts: Mapping[int, AdapterWeights],
    margin: float,
    callback: Callback,
) -> RankStudy:
    """Measure the base and each cut of the adapter, of which the last is the adapter as it is."""
    evaluator = HeldOutEvaluator(config, family, choose_pictures(pictures, config.validation.pictures))
    base, highest = evaluator.losses(), max(cuts)
    values = spectrum(cuts[highest])
    results: dict[int, TrialResult] = {}
    for rank, weights in cuts.items():
        with apply_adapter(family.networks, weights):
            losses = evaluator.losses()
        results[rank] = _result(rank, weights, losses, config.seed)
        callback(RankMeasured(rank, float(losses.mean()), values.retained(rank)))
    reference = results[highest].point
    table = tabulate(list(results.values()), base, seeds=[config.seed], reference=reference, margin=margin)
    ranks = {result.point: rank for rank, result in results.items()}
    return RankStudy(table, ranks, {rank: values.retained(rank) for rank in cuts})


def _powers(highest: int) -> list[int]:
    """Return the powers of two below a rank."""
    return [2**power for power in range(highest.bit_length()) if 2**power < highest]


def _result(rank: int, weights: AdapterWeights, losses: Losses, seed: int) -> TrialResult:
    """Return the result of one rank, as if it were a trial."""
    count = sum(adapter.parameter_count for adapter in weights.values())
    return TrialResult(f"rank {rank}", seed, count, len(render(AdapterFile(weights))), losses)


def _reference(file: Path, options: RankStudyOptions) -> tuple[RunConfig, Manifest, list[str]]:
    """Return the configuration and the pictures to measure with, and provenance warnings.

    The configuration is that of the adapter's run, where its file is beside the adapter.
    """
    metadata = info(file).metadata
    path = config_beside(file)
    is_its_run = path.is_file()
    if is_its_run:
        config = load_config(path, [] if options.base is None else [f"base={json.dumps(options.base)}"])
    elif options.data is not None:
        texts = {"trigger": metadata.get(TRIGGER), "token_windows": token_windows_of(metadata)}
        data = {"sources": [{"path": str(options.data)}], **texts}
        config = build_config({"base": options.base or BUNDLED, "data": data}, "command line")
    else:
        what = f"no {CONFIG} lies beside the adapter, so the pictures that its run held out are not known"
        raise UserError(what, code="study.nothing_held_out", where=file, remedy=_NAME_PICTURES)
    if options.draws is not None:
        validation = config.validation.model_copy(update={"draws": options.draws})
        config = config.model_copy(update={"validation": validation})
    pictures, warnings = _pictures(config, options, is_its_run=is_its_run)
    return config, pictures, [*base_warnings(metadata, config.base), *warnings]


def _pictures(config: RunConfig, options: RankStudyOptions, *, is_its_run: bool) -> tuple[Manifest, list[str]]:
    """Return pictures to measure on that the run, where it is known, was not trained on, and warnings."""
    if options.data is None:
        held_out = survey(config.data).held_out
        if not held_out.samples:
            what = "the run held no picture out"
            raise UserError(what, code="study.nothing_held_out", where=CONFIG, remedy=_NAME_PICTURES)
        return held_out, []
    pictures = _survey_folder(options.data, config)
    if not is_its_run:
        return pictures, []
    try:
        unseen, warnings = without_training_pictures(pictures, survey(config.data).train)
    except UserError as fault:  # the run's own pictures may be gone
        return pictures, [f"the run's own pictures: {fault}"]
    if not unseen.samples:
        what, remedy = "every picture in it was trained on", "name a folder of pictures that the adapter never saw"
        raise UserError(what, code="study.all_trained_on", where=options.data, remedy=remedy)
    return unseen, warnings


def _survey_folder(folder: Path, config: RunConfig) -> Manifest:
    """Return all pictures of a folder: none of them is trained on, so none need be held out."""
    source = {"path": str(folder), "captions": config.data.sources[0].captions}
    sources = build_config({"base": config.base, "data": {"sources": [source]}}, "--data").data.sources
    try:
        return survey(config.data.model_copy(update={"sources": sources, "held_out": 0.0})).train
    except Uncaptioned as fault:
        raise fault.without_trigger() from None


def _write(study: RankStudy, out: Path, callback: Callback) -> None:
    """Write the table as Markdown, CSV and JSON, and the plot where matplotlib is installed."""
    retained = {name: study.retained[rank] for name, rank in study.ranks.items()}
    content = {**to_data(study.table), "retained": retained}
    atomic_write(out / "ranks.md", as_markdown(study.table).encode())
    atomic_write(out / "ranks.csv", as_csv(study.table).encode())
    atomic_write(out / "ranks.json", to_json(content).encode())
    try:
        atomic_write(out / "ranks.png", plot(study.table, "One adapter, cut to lower ranks"))
    except UserError as fault:
        callback(Warned("study.no_plot", f"no plot: {fault}"))

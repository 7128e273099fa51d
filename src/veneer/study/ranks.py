"""The study of ranks: one adapter cut to lower ranks, or to shares of energy, each measured on held-out pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from veneer.adapter.apply import apply_adapter
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.resize import Criterion, check_lower, cut, highest_rank
from veneer.config.load import build_config, load_config, resolve
from veneer.config.schema import RunConfig
from veneer.data.captions import Uncaptioned
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset, survey
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
from veneer.run.folder import CONFIG, config_beside, writable
from veneer.run.identity import TRIGGER
from veneer.serialise import to_data, to_json
from veneer.study.plot import plot
from veneer.study.statistics import Table, TrialResult, tabulate
from veneer.study.tables import as_csv, as_markdown
from veneer.train.events import Warned
from veneer.verbs.provenance import base_warnings, survey_run, without_training_pictures
from veneer.weights.file import AdapterFile, info, load, render

__all__ = ["RankMeasured", "RankStudy", "RankStudyOptions", "StudiedCut", "study_ranks"]

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
    """A cut was measured.

    Attributes:
        point: its name: ``rank 4``, ``energy 0.95``.
        loss: mean, on the held-out pictures.
        retained: share of the Frobenius norm of delta W that is left.
    """

    point: str
    loss: float
    retained: float


@dataclass(frozen=True)
class StudiedCut:
    """One cut of the adapter.

    Attributes:
        name: ``rank 4``, ``energy 0.95``.
        weights: what is left.
        retained: share of the Frobenius norm of delta W that is left.
        options: of ``veneer adapter resize`` for it; none for the adapter as it is.
    """

    name: str
    weights: AdapterWeights
    retained: float
    options: tuple[str, ...]


@dataclass(frozen=True)
class RankStudy:
    """The results of a study of ranks.

    Attributes:
        table: a row a cut, ranks before shares of energy; the adapter as it is comes last and is the reference.
        cuts: of the rows, by the name of the point.
    """

    table: Table
    cuts: Mapping[str, StudiedCut]

    @property
    def retained(self) -> dict[str, float]:
        """Share of the Frobenius norm of delta W that is left, by the name of the point."""
        return {name: each.retained for name, each in self.cuts.items()}

    @property
    def advised(self) -> StudiedCut | None:
        """The smallest that loses nothing; None if nothing can be said, or the adapter as it is is the smallest."""
        smallest = None if self.table.advice is None else self.table.advice.smallest
        return None if smallest is None or not self.cuts[smallest].options else self.cuts[smallest]


@opens_paths
def study_ranks(
    file: Path,
    ranks: Sequence[int] = (),
    options: RankStudyOptions | None = None,
    *,
    energies: Sequence[float] = (),
    out: Path | None = None,
    callback: Callback = lambda event: None,
) -> RankStudy:
    """Cut one adapter to each rank and share of energy, and measure each on held-out pictures with the same noise.

    Args:
        file: the adapter, or the folder of its run.
        ranks: to cut to; default: the powers of two below the adapter's rank, unless energies are given.
        options: pictures, base, margin.
        energies: shares of the squared singular values that each layer keeps.
        out: folder for the table and the plot; default: none are written.
        callback: is called with a ``RankMeasured`` for each cut, and a ``Warned`` for each doubt about the results.

    Raises:
        UserError: there is nothing to measure on, or the adapter has no rank to lose.
    """
    options = options or RankStudyOptions()
    with nullcontext() if out is None else writable(out, "choose another --out"):
        study = _study(file, ranks, energies, options, callback)
        if out is not None:
            _write(study, out, callback)
        return study


def _study(
    file: Path,
    ranks: Sequence[int],
    energies: Sequence[float],
    options: RankStudyOptions,
    callback: Callback,
) -> RankStudy:
    """Cut and measure, as :func:`study_ranks` says."""
    config, pictures, warnings = _reference(file, options)
    for warning in warnings:
        callback(Warned("study.provenance", warning))
    family = load_base(config.base, **text_options(config.data.token_windows))
    for note in unread_notes(family.unread, caption_places(pictures), trigger=config.data.trigger):
        callback(Warned(**vars(note)))
    config = resolve(config, family)
    weights = load(file, family.networks).weights
    cuts = _cuts(file, weights, ranks, energies)
    return _measure(config, family, pictures, cuts, options.margin, callback)


def _cuts(file: Path, weights: AdapterWeights, ranks: Sequence[int], energies: Sequence[float]) -> list[StudiedCut]:
    """Return the adapter cut to each lower rank, rising, then to each share of energy, and last as it is."""
    highest = highest_rank(weights)
    asked = sorted(set(ranks) or ([] if energies else _powers(highest)))
    lower = [rank for rank in asked if rank != highest]
    cuts = [*(_to_rank(weights, rank) for rank in lower), *_to_energies(weights, energies)]
    if not cuts and highest == 1:
        raise UserError("the adapter's rank is 1, which nothing is below", code="study.no_lower_rank", where=file)
    if not cuts:
        what, remedy = f"the adapter's rank is {highest} already", "name lower ones with --rank"
        if energies:
            what, remedy = "no layer can be cut and keep so much", "name lower shares with --energy"
        raise UserError(what, code="study.no_lower_rank", where=file, remedy=remedy)
    return [*cuts, StudiedCut(f"rank {highest}", weights, 1.0, ())]


def _to_rank(weights: AdapterWeights, rank: int) -> StudiedCut:
    check_lower(weights, rank)
    done = cut(weights, rank)
    return StudiedCut(f"rank {rank}", done.weights, done.retained, ("--rank", str(rank)))


def _to_energies(weights: AdapterWeights, energies: Sequence[float]) -> Iterator[StudiedCut]:
    """Yield the adapter cut to each share of energy at which some layer has a lower rank."""
    for energy in sorted(set(energies)):
        criterion = Criterion("energy", energy)
        done = cut(weights, criterion=criterion)
        if done.is_smaller:
            yield StudiedCut(str(criterion), done.weights, done.retained, ("--energy", f"{energy:g}"))


def _measure(
    config: RunConfig,
    family: Family,
    pictures: Manifest,
    cuts: Sequence[StudiedCut],
    margin: float,
    callback: Callback,
) -> RankStudy:
    """Measure the base and each cut of the adapter, of which the last is the adapter as it is."""
    evaluator = HeldOutEvaluator(config, family, choose_pictures(pictures, config.validation.pictures))
    base = evaluator.losses()
    results: list[TrialResult] = []
    for each in cuts:
        with apply_adapter(family.networks, each.weights):
            losses = evaluator.losses()
        results.append(_result(each, losses, config.seed))
        callback(RankMeasured(each.name, float(losses.mean()), each.retained))
    table = tabulate(results, base, seeds=[config.seed], reference=cuts[-1].name, margin=margin)
    return RankStudy(table, {each.name: each for each in cuts})


def _powers(highest: int) -> list[int]:
    """Return the powers of two below a rank."""
    return [2**power for power in range(highest.bit_length()) if 2**power < highest]


def _result(each: StudiedCut, losses: Losses, seed: int) -> TrialResult:
    """Return the result of one cut, as if it were a trial."""
    count = sum(adapter.parameter_count for adapter in each.weights.values())
    return TrialResult(each.name, seed, count, len(render(AdapterFile(each.weights))), losses)


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
    pictures, warnings = _pictures(file, config, options, is_its_run=is_its_run)
    return config, pictures, [*base_warnings(metadata, config.base), *warnings]


def _pictures(
    file: Path, config: RunConfig, options: RankStudyOptions, *, is_its_run: bool
) -> tuple[Manifest, list[str]]:
    """Return pictures to measure on that the run, where it is known, was not trained on, and warnings."""
    if options.data is None:
        run_pictures, warnings = survey_run(config, file)
        held_out = run_pictures.held_out
        if not held_out.samples:
            what = "the run held no picture out"
            raise UserError(what, code="study.nothing_held_out", where=CONFIG, remedy=_NAME_PICTURES)
        return held_out, warnings
    dataset = _survey_folder(options.data, config)
    pictures = dataset.train
    if not is_its_run:
        return pictures, []
    try:
        trained_on = survey_run(config, file)[0].train
    except UserError as fault:  # the run's own pictures may be gone
        return pictures, [f"the run's own pictures: {fault}"]
    unseen, warnings = without_training_pictures(pictures, trained_on, dataset.split, file)
    if not unseen.samples:
        what, remedy = "every picture in it was trained on", "name a folder of pictures that the adapter never saw"
        raise UserError(what, code="study.all_trained_on", where=options.data, remedy=remedy)
    return unseen, warnings


def _survey_folder(folder: Path, config: RunConfig) -> Dataset:
    """Return all pictures of a folder: none of them is trained on, so none need be held out."""
    source = {"path": str(folder), "captions": config.data.sources[0].captions}
    sources = build_config({"base": config.base, "data": {"sources": [source]}}, "--data").data.sources
    try:
        return survey(config.data.model_copy(update={"sources": sources, "held_out": 0.0, "split_from": None}))
    except Uncaptioned as fault:
        raise fault.without_trigger() from None


def _write(study: RankStudy, out: Path, callback: Callback) -> None:
    """Write the table as Markdown, CSV and JSON, and the plot where matplotlib is installed."""
    content = {**to_data(study.table), "retained": study.retained}
    atomic_write(out / "ranks.md", as_markdown(study.table).encode())
    atomic_write(out / "ranks.csv", as_csv(study.table).encode())
    atomic_write(out / "ranks.json", to_json(content).encode())
    try:
        atomic_write(out / "ranks.png", plot(study.table, "One adapter, cut to lower ranks"))
    except UserError as fault:
        callback(Warned("study.no_plot", f"no plot: {fault}"))

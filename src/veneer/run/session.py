"""One run, whole: from a configuration to a folder with an adapter, its card, its sheet and its score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from veneer import __version__
from veneer.adapter.protocol import AdapterWeights
from veneer.config.fingerprint import config_hash
from veneer.config.load import resolve, write_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import Dataset, read_prior, survey
from veneer.errors import UserError
from veneer.evaluate.comparison import DRIFT
from veneer.evaluate.heldout import choose_pictures, compare_adapter, pictures_by_kind
from veneer.evaluate.results import Evaluation, Score, write_evaluation
from veneer.family.fingerprint import settings_hash
from veneer.family.loading import load_base, load_options
from veneer.family.protocol import Family
from veneer.family.registry import BUNDLED
from veneer.files import atomic_write
from veneer.plan.assessment import assess_run
from veneer.plan.parameters import plan_parameters
from veneer.plan.plan import Plan
from veneer.rng import key
from veneer.run.checkpoints import CheckpointManager
from veneer.run.distributed import distributed
from veneer.run.events import AdapterSaved, Callback, Planned, PriorSamplingStarted, Resumed, Surveyed, ignore
from veneer.run.faults import recording_faults
from veneer.run.folder import CARD, CHECKPOINTS, CONFIG, LOG, PLAN, SHEET, clear, clear_samples, make_writable
from veneer.run.identity import Identity, identify
from veneer.run.lock import locked
from veneer.run.log import EventBus, EventLog, cut_log
from veneer.run.memory_usage import MemoryWatch
from veneer.run.notes import notes_on
from veneer.run.resume import Resume, check_same, find_start
from veneer.run.sampling import SampleWriter
from veneer.run.signals import Interrupted, stopping_at_signals
from veneer.run.status import RunHistory, read_history
from veneer.run.trackers import trackers_of
from veneer.run.tracking import Tracking
from veneer.run.validation import Validator, check_held_out
from veneer.sample.comparison import note_of, side_by_side, subjects_of
from veneer.sample.files import write_picture, write_sheet
from veneer.sample.generate import generate
from veneer.train.distributed import PeerLost, ProcessGroup
from veneer.train.events import CheckpointDue, EvaluationDue, Finished, SampleDue, Stopped, Warned
from veneer.train.loop import Trainer
from veneer.train.step import NonFinite
from veneer.weights.card import CardFacts, model_card
from veneer.weights.checkpoint import Checkpoint, read_checkpoint
from veneer.weights.file import FILE_NAME, AdapterFile, save
from veneer.weights.safetensors import encode

__all__ = ["Result", "paint_prior", "run_training"]

_PRIOR_BATCH = 8


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
        adapter: the file.
        sha256: of it.
        sheet: base and adapter side by side.
        score: on held-out pictures; None where there are none.
    """

    adapter: Path
    sha256: str
    sheet: Path
    score: Score | None


def run_training(
    config: RunConfig, *, overwrite: bool = False, resume: Resume | None = None, callback: Callback = ignore
) -> Result:
    """Train an adapter, save it, show it, measure it.

    Everything that can be refused is refused before training: the folder, the pictures, the base, the plan. SIGINT or
    SIGTERM while it trains ends it after the step with a checkpoint, and ``Interrupted`` is raised.

    Where a launcher such as torchrun started several processes they train together, to the same bits as one alone. The
    first of them writes the files, paints, and is the one that tells its listener. All have its result; a fault of one
    ends all, and the first raises it.

    Args:
        config: as the user wrote it; ``config.yaml`` in the output folder is the resolved one.
        overwrite: replace an earlier result, or an unfinished run, in the output folder.
        resume: go on from a checkpoint; None: start from nothing.
        listen: is told what happens.
    """
    with distributed() as processes, ExitStack() as held:
        processes.check_split(config.train)
        emit: Callback = ignore
        if processes.is_first:
            trackers_of(config.tracking)  # one that is not installed is missed now and not after hours
            make_writable(config.output.dir, "choose another output.dir=FOLDER")
            held.enter_context(locked(config.output.dir))
            emit = EventBus(callback)
            emit.add(MemoryWatch(emit))
        start = _start(config, resume, overwrite, emit, processes)
        pictures = survey(config.data)
        emit(Surveyed.of(pictures))
        check_held_out(config, pictures)
        family = load_base(config.base, **load_options(config))
        for note in notes_on(pictures, config, family):
            emit(Warned("data.note", note))
        config = resolve(config, family)
        processes.first(lambda: paint_prior(config, family, emit))
        run = identify(config, pictures, family)
        _check_sight(run, processes)
        if start is not None and resume is not None:
            check_same(start, run, resume.allow, emit)
        return _train(run, family, pictures, start, emit, processes)


def _start(
    config: RunConfig, resume: Resume | None, overwrite: bool, emit: Callback, processes: ProcessGroup
) -> Checkpoint | None:
    """What the first process finds; the others read the same."""
    found = find_start(config.output.dir, resume, overwrite, emit) if processes.is_first else None
    path = processes.all_gather(None if found is None else str(found.path))[0]
    return found if processes.is_first or path is None else read_checkpoint(Path(path))


def _check_sight(run: Identity, processes: ProcessGroup) -> None:
    """See that all processes train on the same: on several machines each has files of its own."""
    own = {"its configuration": config_hash(run.config), "the base's settings": settings_hash(run.settings)}
    seen = processes.all_gather({**run.hashes, **own})
    for rank, each in enumerate(seen):
        for what, value in each.items():
            if value != seen[0][what]:
                remedy = "let every process see the same files"
                raise UserError(f"process {rank} has another one than process 0", where=what, remedy=remedy)


def _train(
    run: Identity, family: Family, pictures: Dataset, start: Checkpoint | None, emit: Callback, processes: ProcessGroup
) -> Result:
    plan = _plan(run, family, pictures, emit) if processes.is_first else None
    with closing(Trainer(run.config, family, pictures, processes)) as trainer, ExitStack() as held:
        earlier = RunHistory()
        if start is not None:
            trainer.load_state_dict(start.state)
            earlier = read_history(run.config.output.dir / LOG, start.step)
            emit(Resumed(start.step, start.path, earlier.losses))
        sample_writer = SampleWriter(family, run.config, subjects_of(run.config, pictures).prompts, emit)
        if isinstance(emit, EventBus):
            # whatever could be refused has been, so an earlier result may go
            emit.open(held.enter_context(_open_log(run.config, start)))
            emit.add(held.enter_context(Tracking(run, earlier, emit)))
            sample_writer.rebuild()
        held.enter_context(recording_faults(emit))
        checkpoints = _checkpoint_manager(run, start, emit, processes)
        validator = Validator(trainer, run, family, pictures, emit)
        if start is not None:
            validator.load_state_dict(start.state)
        if plan is not None:
            atomic_write(run.config.output.dir / PLAN, f"{json.dumps(plan.as_dict(), indent=2)}\n".encode())
            emit(Planned(plan))
        finished = _watch(trainer, sample_writer, validator, checkpoints, emit)
        trainer.close()  # what follows wants the base as it was
        try:
            return _from_first(lambda: _conclude(run, family, pictures, finished, emit), processes)
        except Interrupted as stop:
            checkpoints.write(trainer.steps_done, trainer.state_dict() | validator.state_dict())
            raise Interrupted(stop.signal, trainer.steps_done, checkpoints.last) from stop


def _from_first(work: Callable[[], Result], processes: ProcessGroup) -> Result:
    if processes.count == 1:
        return work()
    return TypeAdapter(Result).validate_python(processes.first(lambda: _plain(work())))


def _plain(result: Result) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(result).items()}


def _open_log(config: RunConfig, start: Checkpoint | None) -> EventLog:
    """Make the folder ready for what is to come: empty, or as it was when the checkpoint was taken."""
    if start is None:
        clear(config.output.dir)
    else:
        cut_log(config.output.dir / LOG, start.step)
        clear_samples(config.output.dir, after=start.step)
    write_config(config, config.output.dir / CONFIG)
    return EventLog(config.output.dir / LOG)


def _checkpoint_manager(
    run: Identity, start: Checkpoint | None, emit: Callback, processes: ProcessGroup
) -> CheckpointManager:
    last = None if start is None else (start.step, start.path)
    folder, keep = run.config.output.dir / CHECKPOINTS, run.config.train.keep_checkpoints
    return CheckpointManager(folder, keep, run.origin, emit, last, writes=processes.is_first)


def paint_prior(config: RunConfig, family: Family, callback: Callback = ignore) -> None:
    """Let the base paint the pictures of the class that the prior's folder lacks (Ruiz et al. 2023, section 4.2)."""
    prior = config.data.prior
    if prior is None:
        return
    assert prior.path is not None, "resolve() names the folder"
    missing = prior.count - len(read_prior(config).samples)
    if missing > 0:
        plan_parameters(config, family)  # refuses what does not fit before minutes of painting
        callback(PriorSamplingStarted(missing, prior.prompt, prior.path))
    names = (f"prior-{number:05d}.png" for number in range(10**5))
    free = (path for path in (prior.path / name for name in names) if not path.exists())
    for start in range(0, missing, _PRIOR_BATCH):
        places = [next(free) for _ in range(min(_PRIOR_BATCH, missing - start))]
        seeds = [key(config.seed, place.name, "prior") for place in places]
        steps, guidance = config.sample.steps, config.sample.guidance
        painted = generate(family, [prior.prompt] * len(places), seeds, steps=steps, guidance=guidance)
        for place, picture in zip(places, painted, strict=True):
            write_picture(picture, place)


def _plan(run: Identity, family: Family, pictures: Dataset, emit: Callback) -> Plan:
    """What the run will take; said before anything of it is done, and refused nothing."""
    assessment = assess_run(run.config, family, pictures, run.metadata)
    if assessment.warning is not None:
        emit(Warned("plan.does_not_fit", assessment.warning))
    return assessment.plan


def _watch(
    trainer: Trainer, sample_writer: SampleWriter, validator: Validator, checkpoints: CheckpointManager, emit: Callback
) -> Finished:
    """Tell each event of a training loop; paint samples, score and keep the state when they are due; the last event."""
    processes = trainer.processes
    finished: Finished | None = None
    with stopping_at_signals(trainer.stop) as caught:
        try:
            with closing(trainer.run()) as events:
                for event in events:
                    emit(event)
                    if isinstance(event, SampleDue):
                        processes.first(partial(sample_writer.paint, event.step))
                    elif isinstance(event, EvaluationDue):
                        validator.examine(event.step)
                    elif isinstance(event, CheckpointDue):
                        checkpoints.write(event.step, _agreed(trainer) | validator.state_dict())
                    elif isinstance(event, Stopped):
                        raise Interrupted(max(processes.all_gather(caught.number)), event.step, checkpoints.last)
                    elif isinstance(event, Finished):
                        validator.conclude()
                        finished = event
        except NonFinite as fault:
            raise fault.with_note(checkpoints.last_in_words) from fault
        except PeerLost as fault:
            checkpoints.write(trainer.steps_done, trainer.state_dict() | validator.state_dict())
            raise fault.with_note(checkpoints.last_in_words) from fault
    assert finished is not None, "a loop that does not stop ends with it"
    return finished


def _agreed(trainer: Trainer) -> dict[str, Tensor]:
    """The trainer's state, which is the same in every process to the bit.

    Raises:
        UserError: it is not, so one of them computes otherwise.
    """
    state = trainer.state_dict()
    if trainer.processes.count > 1:
        told = trainer.processes.all_gather(hashlib.sha256(encode(state, {})).hexdigest())
        if len(set(told)) > 1:
            what = "the processes have come to different numbers"
            remedy = "run them on the same kind of device with the same number of threads"
            raise UserError(what, where=f"step {trainer.steps_done}", remedy=remedy)
    return state


def _conclude(run: Identity, family: Family, pictures: Dataset, finished: Finished, callback: Callback) -> Result:
    """Save first: what follows only tells how good it is."""
    config, path, weights = run.config, run.config.output.dir / FILE_NAME, finished.weights
    _refuse_unchanged(weights, path)
    sha256 = save(AdapterFile(weights, run.metadata | {"veneer.steps": str(finished.step)}), path)
    callback(AdapterSaved(path, sha256))
    subjects = subjects_of(config, pictures)
    page = side_by_side(family, weights, subjects, config)
    shown = write_sheet(page, config.output.dir / SHEET, note_of(subjects))
    score = _score(config, family, pictures, finished, callback)
    facts = _card_facts(config, sha256, subjects.prompts[0])
    atomic_write(config.output.dir / CARD, model_card(facts, score).encode())
    return Result(path, sha256, shown, score)


def _score(
    config: RunConfig, family: Family, pictures: Dataset, finished: Finished, callback: Callback
) -> Score | None:
    """Measure the adapter as far as it goes without painting; ``evaluation.json`` is there for the report."""
    kinds = pictures_by_kind(config, pictures) | {
        DRIFT: choose_pictures(read_prior(config), config.validation.pictures)
    }
    try:
        found = compare_adapter(config, family, kinds, finished.weights)
    except UserError as fault:  # the adapter is saved, and whoever trained it long will want to look into it
        callback(Warned("evaluation.failed", f"the adapter could not be measured: {fault}"))
        return None
    source = None if found.drift is None else "pictures of the class"
    about: dict[str, Any] = {"adapter": FILE_NAME, "base": config.base, "step": finished.step, "drift_source": source}
    write_evaluation(Evaluation(**vars(found), **about), config.output.dir)
    if found.held_out is not None:
        callback(found.held_out)
    return found.held_out


def _refuse_unchanged(weights: AdapterWeights, path: Path) -> None:
    """Refuse an adapter that is as it started: its file would be a success that does nothing."""
    if all(adapter.is_untrained for adapter in weights.values()):
        what = "was not written: every B is still zero, so nothing was learned and the adapter does nothing"
        raise UserError(
            what,
            code="adapter.untrained",
            where=path,
            remedy="look for warnings in run.jsonl, or raise train.learning_rate",
        )


def _card_facts(config: RunConfig, sha256: str, prompt: str) -> CardFacts:
    settings = _dotted(config.model_dump(mode="json", include={"seed", "adapter", "objective", "train"}))
    return CardFacts(
        title=config.output.dir.resolve().name,
        base=config.base,
        license="other",  # the pictures' and the base's licences are their owner's to name
        prompt=prompt,
        weights=FILE_NAME,
        sha256=sha256,
        config=settings | {"data.resolution": config.data.resolution},
        trigger=config.data.trigger,
        base_id=None if config.base == BUNDLED or Path(config.base).exists() else config.base,
        pictures={SHEET: prompt},
        version=__version__,
    )


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat

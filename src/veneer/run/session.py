"""One training run, whole: prepared, trained, saved, shown and measured, in a folder of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from torch import Tensor

from veneer.config.load import write_config
from veneer.config.schema import RunConfig
from veneer.data.split_record import SplitRecord, read_split, write_split
from veneer.errors import UserError
from veneer.family.prompt_cache import PromptCache
from veneer.files import atomic_write
from veneer.plan.assessment import assess_run
from veneer.plan.plan import Plan
from veneer.run.checkpoints import CheckpointManager
from veneer.run.distributed import distributed
from veneer.run.events import Callback, Planned, Resumed, ignore
from veneer.run.faults import record_faults
from veneer.run.folder import CONFIG, LOG, PLAN, clear, clear_samples, writable
from veneer.run.identity import Identity
from veneer.run.lock import locked
from veneer.run.log import EventBus, EventLog, cut_log
from veneer.run.memory import MemoryRecorder
from veneer.run.preparation import TrainingInputs, prepare
from veneer.run.result import Result, write_result
from veneer.run.resume import Resume, StartOptions
from veneer.run.sampling import SampleWriter
from veneer.run.signals import Interrupted, stopping_at_signals
from veneer.run.status import RunHistory, read_history
from veneer.run.trackers.callback import TrackerCallback
from veneer.run.trackers.registry import trackers_of
from veneer.run.validation import Validator
from veneer.sample.comparison import SampleSettings, sample_prompts
from veneer.serialise import from_data, to_data
from veneer.train.distributed import ALONE, PeerLost, ProcessGroup
from veneer.train.events import CheckpointDue, EvaluationDue, Event, Finished, SampleDue, Stopped, Warned
from veneer.train.loop import Trainer
from veneer.train.step import NonFinite
from veneer.weights.checkpoint import Checkpoint
from veneer.weights.safetensors import encode

__all__ = ["TrainingSession", "open_session", "run_training"]


def run_training(
    config: RunConfig, *, overwrite: bool = False, resume: Resume | None = None, callback: Callback = ignore
) -> Result:
    """Train an adapter, save it, show it, measure it.

    Everything that can be refused is refused before training: the folder, the pictures, the base, the plan. SIGINT or
    SIGTERM while it trains ends it after the step with a checkpoint, and ``Interrupted`` is raised.

    Where a launcher such as torchrun started several processes they train together, to the same bits as one alone. The
    first of them writes the files, paints, and is the one that calls its callback. All have its result; a fault of one
    ends all, and the first raises it.

    Args:
        config: as the user wrote it; ``config.yaml`` in the output folder is the resolved one.
        overwrite: replace an earlier result, or an unfinished run, in the output folder.
        resume: go on from a checkpoint; None: start from nothing.
        callback: is called with each event.

    Raises:
        UserError: something is missing, damaged, or does not fit the rest.
        Interrupted: a signal stopped it.
    """
    with distributed() as processes, ExitStack() as held:
        processes.check_split(config.train)
        emit = held.enter_context(_hold_folder(config, callback)) if processes.is_first else EventBus.silent()
        inputs = prepare(config, StartOptions(resume, overwrite), emit, processes)
        plan = _plan(inputs, emit) if processes.is_first else None
        session = held.enter_context(open_session(inputs, emit, processes))
        if plan is not None:
            emit.add(held.enter_context(TrackerCallback(inputs.run, session.history, emit)))
            atomic_write(inputs.run.folder / PLAN, f"{json.dumps(plan.as_dict(), indent=2)}\n".encode())
            emit(Planned(plan))
        return session.conclude(session.train())


@contextmanager
def _hold_folder(config: RunConfig, callback: Callback) -> Iterator[EventBus]:
    """Keep every other run out of the output folder; yield the bus of this one's events."""
    trackers_of(config.tracking)  # one that is not installed is missed now and not after hours
    with writable(config.output.dir, "choose another output.dir=FOLDER"), locked(config.output.dir):
        emit = EventBus(callback)
        emit.add(MemoryRecorder(emit))
        yield emit


def _plan(inputs: TrainingInputs, emit: Callback) -> Plan:
    """Plan the run before anything of it is done; warn if it does not fit, and refuse nothing."""
    assessment = assess_run(inputs.run.config, inputs.family, inputs.dataset, inputs.run.metadata)
    if assessment.warning is not None:
        emit(Warned("plan.does_not_fit", assessment.warning))
    return assessment.plan


@contextmanager
def open_session(inputs: TrainingInputs, emit: EventBus, processes: ProcessGroup = ALONE) -> Iterator[TrainingSession]:
    """Make trainer, folder and log ready, empty or as they were at the checkpoint; close them in the end.

    Args:
        inputs: of the training; its folder is locked by the first process.
        emit: the bus of its events, which gets a log in the first process.
        processes: that train together.

    Raises:
        UserError: the settings do not fit the base, or the checkpoint is of another run.
    """
    run, start, history = inputs.run, inputs.start, RunHistory()
    with closing(Trainer(run.config, inputs.family, inputs.dataset, processes)) as trainer, ExitStack() as held:
        if start is not None:
            trainer.load_state_dict(start.state)
            history = read_history(run.folder / LOG, start.step)
            emit(Resumed(start.step, start.path, history.losses))
        if processes.is_first:
            # whatever could be refused has been, so an earlier result may go
            emit.open(held.enter_context(_open_log(run, start, inputs.dataset.split)))
        held.enter_context(record_faults(emit))
        yield TrainingSession(inputs, trainer, history, emit)


def _open_log(run: Identity, start: Checkpoint | None, split: SplitRecord) -> EventLog:
    """Make a run's folder empty, or as it was when the checkpoint was taken, and open its log."""
    if start is None:
        clear(run.folder)
    else:
        split = (read_split(run.folder) or split).extended_by(split)
        cut_log(run.folder / LOG, start.step)
        clear_samples(run.folder, after=start.step)
    (run.folder / LOG).touch()  # first, for by it the folder is known as a run's
    write_config(run.config, run.folder / CONFIG)
    write_split(split, run.folder)
    return EventLog(run.folder / LOG)


class TrainingSession:
    """A training that answers its own events: it paints, measures and keeps the state when they are due.

    Args:
        inputs: what it is made of.
        trainer: made of them, at its start.
        history: what earlier processes did of it.
        emit: is called with each event.
    """

    def __init__(self, inputs: TrainingInputs, trainer: Trainer, history: RunHistory, emit: Callback) -> None:
        self.history = history
        self._inputs, self._trainer, self._emit, self._processes = inputs, trainer, emit, trainer.processes
        self._samples = _sample_writer(inputs, emit)
        self._checkpoints = CheckpointManager(inputs.run, inputs.start, emit, trainer.processes)
        self._validator = Validator(trainer, inputs.run, inputs.family, inputs.dataset, emit)
        if inputs.start is not None:
            self._validator.load_state_dict(inputs.start.state)

    def train(self) -> Finished:
        """Train to the end; return the trained adapter.

        Raises:
            Interrupted: a signal stopped it; its state is in a checkpoint.
            NonFinite: a loss or a gradient was not finite.
            PeerLost: another process is gone; the state is in a checkpoint.
        """
        if self._processes.is_first:
            self._samples.rebuild()
        with stopping_at_signals(self._trainer.stop, launched=self._processes.count > 1) as caught:
            try:
                with closing(self._trainer.run()) as events:
                    for event in events:
                        self._emit(event)
                        self._answer(event)
                        if isinstance(event, Stopped):
                            number = max(self._processes.all_gather(caught.number))
                            raise Interrupted(number, event.step, self._checkpoints.last)
                        if isinstance(event, Finished):
                            self._validator.conclude()
                            return event
            except NonFinite as fault:
                raise fault.with_note(self._checkpoints.last_in_words) from fault
            except PeerLost as fault:
                self._write_checkpoint()
                raise fault.with_note(self._checkpoints.last_in_words) from fault
        raise AssertionError("a loop that does not stop ends with Finished")

    def conclude(self, finished: Finished) -> Result:
        """Save the adapter, show it and measure it; all processes return the result.

        Raises:
            UserError: it learned nothing, or a file cannot be written.
            Interrupted: a signal stopped it; the training's last state is in a checkpoint.
        """
        self._trainer.close()  # what follows wants the base as it was
        try:
            return self._from_first(partial(write_result, self._inputs, finished, self._emit))
        except Interrupted as stop:
            self._write_checkpoint()
            raise Interrupted(stop.signal, self._trainer.steps_done, self._checkpoints.last) from stop

    def _answer(self, event: Event) -> None:
        """Do what a step made due."""
        if isinstance(event, SampleDue):
            self._processes.first(partial(self._samples.write, event.step))
        elif isinstance(event, EvaluationDue):
            self._validator.validate(event.step)
        elif isinstance(event, CheckpointDue):
            self._check_agreement()
            self._write_checkpoint()
            self._checkpoints.share()

    def _write_checkpoint(self) -> None:
        self._checkpoints.write(self._trainer.steps_done, self._state())

    def _state(self) -> dict[str, Tensor]:
        return self._trainer.state_dict() | self._validator.state_dict()

    def _check_agreement(self) -> None:
        """Check that the trainer's state is the same in every process to the bit."""
        if self._processes.count == 1:
            return
        own = hashlib.sha256(encode(self._trainer.state_dict(), {})).hexdigest()
        if len(set(self._processes.all_gather(own))) > 1:
            raise UserError(
                "the processes have come to different numbers",
                code="distributed.different_numbers",
                where=f"step {self._trainer.steps_done}",
                remedy="run them on the same kind of device with the same number of threads",
            )

    def _from_first(self, work: Callable[[], Result]) -> Result:
        """Let the first process do the work; all return its result."""
        if self._processes.count == 1:
            return work()
        return from_data(Result, self._processes.first(lambda: to_data(work())))


def _sample_writer(inputs: TrainingInputs, emit: Callback) -> SampleWriter:
    config = inputs.run.config
    subjects, settings = sample_prompts(config, inputs.dataset), SampleSettings.of(config)
    cache, background = PromptCache.of(config, inputs.family), config.data.background
    return SampleWriter(inputs.family, subjects, settings, inputs.run.folder, emit, background, cache)

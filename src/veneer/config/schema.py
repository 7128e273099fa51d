"""The schema of a run's whole configuration: frozen, typed, unknown keys rejected.

Every key has a default but ``base`` and ``data.sources``. The defaults are the usual ones for Stable Diffusion
LoRAs: rank 4, alpha = rank, the attention projections, AdamW at 1e-4. ``~`` in a path is the home folder; what relative
paths are relative to is said in ``config.paths``. Large sections have modules of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from veneer.config.adapter_config import AdapterConfig
from veneer.config.base_config import Base
from veneer.config.data_config import DataConfig
from veneer.config.objective_config import ObjectiveConfig
from veneer.config.section import Section
from veneer.config.train_config import TrainConfig
from veneer.config.values import Count, Folder, Folders, NonBlank, Seed, as_several, as_tuple, without_repeats
from veneer.files import opens_paths

__all__ = [
    "OutputConfig",
    "RunConfig",
    "SampleConfig",
    "TrackingConfig",
    "ValidationConfig",
]

Trackers = Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], BeforeValidator(as_tuple)]
Formats = Annotated[
    tuple[Literal["diffusers", "kohya", "comfy", "peft"], ...],
    Field(min_length=1),
    BeforeValidator(as_tuple),
    AfterValidator(without_repeats),
]


class SampleConfig(Section):
    """Pictures made while and after training."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps between sample sheets; 0: none while training."""
    prompts: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """What to paint; default: captions of held-out pictures, with their references."""
    references: Annotated[tuple[Folders, ...], BeforeValidator(as_several)] = ()
    """For a base that edits: the picture that each prompt is applied to, or a list of several; one alone is for all."""
    steps: Count = 25
    """Denoising steps."""
    guidance: Annotated[float, Field(ge=1)] = 4.0
    """Classifier-free guidance (Ho and Salimans 2022); 1: none."""
    frames: Count = 1
    """Frames of each clip, of a base that was trained on clips: 4 k + 1 of Wan, 8 k + 1 of LTX. 1: pictures."""

    @model_validator(mode="after")
    def _has_as_many_references(self) -> SampleConfig:
        prompts, references = len(self.prompts), len(self.references)
        if references not in (0, prompts) and (references > 1 or not prompts):
            raise ValueError(
                f"references are {references}, but prompts are {prompts}; name one for each, or one for all"
            )
        return self


class TrackingConfig(Section):
    """Trackers that get curves and sample sheets beside ``run.jsonl``; each is an extra of the same name."""

    trackers: Trackers | None = None
    """Any of them, or ``[]`` for none; default: TensorBoard, if it is installed."""
    project: NonBlank = "veneer"
    """Project that the run belongs to in Trackio and at Weights & Biases."""


class ValidationConfig(Section):
    """The held-out score."""

    draws: Count = 8
    """Noise draws a picture, spread evenly over the timesteps."""
    pictures: Count = 64
    """Pictures of each kind that are measured on, at most: held-out ones, those trained on, those of other things."""
    every: Annotated[int, Field(ge=0)] = 0
    """Steps between scores while training; the last step has one too; the best adapter is kept. 0: only at the end."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Training stops after so many scores in a row that are not better than the best one; 0: never."""

    @model_validator(mode="after")
    def _has_something_to_wait_for(self) -> ValidationConfig:
        if self.patience and not self.every:
            raise ValueError(f"patience is {self.patience}, but every is 0, so there is no score to wait for")
        return self


class OutputConfig(Section):
    """The results of a run."""

    dir: Folder = Path("runs/adapter")
    """Folder of the run's results."""
    formats: Formats = ("diffusers", "kohya")
    """Formats that the adapter is written in, each beside the others: ``diffusers`` for diffusers, ``kohya`` for A1111,
    Forge, ComfyUI and kohya's scripts, ``comfy`` for ComfyUI alone, ``peft``. The first is saved before all else."""


class RunConfig(Section):
    """The configuration of one run."""

    base: Base
    """``bundled``, a diffusers folder, a ``.safetensors`` file, or a hub id. Where parts of it lie elsewhere, a
    mapping: ``path`` and ``components``."""
    data: DataConfig
    """The pictures."""
    seed: Seed = 0
    """Seed of everything random."""
    output: OutputConfig = OutputConfig()
    """The results."""
    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The loss."""
    train: TrainConfig = TrainConfig()
    """The training."""
    sample: SampleConfig = SampleConfig()
    """Pictures on the way."""
    tracking: TrackingConfig = TrackingConfig()
    """The trackers."""
    validation: ValidationConfig = ValidationConfig()
    """The held-out score."""

    @opens_paths
    def in_folder(self, folder: Path) -> RunConfig:
        """Return the same configuration with its results in another folder."""
        return self.model_copy(update={"output": self.output.model_copy(update={"dir": folder})})

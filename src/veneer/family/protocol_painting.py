"""What a family offers for painting: diffusers' pipeline over its networks, and how that is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from PIL import Image

__all__ = ["FamilyPainting"]


class FamilyPainting(Protocol):
    """The pipeline of a base."""

    guides: tuple[str, ...]
    """The names of networks beside the denoiser that its pipeline guides by, or paints what else it paints. No step of
    training calls them: they are read when the pipeline is asked for, and leave memory with the parts that are
    offloaded."""
    guided_batch: bool
    """Whether the pipeline guides by one batch of all rows twice, without and with their texts; else it has none, or
    guides by two passes."""

    encodes_prompts_apart: bool
    """Whether its pipeline calls text encoders within ``encode_prompt`` alone, whose results can be kept."""

    @property
    def inference_batch_size(self) -> int | None:
        """How many rows are painted or scored at once, where they would not fit into memory together; None: any."""

    @property
    def fewest_steps(self) -> int:
        """The fewest denoising steps that its scheduler paints in."""

    def pipeline_prompts(self, prompts: Sequence[str]) -> Mapping[str, object]:
        """Return how :meth:`pipeline` is told of prompts: its arguments."""

    def pipeline_guidance(self, scale: float) -> Mapping[str, object]:
        """Return how :meth:`pipeline` is told of a scale of guidance (Ho and Salimans 2022), of which 1 is none."""

    def pipeline_frames(self, count: int) -> Mapping[str, object]:
        """Return how :meth:`pipeline` is told of the frames of a clip: nothing, where it paints pictures only."""

    def frames_of(self, painted: object) -> Sequence[Sequence[Image.Image]]:
        """Return the frames of the clip of each prompt in what :meth:`pipeline` returned; a picture is one frame."""

    def pipeline_references(self, references: Sequence[Image.Image]) -> Mapping[str, object]:
        """Return how :meth:`pipeline` is told of a prompt's references, squares of the base's resolution."""

    def pipeline(self, *, texts: bool = True) -> object:
        """Return a diffusers pipeline over these very networks: what is injected or merged here is seen there.

        Args:
            texts: whether its text encoders are in it; else they stay out of memory where they are, and it cannot
                encode prompts.
        """

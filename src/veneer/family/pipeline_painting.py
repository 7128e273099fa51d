"""How families of diffusers pipelines paint: the pipeline over their networks, and the arguments of its call."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from veneer.family.pipeline_text import PipelineText

__all__ = ["PipelinePainting"]


class PipelinePainting(PipelineText):
    """The pipeline of a family, and how it is told of prompts, guidance, frames and references."""

    guidance_argument: str = "guidance_scale"
    """What the pipeline calls a scale of guidance of which 1 is none."""
    guided_batch: bool = True
    encodes_prompts_apart: bool = True
    reference_counts: range = range(1)
    usual_references: int = 0

    @property
    def fewest_steps(self) -> int:
        """Two where the schedule is stretched to end at ``shift_terminal``, which of one step makes NaN; else one."""
        return 2 if self._parts["scheduler"].config.get("shift_terminal") else 1

    @property
    def inference_batch_size(self) -> int | None:
        """One row of a large base, whose single rows keep a GPU busy; any number of others."""
        return 1 if self.is_large else None

    @torch.no_grad()
    def pipeline_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the pipeline's arguments for prompts: itself it reads one window of each."""
        if self.token_windows == 1:
            return {"prompt": list(prompts)}
        text, empty = self.encode_text(prompts).tensors, self.encode_text([""] * len(prompts)).tensors
        names = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
        told = {names[key]: tensor for key, tensor in text.items()}
        return told | {f"negative_{names[key]}": tensor for key, tensor in empty.items()}

    def pipeline_guidance(self, scale: float) -> dict[str, Any]:
        """Return the pipeline's arguments for a scale of guidance, of which 1 is none."""
        return {self.guidance_argument: scale}

    def pipeline_frames(self, count: int) -> dict[str, Any]:
        """Return nothing: the pipeline paints pictures only."""
        return {}

    def pipeline_references(self, references: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the pipeline's arguments for the references of one prompt."""
        raise NotImplementedError

    def frames_of(self, painted: Any) -> Sequence[Sequence[Image.Image]]:
        """Return each picture in what the pipeline returned as a clip of one frame."""
        return [[picture] for picture in painted.images]

    def pipeline(self, *, texts: bool = True) -> Any:
        """Return diffusers' pipeline over these networks; what is injected or merged here is seen there."""
        left_out = () if texts else self.text_encoders
        # all others are in memory, for it may be saved
        self._offloader.restore_others(left_out)
        scheduler = copy.deepcopy(self._parts["scheduler"])  # painting changes it: how many steps, which is next
        parts = {**self._parts, "scheduler": scheduler, **dict.fromkeys(left_out)}
        return self._pipeline_class()(**parts, **self._options)

    def _pipeline_for_text(self) -> Any:
        """Return diffusers' pipeline for its ``encode_prompt``, with all text encoders in memory."""
        for name in self.text_encoders:
            self._offloader.restore(name)
        return self._pipeline_class()(**self._parts, **self._options)

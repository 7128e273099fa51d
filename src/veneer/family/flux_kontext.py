"""FLUX.1 Kontext (Black Forest Labs 2025): FLUX.1 that is shown a picture, to which it applies an instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from veneer.family.flux import Flux
from veneer.family.packing import pack
from veneer.family.protocol import Conditioning
from veneer.weights.metadata import BaseLabels

__all__ = ["FluxKontext"]


class FluxKontext(Flux):
    """A Kontext base: the tokens of a reference stand behind the noisy ones, and their places are in a picture 1.

    Without a reference it paints from the text alone, as FLUX.1 does.
    """

    name = "flux_kontext"
    reference_counts = range(2)
    usual_references = 1

    @property
    def labels(self) -> BaseLabels:
        """Those of FLUX.1 [dev], whose layers it has, under a name of its own."""
        tags = ("image-to-image", "flux", "flux-kontext", "flux-diffusers")
        return replace(super().labels, architecture="flux-1-kontext-dev", civitai="Flux.1 Kontext", tags=tags)

    def pipeline_prompts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the pipeline's arguments for prompts, and the area that it fills whatever size it is asked for."""
        return {**super().pipeline_prompts(prompts), "max_area": self.resolution**2}

    def pipeline_references(self, references: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the pipeline's arguments for a reference, which it takes in the size that it has."""
        (reference,) = references
        return {"image": reference, "_auto_resize": False}

    def _picture_tokens(self, noisy: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        pictures = (noisy, *conditioning.references)
        places_L3 = torch.cat([self._places(picture, number) for number, picture in enumerate(pictures)])
        return torch.cat([pack(picture.to(noisy)) for picture in pictures], dim=1), places_L3

    @classmethod
    def _pipeline_class(cls) -> Any:
        from diffusers import FluxKontextPipeline

        return FluxKontextPipeline

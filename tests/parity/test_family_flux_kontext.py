"""FLUX.1 Kontext: what is peculiar to it; ``test_families.py`` and ``test_pairs.py`` have the rest."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.bases import write_flux_file
from tests.errors import raises_code
from tests.families.flux_kontext import CASE
from veneer.config.base_name import BaseName
from veneer.data.transform import Geometry, centered_square
from veneer.family.flux_kontext import FluxKontext
from veneer.family.packing import unpack
from veneer.family.protocol import Family
from veneer.family.registry import load_family
from veneer.sample.generate import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CASE.write(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def family(folder: Path) -> Iterator[Family]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FluxKontext, "trained_side", 8)
        yield load_family(str(folder))


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


@torch.no_grad()
def test_painting_sees_a_reference_as_training_does(family: Family) -> None:
    """Euler steps over the predictions, told a reference as training is, end in the latents that the pipeline paints.

    The pipeline left to itself would stretch the reference to one of its own sizes, and paint a megapixel.
    """
    side, shown = family.resolution, picture(30, 16)
    square = shown.resize((side, side), Image.Resampling.LANCZOS, box=(7, 0, 23, 16))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float().div(127.5).sub(1)
    text = family.condition(family.encode_text(["make it red"]), [Geometry.whole(side, side)])
    conditioning = text.joined_to(family.encode_references([pixels]).tensors)
    pipeline: Any = family.pipeline()
    pipeline.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 3, 3), mu=_mu(pipeline, side // family.multiple))
    shape = (1, 4, side // 2, side // 2)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    for sigma, after in pairwise(pipeline.scheduler.sigmas):
        latents = latents + (after - sigma) * family.predict(latents, sigma.double().expand(1), conditioning)
    options = {"height": side, "width": side, "num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    told = family.pipeline_prompts(["make it red"])

    def painted(**references: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        return unpack(family.pipeline()(**told, **references, **options, generator=generator).images, side // 4)

    own = painted(**family.pipeline_references([centered_square(shown, side)]))
    torch.testing.assert_close(own, latents, rtol=1e-4, atol=1e-5)
    assert (painted() - latents).abs().max() > 1e-3


def _mu(pipeline: Any, tokens_a_side: int) -> float:
    from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift

    config = pipeline.scheduler.config
    lengths = config.base_image_seq_len, config.max_image_seq_len
    mu: float = calculate_shift(tokens_a_side**2, *lengths, config.base_shift, config.max_shift)
    return mu


def test_a_file_is_kontext_s_where_its_folder_says_so(folder: Path, tmp_path: Path) -> None:
    """Its weights have the names of FLUX.1's."""
    file = write_flux_file(folder, tmp_path / "kontext.safetensors")
    base = load_family(BaseName(str(folder), {"transformer": str(file)}))
    assert (base.name, base.reference_counts) == ("flux_kontext", range(2))


def test_it_is_named_apart_from_flux(family: Family) -> None:
    labels = family.labels
    assert (labels.architecture, labels.civitai, labels.version) == ("flux-1-kontext-dev", "Flux.1 Kontext", "flux1")


def test_two_references_are_refused(family: Family) -> None:
    with raises_code("family.references"):
        generate(family, ["red"], [0], steps=1, references=[[picture(16, 16), picture(16, 16)]])

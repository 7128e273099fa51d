"""What programs and sites call each kind of base, as their own code spells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bases import write_tiny_flux, write_tiny_sdxl
from veneer.family.abstract import read_configs
from veneer.family.layer_names import published_names
from veneer.family.registry import family_class, load_family
from veneer.weights.metadata import BaseLabels


def labels_of(published: str) -> BaseLabels:
    labels = published_names(published).labels
    assert labels is not None
    return labels


@pytest.mark.parametrize(
    ("published", "version", "architecture", "webui", "civitai"),
    [
        ("sd15", "sd_v1", "stable-diffusion-v1", "SD1", "SD 1.5"),
        ("sd21", "sd_v2_v", "stable-diffusion-v2-768-v", "SD2", "SD 2.1 768"),
        ("sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "SDXL", "SDXL 1.0"),
        ("flux-dev", "flux1", "flux-1-dev", "Flux", "Flux.1 D"),
        ("lumina2", "lumina2", "lumina-2", "Unknown", "Lumina"),
        ("z-image", "z_image", "Z-Image", "Unknown", "ZImageBase"),
        ("z-image-turbo", "z_image", "Z-Image", "Unknown", "ZImageTurbo"),
        ("sd3-medium", "medium", "stable-diffusion-3-medium", "Unknown", "SD 3"),
        ("sd35-medium", "5-medium", "stable-diffusion-3-5-medium", "Unknown", "SD 3.5 Medium"),
        ("sd35-large", "5-large", "stable-diffusion-3-5-large", "Unknown", "SD 3.5 Large"),
    ],
)
def test_published_bases_have_the_names_that_programs_give_them(
    published: str, version: str, architecture: str, webui: str, civitai: str
) -> None:
    labels = labels_of(published)
    assert (labels.version, labels.architecture) == (version, architecture)
    assert (labels.webui, labels.civitai) == (webui, civitai)
    assert labels.tags and labels.is_v2 == (published == "sd21")


def test_a1111_lists_each_where_it_belongs() -> None:
    """As ``NetworkOnDisk.detect_version`` does (extensions-builtin/Lora/network.py)."""

    def detect(labels: BaseLabels) -> str:
        if str(labels.version).startswith("sdxl_"):
            return "SDXL"
        return "SD2" if str(labels.is_v2) == "True" else "SD1"

    assert [detect(labels_of(name)) for name in ("sd15", "sd21", "sdxl")] == ["SD1", "SD2", "SDXL"]


def test_kohyas_module_is_that_of_the_base() -> None:
    assert [labels_of(name).module for name in ("sd15", "flux-dev")] == ["networks.lora", "networks.lora_flux"]


def test_a_base_of_no_published_size_is_no_version_of_any(tiny_base: Path) -> None:
    labels = load_family(str(tiny_base)).labels
    assert (labels.version, labels.webui, labels.civitai) == (None, "Unknown", "Other")


def test_networks_give_the_labels_of_their_base(tmp_path: Path) -> None:
    family = load_family(str(write_tiny_sdxl(tmp_path / "sdxl")))
    assert family.networks.labels == family.labels  # type: ignore[attr-defined]


def test_flux_without_a_guidance_scale_is_schnell(tmp_path: Path) -> None:
    import torch

    flux = family_class("FluxPipeline")
    configs = read_configs(str(write_tiny_flux(tmp_path / "flux", takes_guidance=False)), flux.config_names())
    assert flux.abstract(configs, torch.float32).labels.civitai == "Flux.1 S"

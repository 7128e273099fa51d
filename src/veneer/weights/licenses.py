"""Licences of bases, as far as they are known: those of published weights, by the hub's id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LICENSES", "License", "license_of"]


@dataclass(frozen=True)
class License:
    """A licence as the hub's cards have it.

    Attributes:
        id: the hub's own name; ``other`` where it has none.
        title: what people call it.
        name: what a card calls it beside ``other``.
        link: where its text is.
    """

    id: str
    title: str
    link: str
    name: str | None = None

    @property
    def card_fields(self) -> dict[str, str]:
        """Return its keys in a card's front matter."""
        return (
            {"license": self.id}
            if self.name is None
            else {
                "license": self.id,
                "license_name": self.name,
                "license_link": self.link,
            }
        )


_RAIL_M = License(
    "creativeml-openrail-m",
    "CreativeML Open RAIL-M",
    "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
)
_RAIL_PP_2 = License(
    "openrail++",
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
)
_RAIL_PP_XL = License(
    "openrail++",
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
)
_RAIL_PP_PIXART = License(
    "openrail++",
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
)
_FLUX_DEV = License(
    "other",
    "FLUX.1 [dev] Non-Commercial License",
    "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    name="flux-1-dev-non-commercial-license",
)
_KREA_2 = License(
    "other",
    "Krea 2 Community License",
    "https://huggingface.co/krea/Krea-2-Raw",
    name="krea-2-community-license",
)
_STABILITY = License(
    "other",
    "Stability AI Community License",
    "https://stability.ai/community-license-agreement",
    name="stabilityai-ai-community",
)
_FLUX2_DEV = License(
    "other",
    "FLUX.2 [dev] Non-Commercial License",
    "https://huggingface.co/black-forest-labs/FLUX.2-dev/blob/main/LICENSE.txt",
    name="flux-dev-non-commercial-license",
)
_FLUX2_KLEIN_9B = License(
    "other",
    "FLUX Non-Commercial License",
    "https://huggingface.co/black-forest-labs/FLUX.2-klein-9B/blob/main/LICENSE.md",
    name="flux-non-commercial-license",
)
_NVIDIA = License(
    "other",
    "NVIDIA License",
    "https://huggingface.co/Efficient-Large-Model/Sana_1600M_1024px_diffusers/blob/main/LICENSE.txt",
    name="nvidia-license",
)
_IDEOGRAM4 = License(
    "other",
    "Ideogram 4 Non-Commercial Model Agreement",
    "https://huggingface.co/ideogram-ai/ideogram-4-fp8/blob/main/LICENSE.md",
    name="ideogram-4-non-commercial",
)
_CIRCLESTONE = License(
    "other",
    "CircleStone Labs Non-Commercial License",
    "https://huggingface.co/circlestone-labs/Anima/blob/main/LICENSE.md",
    name="circlestone-labs-non-commercial-license",
)
_LTX_2 = License(
    "other",
    "LTX-2 Community License Agreement",
    "https://github.com/Lightricks/LTX-2/blob/main/LICENSE",
    name="ltx-2-community-license-agreement",
)
_APACHE = License("apache-2.0", "Apache 2.0", "https://www.apache.org/licenses/LICENSE-2.0")
_MIT = License("mit", "MIT", "https://opensource.org/license/mit")
_BUNDLED = License("cc-by-4.0", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/")

LICENSES: Mapping[str, License] = {
    "bundled": _BUNDLED,
    "CompVis/stable-diffusion-v1-4": _RAIL_M,
    "runwayml/stable-diffusion-v1-5": _RAIL_M,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _RAIL_M,
    "stabilityai/stable-diffusion-2": _RAIL_PP_2,
    "stabilityai/stable-diffusion-2-base": _RAIL_PP_2,
    "stabilityai/stable-diffusion-2-1": _RAIL_PP_2,
    "stabilityai/stable-diffusion-2-1-base": _RAIL_PP_2,
    "stabilityai/stable-diffusion-xl-base-1.0": _RAIL_PP_XL,
    "stabilityai/stable-diffusion-3-medium-diffusers": _STABILITY,
    "stabilityai/stable-diffusion-3.5-medium": _STABILITY,
    "stabilityai/stable-diffusion-3.5-large": _STABILITY,
    "stabilityai/stable-diffusion-3.5-large-turbo": _STABILITY,
    "black-forest-labs/FLUX.1-dev": _FLUX_DEV,
    "black-forest-labs/FLUX.1-schnell": _APACHE,
    "krea/Krea-2-Raw": _KREA_2,
    "krea/Krea-2-Turbo": _KREA_2,
    "HiDream-ai/HiDream-I1-Full": _MIT,
    "HiDream-ai/HiDream-I1-Dev": _MIT,
    "HiDream-ai/HiDream-I1-Fast": _MIT,
    "Alpha-VLLM/Lumina-Image-2.0": _APACHE,
    "Tongyi-MAI/Z-Image": _APACHE,
    "Tongyi-MAI/Z-Image-Turbo": _APACHE,
    "ideogram-ai/ideogram-4-fp8": _IDEOGRAM4,
    "ideogram-ai/ideogram-4-nf4": _IDEOGRAM4,
    "baidu/ERNIE-Image": _APACHE,
    "baidu/ERNIE-Image-Turbo": _APACHE,
    "black-forest-labs/FLUX.2-dev": _FLUX2_DEV,
    "black-forest-labs/FLUX.2-klein-4B": _APACHE,
    "black-forest-labs/FLUX.2-klein-base-4B": _APACHE,
    "black-forest-labs/FLUX.2-klein-9B": _FLUX2_KLEIN_9B,
    "black-forest-labs/FLUX.2-klein-base-9B": _FLUX2_KLEIN_9B,
    "fal/AuraFlow": _APACHE,
    "fal/AuraFlow-v0.2": _APACHE,
    "fal/AuraFlow-v0.3": _APACHE,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": _RAIL_PP_PIXART,
    "Efficient-Large-Model/Sana_600M_1024px_diffusers": _NVIDIA,
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": _NVIDIA,
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": _NVIDIA,
    "circlestone-labs/Anima": _CIRCLESTONE,
    "circlestone-labs/Anima-Base-v1.0-Diffusers": _CIRCLESTONE,
    "Lightricks/LTX-2": _LTX_2,
    "Lightricks/LTX-2.3": _LTX_2,
    "Qwen/Qwen-Image": _APACHE,
    "Qwen/Qwen-Image-2512": _APACHE,
    "Qwen/Qwen-Image-Edit": _APACHE,
    "Qwen/Qwen-Image-Edit-2509": _APACHE,
    "Qwen/Qwen-Image-Edit-2511": _APACHE,
}
"""Each licence by the base's hub id. A base that is not here, a fine-tune or a file from elsewhere, may have any."""


def license_of(base: str) -> License | None:
    """Return the licence of a base by its hub id, whose case does not matter; None where it is not known."""
    return {name.lower(): value for name, value in LICENSES.items()}.get(base.lower())

"""The bundled base's model card."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from . import autoencoder, concepts, drawings
from .design import Design
from .quality import STEPS, Quality

_TEMPLATE = """\
---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, stable-diffusion, emoji]
---
# The bundled base

A small text-to-image model of Stable Diffusion's architecture: {millions:.1f} million parameters, {px} x {px} pixels,
{concepts} things known by name (`concepts.txt`). It exists so that a LoRA can be trained, measured and looked at on
any machine, without a download. It paints emoji, and nothing else.

    import veneer.base
    from diffusers import StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained(veneer.base.path())
    pipeline("a turtle emoji", num_inference_steps={steps}, guidance_scale={guidance}).images[0]

![60 of its prompts](sheet.png)

## Figures

Printed by `python -m tools.build_base`, which also made the weights. {steps} steps, fixed seeds, guidance {guidance}
(the best of those tried).

| measure | value |
| --- | --- |
| autoencoder, PSNR on Noto drawings it never saw | {psnr_noto_held_out:.1f} dB |
| autoencoder, PSNR on OpenMoji's drawings, a style it never saw | {psnr_openmoji:.1f} dB |
| a generated picture finds its own concept's drawing first among {concepts} | {top1:.1f} % |
| ... among the first five | {top5:.1f} % |

Distance is taken in the autoencoder's latents, either way round.

## How it was made

- Autoencoder (`AutoencoderKL`, a factor of 8, 16 channels): {vae_steps} steps of {vae_batch} drawings of {vae_sets};
  one name in {one_in} was kept from it in every set. Half of its drawings got a black outline around every shape, so
  that line art survives it. Its posterior is narrowed to its mean.
- Text encoder (`CLIPTextModel`, two layers) and denoiser (`UNet2DConditionModel`, attention at all three levels),
  together, v-prediction with zero terminal SNR: {unet_steps} steps of {batch} drawings, {noto} of them Noto's, which
  is what a prompt gets that names no style; the others come with their style in the caption ({styles}), so that a thing
  is known apart from how one set draws it. Then {steps_finish} steps with {noto_finish} of Noto's.
{varied}- Nothing of OpenMoji, the demo style, was seen by any part.

## Licence

The drawings are the work of others: {licences}.
{owners}
The weights are given under CC BY 4.0.
"""

_VARIED = """\
- {share:.0%} of what is shown are {count:,} pictures made of drawings: moved, turned and tinted, on a coloured ground
  that the caption names, or two things side by side.
"""
_LICENCE = "`@iconify-json/{name}` {version} ({licence})"
_OWNERS = {
    "noto": "Noto Emoji is Copyright Google LLC",
    "twemoji": "Twemoji is Copyright Twitter, Inc. and other contributors",
    "fxemoji": "FxEmoji is Copyright Mozilla Foundation",
    "fluent-emoji-flat": "Fluent Emoji is Copyright Microsoft Corporation",
    "emojione": "EmojiOne 2 is by Emoji One",
    "icon-park": "IconPark is Copyright ByteDance",
    "mdi": "Material Design Icons are by Pictogrammers",
    "ph": "Phosphor Icons are Copyright Phosphor Icons",
}
_ORDER = (
    "noto",
    "noto-v1",
    "twemoji",
    "emojione",
    "emojione-monotone",
    "fxemoji",
    "fluent-emoji-flat",
    "fluent-emoji-high-contrast",
    "icon-park",
    "mdi",
    "ph",
)
_WORDS = {0.5: "half", 0.8: "four fifths", 0.26: "a quarter", 0.7: "seven tenths"}
"""Shares of Noto's drawings, as one says them."""
_TITLES = {
    "noto": "Noto",
    "twemoji": "Twemoji",
    "fxemoji": "FxEmoji",
    "fluent-emoji-flat": "Fluent Emoji Flat",
    "fluent-emoji-high-contrast": "Fluent Emoji High Contrast",
    "emojione": "EmojiOne",
    "noto-v1": "Noto's first edition",
}


def text_of(design: Design, figures: Quality, steps: Mapping[str, int]) -> str:
    """The card, filled with what was measured.

    Args:
        design: of the base.
        figures: measured of it.
        steps: that were made, by ``autoencoder``, ``denoiser``, ``finish``.
    """
    sets = sets_of(design)
    titles = [_TITLES[name] for name in autoencoder.sets_of(design)]
    return _TEMPLATE.format(
        millions=figures.parameters / 1e6,
        px=design.pixels,
        concepts=figures.concepts,
        steps=STEPS,
        guidance=figures.guidance,
        psnr_noto_held_out=figures.psnr_noto_held_out,
        psnr_openmoji=figures.psnr_openmoji,
        top1=100 * figures.retrieval_top1,
        top5=100 * figures.retrieval_top5,
        vae_steps=steps["autoencoder"],
        vae_batch=design.autoencoder.batch,
        vae_sets=", ".join(titles[:-1]) + f" and {titles[-1]}",
        one_in=round(1 / autoencoder.HELD_OUT),
        unet_steps=steps["denoiser"],
        steps_finish=steps["finish"],
        batch=design.denoiser.batch,
        noto=_WORDS[design.shares["noto"]],
        noto_finish=_WORDS[design.finish_shares["noto"]],
        styles=", ".join(f"`{suffix[2:]}`" for suffix in design.styles.values() if suffix),
        varied=_VARIED.format(share=design.shares[concepts.VARIED], count=design.varied) if design.is_varied else "",
        licences=", ".join(
            _LICENCE.format(name=name, version=drawings.PACKAGES[name].version, licence=drawings.PACKAGES[name].licence)
            for name in sets
        ),
        owners=textwrap.fill("; ".join(owner for name, owner in _OWNERS.items() if name in sets) + ".", 118),
    )


def sets_of(design: Design) -> list[str]:
    """The sets that any part of a base is trained on."""
    trained = {*map(concepts.set_of, design.styles), *autoencoder.sets_of(design)}
    return sorted(trained, key=_ORDER.index)

"""The bundled base's model card."""

from __future__ import annotations

from . import autoencoder, concepts, denoiser, drawings
from .quality import STEPS, Quality

_TEMPLATE = """\
---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, stable-diffusion, emoji]
---
# The bundled base

A small text-to-image model of Stable Diffusion's architecture: {millions:.1f} million parameters, 64 x 64 pixels,
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
  together, v-prediction with zero terminal SNR: {steps_unet} steps of {batch_unet} drawings, half of them Noto's, which
  is what a prompt gets that names no style; the others come with their style in the caption ({styles}), so that a thing
  is known apart from how one set draws it. Then {steps_finish} steps with four fifths of Noto's.
- Nothing of OpenMoji, the demo style, was seen by any part.

## Licence

The drawings are the work of others: {licences}.
Noto Emoji is Copyright Google LLC; Twemoji is Copyright Twitter, Inc. and other contributors; FxEmoji is Copyright
Mozilla Foundation; Fluent Emoji is Copyright Microsoft Corporation; EmojiOne 2 is by Emoji One.
The weights are given under CC BY 4.0.
"""

_LICENCE = "`@iconify-json/{name}` {version} ({licence})"
_LICENCES = {
    "noto": "Apache-2.0",
    "noto-v1": "Apache-2.0",
    "twemoji": "CC BY 4.0",
    "emojione": "CC BY 4.0",
    "fxemoji": "Apache-2.0",
    "fluent-emoji-flat": "MIT",
    "fluent-emoji-high-contrast": "MIT",
}


def text_of(figures: Quality) -> str:
    """The card, filled with what was measured."""
    return _TEMPLATE.format(
        millions=figures.parameters / 1e6,
        concepts=figures.concepts,
        steps=STEPS,
        guidance=figures.guidance,
        psnr_noto_held_out=figures.psnr_noto_held_out,
        psnr_openmoji=figures.psnr_openmoji,
        top1=100 * figures.retrieval_top1,
        top5=100 * figures.retrieval_top5,
        vae_steps=autoencoder.RECIPE.steps,
        vae_batch=autoencoder.RECIPE.batch,
        vae_sets="Noto, Twemoji, FxEmoji and Fluent Emoji Flat",
        one_in=round(1 / autoencoder.HELD_OUT),
        steps_unet=denoiser.RECIPE.steps,
        steps_finish=denoiser.FINISH.steps,
        batch_unet=denoiser.RECIPE.batch,
        styles=", ".join(f"`{suffix[2:]}`" for suffix in concepts.STYLES.values() if suffix),
        licences=", ".join(
            _LICENCE.format(name=n, version=drawings.PACKAGES[n].version, licence=text) for n, text in _LICENCES.items()
        ),
    )

"""Make the bundled base from nothing: ``python -m tools.build_base --work build/base``; goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from . import autoencoder, card, concepts, demo, denoiser, drawings, quality, text
from .concepts import Concept
from .drawings import DrawingSet

HERE = Path(__file__).parent
BASE = HERE.parents[1] / "src" / "veneer" / "base"


def main() -> None:
    """Build every part, or go on building; measure; write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for packages, caches and training states")
    parser.add_argument("--out", type=Path, default=BASE, help="folder that gets model/ and demo/")
    options = parser.parse_args()
    sets = {name: DrawingSet(p, options.work / "packages") for name, p in drawings.PACKAGES.items()}
    known = concepts.concepts(sets)
    demo.write(options.out / "demo", known, sets["openmoji"])
    vae = autoencoder.train(sets, options.work)
    tokenizer = tokenizer_for(known, options.work)
    torch.manual_seed(2)
    encoder = text.make_encoder(tokenizer)
    unet, encoder = denoiser.train(denoiser.lessons(known, sets, vae, tokenizer), encoder, options.work)
    save(options.out / "model", vae, tokenizer, encoder, unet)
    publish(options.out / "model", options.work, known, sets)


def tokenizer_for(known: list[Concept], work: Path) -> CLIPTokenizer:
    """The tokenizer whose merges are those of the captions."""
    texts = [t for c in known for style in concepts.STYLES for _, t in concepts.captions(c, style)]
    return text.train_tokenizer(texts, work / "tokenizer")


def save(
    folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, unet: UNet2DConditionModel
) -> None:
    """Write the base in diffusers' layout, float16 safetensors."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=denoiser.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # what transformers loads it in where nobody says; diffusers loads the other parts so
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        source = Path(tokenizer.name_or_path) / name  # older readers want CLIP's own files
        if not (folder / "tokenizer" / name).exists():
            shutil.copy(source, folder / "tokenizer" / name)


def publish(model: Path, work: Path, known: list[Concept], sets: dict[str, DrawingSet]) -> None:
    """Measure what was written and put figures, card, sheet and logs beside it."""
    figures, sheet = quality.measure(model, known, sets)
    (model / "quality.json").write_text(json.dumps(figures.as_dict(), indent=2) + "\n")
    (model / "concepts.txt").write_text("".join(f"{c.words}\n" for c in known))
    (model / "README.md").write_text(card.text_of(figures))
    sheet.save(model / "sheet.png", optimize=True)
    for part in ("autoencoder", "denoiser", "finish"):
        shutil.copy(work / part / "log.jsonl", HERE / f"{part}.log.jsonl")
    print(json.dumps(figures.as_dict(), indent=2), flush=True)


if __name__ == "__main__":
    main()

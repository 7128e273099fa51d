"""Fixtures that several rooms share: a tiny Stable Diffusion, drawn at random, in diffusers' own folder layout."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from veneer.family.protocol import Family

# one thread a process, before torch is loaded: files are tested beside one another, a process for each core
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a busy machine is slow now and then, which is no fault of the code
settings.register_profile("veneer", deadline=None)
settings.load_profile("veneer")


def pytest_collection_finish() -> None:
    """Leave out of every later garbage collection what the imports made: a million objects, which stay anyway."""
    gc.collect()
    gc.freeze()


START, END = "<|startoftext|>", "<|endoftext|>"


def _byte_alphabet() -> list[str]:
    """The 256 printable characters that byte-level BPE writes bytes as (Radford et al. 2019)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + place) for place in range(len(hidden))]


def write_tiny_tokenizer(folder: Path) -> None:
    """A byte-level BPE of CLIP's kind that takes any text: 256 bytes, each also as the end of a word, five merges."""
    merges = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("d", "o")]
    letters = _byte_alphabet()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "bos_token": START}
    config |= {"eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def _tiny_text_encoder(vocabulary: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def _tiny_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
    )


def _tiny_autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )


def write_tiny_base(folder: Path, prediction: str, zero_terminal_snr: bool) -> Path:
    """A Stable Diffusion pipeline of random weights (seed 0) at 16 pixels, 8 x 8 latents; the same bits each time."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    write_tiny_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"vae": _tiny_autoencoder(), "unet": _tiny_unet(), "text_encoder": _tiny_text_encoder(len(tokenizer))}
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random base that predicts epsilon; read only."""
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny", "epsilon", zero_terminal_snr=False)


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> Family:
    """The tiny base, loaded once for a file's tests; each leaves it as it found it."""
    from veneer.family.registry import load_family

    return load_family(str(tiny_base))


@pytest.fixture(scope="session")
def tiny_base_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random base that predicts v, with zero terminal SNR (Lin et al. 2024); read only."""
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny_v", "v_prediction", zero_terminal_snr=True)


def write_tiny_pictures(folder: Path) -> Path:
    """Twelve PNG of 64 x 64 pixels, three shapes in four colours on white, with ``metadata.jsonl``."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True)
    lines = []
    for shape in ("square", "circle", "cross"):
        for colour in ("red", "green", "blue", "black"):
            image = Image.new("RGB", (64, 64), "white")
            draw = ImageDraw.Draw(image)
            if shape == "square":
                draw.rectangle((16, 16, 47, 47), fill=colour)
            elif shape == "circle":
                draw.ellipse((8, 8, 55, 55), fill=colour)
            else:
                draw.line((8, 8, 55, 55), fill=colour, width=9)
                draw.line((55, 8, 8, 55), fill=colour, width=9)
            name = f"{colour}_{shape}.png"
            image.save(folder / name)
            lines.append(json.dumps({"file_name": name, "text": f"a {colour} {shape}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of twelve captioned pictures; read only."""
    return write_tiny_pictures(tmp_path_factory.mktemp("pictures") / "shapes")

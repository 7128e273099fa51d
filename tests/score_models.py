"""Tiny random CLIP, DINOv2 and aesthetic head, in the layouts that people have theirs in."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.conftest import write_tiny_tokenizer


def write_tiny_clip(folder: Path) -> Path:
    """A CLIP of random weights (seed 0), 16 pixels, embeddings of 8 numbers."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    write_tiny_tokenizer(folder)
    words = len(CLIPTokenizer.from_pretrained(folder))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": words, "max_position_embeddings": 16}
    text |= {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    vision = {**small, "image_size": 16, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    _write_processor(folder, "CLIPImageProcessor")
    return folder


def write_tiny_dino(folder: Path) -> Path:
    """A DINOv2 of random weights (seed 0), 16 pixels, features of 12 numbers."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder)
    _write_processor(folder, "BitImageProcessor")
    return folder


def write_tiny_head(path: Path, width: int = 8) -> Path:
    """Two linear layers, named as LAION's predictor names its own."""
    random = torch.Generator().manual_seed(0)
    shapes = {"layers.2": (1, 4), "layers.0": (4, width)}
    tensors = {f"{name}.weight": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    save_file(tensors | {f"{name}.bias": torch.full((shape[0],), 0.5) for name, shape in shapes.items()}, path)
    return path


def _write_processor(folder: Path, kind: str) -> None:
    import json

    told = {"image_processor_type": kind, "do_resize": True, "size": {"shortest_edge": 16}, "resample": 3}
    told |= {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}, "do_rescale": True}
    told |= {"rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True}
    told |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))

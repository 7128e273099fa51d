"""A run whose adapter loses next to nothing when it is cut to rank 2, for tests of resizing."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.bases import Defaults
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.config.load import config_from_folder, resolve, write_config
from veneer.data.preflight import survey
from veneer.family.registry import load_family
from veneer.rng import torch_generator
from veneer.run.folder import CONFIG
from veneer.run.identity import identify
from veneer.weights.file import FILE_NAME, AdapterFile, save

__all__ = ["save_run_of_rank_4"]


def save_run_of_rank_4(base: Path, pictures: Path, folder: Path) -> Path:
    """Write the folder of a run of rank 4 whose delta W is nearly of rank 2: its config and its adapter."""
    words = [f"output.dir={folder}", "data.held_out=0.25", "adapter.rank=4", "validation.draws=2", "sample.steps=1"]
    config = resolve(config_from_folder(pictures, "sks", [f"base={base}", *words]), Defaults(16))
    family = load_family(str(base))
    folder.mkdir()
    write_config(config, folder / CONFIG)
    factors = {
        path: _nearly_of_rank_two(path, tuple(layer.weight.shape))
        for path, layer in layers_of({"unet": family.networks["unet"]}).items()
        if path.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    }
    save(AdapterFile(factors, identify(config, survey(config.data), family).metadata), folder / FILE_NAME)
    return folder


def _nearly_of_rank_two(path: str, shape: tuple[int, ...]) -> LoraFactors:
    generator = torch_generator(0, path)
    strength = torch.tensor([1.0, 0.8, 1e-5, 1e-6])
    down = torch.linalg.qr(torch.randn(shape[1], 4, generator=generator))[0].T
    up = torch.linalg.qr(torch.randn(shape[0], 4, generator=generator))[0] * strength
    # what resizing finds must not hang on the factors as they happen to lie
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    return LoraFactors(turn.T @ down, up @ turn, 4.0)

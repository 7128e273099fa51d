"""The ways that diffusers and peft offer, as their documents describe them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.model import _adapter_names_pre_forward_hook
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from veneer.adapter.protocol import AdapterWeights
from veneer.weights.file import AdapterFile, save

__all__ = ["fused", "load_all", "mixed", "text_to_image_steps", "write"]


def write(adapters: Mapping[str, AdapterWeights], folder: Path) -> dict[str, str]:
    """Write a file of each adapter; return them by name."""
    paths = {name: folder / f"{name}.safetensors" for name in adapters}
    for name, path in paths.items():
        save(AdapterFile(adapters[name]), path)
    return {name: str(path) for name, path in paths.items()}


@contextmanager
def fused(pipeline: StableDiffusionPipeline, file: str) -> Iterator[None]:
    """Load an adapter's file and fuse it; afterwards unfuse and unload."""
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora()
    yield
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()


def load_all(pipeline: StableDiffusionPipeline, files: Mapping[str, str]) -> None:
    """Load every adapter under its name, ready for ``set_adapters`` and for mixed batches."""
    for name, file in files.items():
        pipeline.load_lora_weights(file, adapter_name=name)


@contextmanager
def mixed(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Set up peft's mixed batch, a name a row, by the very hooks that ``PeftModel(..., adapter_names=names)`` sets."""
    hook = partial(_adapter_names_pre_forward_hook, adapter_names=list(names))
    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    yield
    for handle in handles:
        handle.remove()


def text_to_image_steps(pipeline: Any, pictures: Sequence[tuple[Path, str]], side: int) -> Iterator[float]:
    """Train in steps of batch 1, for ever, and yield the loss of each.

    The loop of ``examples/text_to_image/train_text_to_image_lora.py`` of huggingface/diffusers with its defaults:
    pictures are decoded, encoded by the autoencoder, and captions by the text encoder, in every step; adapters are
    peft's on the UNet's attention; AdamW, gradients clipped to 1. Left out, as they take no time of note: accelerate's
    bookkeeping, the constant schedule, the bar.

    Args:
        pipeline: the base; its UNet gets the adapters.
        pictures: files and captions.
        side: of the square that pictures are resized and cut to.
    """
    unet, autoencoder, text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    learning = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    noising: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    loader: Any = DataLoader(_Pictures(pipeline.tokenizer, pictures, side), batch_size=1, shuffle=True)
    unet.train()
    while True:
        for batch in loader:
            latents = autoencoder.encode(batch["pixel_values"]).latent_dist.sample() * autoencoder.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, noising.config.num_train_timesteps, (latents.shape[0],))
            noisy = noising.add_noise(latents, noise, timesteps)
            states = text_encoder(batch["input_ids"], return_dict=False)[0]
            target = noise if noising.config.prediction_type == "epsilon" else latents
            if noising.config.prediction_type == "v_prediction":
                target = noising.get_velocity(latents, noise, timesteps)
            loss = functional.mse_loss(unet(noisy, timesteps, states, return_dict=False)[0].float(), target.float())
            loss.backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()


class _Pictures(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A dataset of pictures, resized, cut from the middle, scaled to [-1, 1], with captions as tokens."""

    def __init__(self, tokenizer: Any, pictures: Sequence[tuple[Path, str]], side: int) -> None:
        self._tokenizer, self._pictures, self._side = tokenizer, pictures, side

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        path, caption = self._pictures[place]
        with Image.open(path) as picture:
            image = picture.convert("RGB")
        scale = self._side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = ((whole - self._side) // 2 for whole in image.size)
        pixels = np.asarray(image.crop((left, top, left + self._side, top + self._side)), dtype=np.float32)
        length = self._tokenizer.model_max_length
        tokens = self._tokenizer(caption, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        return {
            "pixel_values": (torch.from_numpy(pixels / 255).permute(2, 0, 1) - 0.5) / 0.5,
            "input_ids": tokens.input_ids[0],
        }

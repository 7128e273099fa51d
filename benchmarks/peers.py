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

__all__ = ["fused", "latent_steps", "load_all", "mixed", "text_to_image_steps", "write"]


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


def text_to_image_steps(
    pipeline: Any, pictures: Sequence[tuple[Path, str]], side: int, batch: int = 1, rank: int = 4
) -> Iterator[float]:
    """Train in steps, for ever, and yield the loss of each.

    The loop of ``examples/text_to_image/train_text_to_image_lora.py`` of huggingface/diffusers with its defaults:
    pictures are decoded, encoded by the autoencoder, and captions by the text encoder, in every step; adapters are
    peft's on the UNet's attention; AdamW, gradients clipped to 1. Left out, as they take no time of note: accelerate's
    bookkeeping, the constant schedule, the bar.

    Args:
        pipeline: the base, where it is to train and in the dtype of its mixed precision; its UNet gets the adapters.
        pictures: files and captions.
        side: of the square that pictures are resized and cut to.
        batch: pictures a step.
        rank: of the adapters.
    """
    autoencoder, text_encoder = pipeline.vae, pipeline.text_encoder
    training = _Training(pipeline.unet, pipeline.scheduler.config, rank)
    loader: Any = DataLoader(_Pictures(pipeline.tokenizer, pictures, side), batch_size=batch, shuffle=True)
    while True:
        for found in loader:
            pixels = found["pixel_values"].to(training.weight)
            latents = autoencoder.encode(pixels).latent_dist.sample() * autoencoder.config.scaling_factor
            states = text_encoder(found["input_ids"].to(training.weight.device), return_dict=False)[0]
            yield training.step(latents, states, {}).item()


def latent_steps(
    unet: Any, scheduler: Any, latents: Tensor, states: Tensor, added: Mapping[str, Tensor], rank: int = 4
) -> Iterator[Tensor]:
    """Train as :func:`text_to_image_steps` does on latents and texts that are there already; yield each loss unread.

    Args:
        unet: the denoiser, where it is to train and in the dtype of its mixed precision; it gets the adapters.
        scheduler: configuration of the noise.
        latents: (B, C, H, W).
        states: the text encoders' (B, L, D).
        added: what an SDXL is told beside them.
        rank: of the adapters.
    """
    training = _Training(unet, scheduler, rank)
    while True:
        yield training.step(latents, states, added)


class _Training:
    """The example's step over peft's adapters on a UNet's attention.

    Attributes:
        weight: one of the UNet, which says where it is and in which dtype.
    """

    def __init__(self, unet: Any, scheduler: Any, rank: int) -> None:
        self._unet, self.weight = unet, next(unet.parameters())
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
        self._learning = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        settings: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}
        self._optimizer = torch.optim.AdamW(self._learning, **settings)
        self._noising: Any = DDPMScheduler.from_config(scheduler)
        unet.train()

    def step(self, latents: Tensor, states: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of one step, on its device."""
        noising, device = self._noising, self.weight.device
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, noising.config.num_train_timesteps, (latents.shape[0],), device=device)
        noisy = noising.add_noise(latents, noise, timesteps)
        target = noise if noising.config.prediction_type == "epsilon" else latents
        if noising.config.prediction_type == "v_prediction":
            target = noising.get_velocity(latents, noise, timesteps)
        mixed = self.weight.dtype != torch.float32
        with torch.autocast(device.type, dtype=self.weight.dtype if mixed else None, enabled=mixed):
            more = {"added_cond_kwargs": dict(added)} if added else {}
            predicted = self._unet(noisy, timesteps, states, return_dict=False, **more)[0]
        loss = functional.mse_loss(predicted.float(), target.float())
        loss.backward()
        nn.utils.clip_grad_norm_(self._learning, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss


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

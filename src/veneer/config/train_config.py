"""The section ``train`` of a config: how long, how fast, and in how much memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from veneer.config.section import Section
from veneer.config.values import Count, Positive, Share, as_tuple

__all__ = ["OptimizerConfig", "TrainConfig", "WeightFormat"]

WeightFormat = Literal["none", "bfloat16", "float16", "bnb_nf4", "bnb_int8", "torchao_int8", "torchao_fp8"]


class OptimizerConfig(Section):
    """AdamW on the adapter's parameters only (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    """Which optimiser."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    betas: Annotated[tuple[Share, Share], BeforeValidator(as_tuple)] = (0.9, 0.999)
    """Decay of the gradient's first and second moments."""
    epsilon: Positive = 1e-8
    """Number added to the denominator."""


class TrainConfig(Section):
    """The training: how long, and how."""

    max_steps: Count = 400
    """Optimiser steps."""
    batch_size: Count = 4
    """Pictures a forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes an optimiser step; batch_size x gradient_accumulation_steps pictures make one gradient."""
    learning_rate: Positive = 1e-4
    """Learning rate of the denoiser's adapter."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Which optimiser, and its settings."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up: not, or to zero at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from zero."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; null: never."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an average over the steps, e.g. 0.99, which is saved and painted instead of the last step's adapter."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen model's arithmetic; the adapter stays float32."""
    memory: Literal["exact", "lean", "leaner", "checkpoint"] = "exact"
    """How little is kept for the backward pass, with the same gradients up to rounding: all; nothing that is not read
    or that norms and activations make again; no outputs of linear layers either; the inputs of blocks alone."""
    cuda_graphs: bool = True
    """On a CUDA GPU, launch a forward and backward pass as one recorded graph; a run with dropout, with text encoders
    that learn, or with pictures of more than 40 sizes never does."""
    quantization: WeightFormat = "none"
    """What the frozen weights of the networks that learn are held in: float32, 16 bits, or linear layers in fewer by
    bitsandbytes or torchao, each an extra of its name; the adapter stays float32."""
    text_encoder_quantization: WeightFormat | None = None
    """What text encoders that do not learn are held in: the formats of ``quantization``; default: float32, but of a
    base whose text encoders are large the 16-bit numbers of their files, of which they make the same."""
    offload: bool = True
    """Encode first all that the run will see, then let autoencoder and text encoder leave memory, but for painting and
    scoring; those that a step needs stay. The denoiser of a large base is read only then."""
    offload_blocks: Annotated[int, Field(ge=0)] = 0
    """Number of the denoiser's repeated blocks whose frozen weights wait in CPU memory and are copied to the GPU before
    they are needed, two of them at a time; the results have the same bits. There are no CUDA graphs then. 0: none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do in a step whose loss or gradient is not finite: end the run, or leave the adapter as it is."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 100
    """Steps between checkpoints, from which a stopped run goes on; the last step has one too. 0: when stopped only."""
    keep_checkpoints: Count = 2
    """How many checkpoints are kept, the newest ones."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        if self.warmup_steps >= self.max_steps:
            what = f"warmup_steps is {self.warmup_steps}, but max_steps is {self.max_steps}"
            raise ValueError(f"{what}, so the warm-up never ends")
        return self

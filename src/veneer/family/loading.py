"""Load the base of a run, on the machine's GPU where it has one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypedDict

import torch

from veneer.adapter.registry import METHODS, specs_of
from veneer.config.schema import RunConfig
from veneer.engine import block_offload
from veneer.engine.quantization import NONE, find_format
from veneer.engine.quantized import parameter_count, quantization_of, quantize
from veneer.errors import UserError
from veneer.family.networks import LoadOptions, stored_format
from veneer.family.protocol import Family
from veneer.family.published import is_published, read_published
from veneer.family.registry import find
from veneer.malloc import set_thresholds

__all__ = [
    "load_base",
    "load_options",
    "load_run_base",
    "quantize_networks",
    "quantize_text_encoders",
    "reads_on_demand",
    "text_options",
]


def load_base(
    base: str,
    quantization: str = NONE,
    text_encoders: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    token_windows: int = 1,
    text_encoder_quantization: str | None = NONE,
    on_demand: bool = False,
    offload_blocks: int = 0,
) -> Family:
    """Load a base model, on the GPU if PyTorch finds one: ``bundled``, a folder, a file or a hub id.

    Its weights are read from the disk in the form that is asked for: no more than one that is quantised is in memory in
    full.

    Args:
        base: which one.
        quantization: the format of the denoiser's linear layers, as in ``train.quantization``.
        text_encoders: names of those that are quantised too: those that an adapter is trained on.
        dtype: the dtype of all other weights. A run loads them in float32, whatever ``train.precision`` is: its results
            are those of autocast over float32 weights.
        token_windows: how many windows of its text encoders' length a text takes, as in ``data.token_windows``.
        text_encoder_quantization: the format of all other text encoders, as in ``train.text_encoder_quantization``.
        on_demand: whether text encoders and denoiser of a large base are read when they are first called. Their files
            are checked now. Until then they have NaN in place of their weights. With ``offload_blocks`` the denoiser
            is read at once, into CPU memory.
        offload_blocks: the number of the denoiser's blocks whose weights wait in CPU memory, as in
            ``train.offload_blocks``; they are never on the GPU all at once.

    Raises:
        UserError: there is no such base, only its plan can be made, or the library that quantises is not installed.
    """
    if is_published(base):
        raise _plan_only(base)
    for format in {quantization, text_encoder_quantization or NONE} - {NONE}:
        find_format(format).check_installed()
    device = torch.device("cuda") if torch.cuda.is_available() else None
    source = find(base)
    options = LoadOptions(
        dtype,
        quantization,
        (source.family.denoiser, *text_encoders),
        device,
        text_encoder_quantization=text_encoder_quantization,
        on_demand=on_demand,
        keeps_denoiser=offload_blocks > 0,
    )
    family = source.load(options)
    family.use_token_windows(token_windows)
    set_thresholds(sum(4 * parameter_count(network) for network in family.networks.values()))
    if offload_blocks:
        block_offload.offload_blocks(family.networks[family.denoiser], offload_blocks, device)
    return family if device is None else family.to(device, dtype)


def load_run_base(config: RunConfig) -> Family:
    """Load the base of a training run: its text encoders to encode all texts, then its denoiser, where it is large.

    An adapter that starts from the denoiser's weights needs them at once.

    Args:
        config: the run.

    Raises:
        UserError: as of :func:`load_base`.
    """
    options: _Options = {
        "text_encoders": tuple(config.adapter.text_encoders),
        "text_encoder_quantization": None,
        **load_options(config),
    }
    return load_base(config.base, **options, on_demand=reads_on_demand(config))


def reads_on_demand(config: RunConfig) -> bool:
    """Return whether a run reads text encoders and denoiser of a large base when they are first called."""
    needs_weights = config.adapter.training_adapter is not None or not METHODS[config.adapter.method].is_additive
    return config.train.offload and not needs_weights


class _Options(TypedDict, total=False):
    quantization: str
    text_encoders: tuple[str, ...]
    token_windows: int
    text_encoder_quantization: str | None
    offload_blocks: int


def load_options(config: RunConfig) -> _Options:
    """Return the arguments of :func:`load_base` that a run needs beside the base."""
    options = text_options(config.data.token_windows)
    if config.train.text_encoder_quantization is not None:
        options["text_encoder_quantization"] = config.train.text_encoder_quantization
    if config.train.offload_blocks:
        options["offload_blocks"] = config.train.offload_blocks
    if config.train.quantization == NONE:
        return options
    parts = tuple(config.adapter.text_encoders)
    return {"quantization": config.train.quantization, "text_encoders": parts, **options}


def text_options(token_windows: int) -> _Options:
    """Return the arguments of :func:`load_base` that say how a run's texts are read."""
    return {} if token_windows == 1 else {"token_windows": token_windows}


def quantize_networks(family: Family, config: RunConfig) -> None:
    """Quantise the networks of a loaded base that a run wants quantised and that are not yet."""
    modules = {**family.on_demand, **family.networks}
    for name in (*specs_of(config.adapter, family), *family.guides):
        if quantization_of(modules[name]) != config.train.quantization:
            quantize(modules[name], config.train.quantization)


def quantize_text_encoders(family: Family, config: RunConfig, stored: Mapping[str, Collection[torch.dtype]]) -> None:
    """Quantise the text encoders of a base without weights, as :func:`load_run_base` loads those that do not learn.

    Args:
        family: the base.
        config: the run.
        stored: the dtypes of each one's numbers in its files.
    """
    modules = {**family.networks, **family.on_demand}
    for name in set(family.text_encoders) - config.adapter.text_encoders.keys():
        own = stored_format(stored.get(name, ())) if family.on_demand else NONE
        quantize(modules[name], config.train.text_encoder_quantization or own)


def _plan_only(base: str) -> UserError:
    published = read_published(base)
    what = f"names the architecture of {published.title}, which has no weights and can only be planned"
    remedy = f"give its weights: a folder, or base={published.hub}"
    return UserError(what, code="base.plan_only", where=base, remedy=remedy)

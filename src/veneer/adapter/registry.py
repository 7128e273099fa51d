"""The adapter methods by name, and the plans that a config asks for."""

from __future__ import annotations

from veneer.adapter.lora import LoraSpec
from veneer.config.schema import AdapterConfig, TextEncoderAdapterConfig

__all__ = ["specs_of"]


def specs_of(config: AdapterConfig) -> dict[str, LoraSpec]:
    """The adapters that a config asks for, by the prefix of their network."""
    specs = {"unet": _spec(config)}
    return specs if config.text_encoder is None else specs | {"text_encoder": _spec(config.text_encoder)}


def _spec(config: AdapterConfig | TextEncoderAdapterConfig) -> LoraSpec:
    alpha = float(config.rank) if config.alpha is None else config.alpha
    return LoraSpec(config.rank, alpha, config.target_modules, config.dropout)

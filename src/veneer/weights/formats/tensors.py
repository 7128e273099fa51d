"""A layer's tensors made into an adapter, and an adapter into a layer's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from veneer.adapter.biased import BIAS_PARTS, with_bias
from veneer.adapter.part_names import BIASED
from veneer.adapter.protocol import LayerAdapter
from veneer.adapter.registry import METHODS
from veneer.errors import UserError
from veneer.weights.formats.parts import Settings, check_settings, in_layer, method_of

__all__ = ["adapter_of", "named_tensors", "peft_naming"]


def adapter_of(layer: str, parts: Mapping[str, Tensor], settings_of: Callable[[str], Settings | None]) -> LayerAdapter:
    """Return one layer's adapter.

    Args:
        layer: the file's name for the layer.
        parts: its tensors.
        settings_of: gives what the file's config says of the layer; None: there is no config, the tensors tell all.

    Raises:
        UserError: a part is missing or does not fit, or the config contradicts the tensors.
    """
    names = method_of(layer, parts)
    bias = {part: parts[part] for part in parts if part in BIAS_PARTS and part not in names.spellings}
    markers = {**names.peft_markers, **(BIASED.peft_markers if "up_bias" in bias else {})}
    with in_layer(layer):
        settings = settings_of(layer)
        check_settings(replace(names, peft_markers=markers), settings or {})
        rest = {part: tensor for part, tensor in parts.items() if part not in bias}
        adapter = METHODS[names.method].from_file(rest, settings)
        return with_bias(adapter, bias) if bias else adapter


def named_tensors(layer: str, adapter: LayerAdapter, naming: str) -> dict[str, Tensor]:
    """Return one layer's tensors as a file has them.

    Args:
        layer: the file's name for the layer.
        adapter: of the layer.
        naming: how a method's tensors are called, a key of ``Method.endings``.

    Raises:
        UserError: files of this kind have no names for the method.
    """
    if naming not in adapter.method.endings:
        what = f"{layer} has a {adapter.method.title} adapter, for which {naming} files have no names"
        raise UserError(what, code="weights.method_not_in_format", remedy="save it in another format")
    endings: dict[str, str] = {}
    for ending, part in adapter.method.endings[naming].items():
        endings.setdefault(part, ending)
    return {f"{layer}.{endings[part]}": tensor for part, tensor in adapter.file_parts(naming).items()}


def peft_naming(network: str, adapter: LayerAdapter, of: str = "peft") -> str:
    """Return how files with peft's names call a layer's tensors: transformers, which loads text encoders, has its own.

    Args:
        network: that the layer is in.
        adapter: of the layer.
        of: the format; diffusers' has fewer methods than peft's.
    """
    is_text_encoder = network.startswith("text_encoder")
    return "transformers" if is_text_encoder and "transformers" in adapter.method.endings else of

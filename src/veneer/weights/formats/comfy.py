"""ComfyUI's format: names of its key map, the strength in ``.alpha``, nothing in the metadata, which it does not read.

ComfyUI takes LoRA under peft's names without an alpha as well, which counts as a strength of 1. That is written where
diffusers reads the same names, but no alpha (``BaseLabels.refuses_alpha``).

Of U-Nets and of text encoders it maps kohya's names. Of transformers it maps ``transformer.`` and diffusers' path, also
where the model's own code has one matrix for several of diffusers' layers: ComfyUI then changes the part that is meant.
A family whose names it takes in another form has these under ``comfy`` in its ``key_names``.
"""

from __future__ import annotations

from torch import Tensor

from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.weights.adapter_path import named_file
from veneer.weights.formats.folding import fold
from veneer.weights.formats.fused import Slice
from veneer.weights.formats.kohya import dotted_name, kohya_tensors, underscored_name, write_named
from veneer.weights.formats.names import NETWORKS
from veneer.weights.formats.protocol import STEM, BaseNames, FormatFile
from veneer.weights.formats.tensors import named_tensors

__all__ = ["COMFY", "ComfyFormat"]

_DOTTED = "transformer"
"""The network whose layers ComfyUI finds by diffusers' dotted paths."""
_AS_KOHYA = tuple(network for network in NETWORKS if network != _DOTTED)
"""Networks whose layers it finds by kohya's names."""


class ComfyFormat:
    """What ComfyUI's LoRA loaders read, of every family."""

    name = "comfy"
    metadata_keys = ("format",)

    def file_name(self, stem: str) -> str:
        """Return the adapter's own name, told apart from the file in kohya's format beside it."""
        return named_file(self.name, stem)

    def write(self, weights: AdapterWeights, base: BaseNames | None = None, stem: str = STEM) -> tuple[FormatFile, ...]:
        """Return one file, with each layer's alpha among its tensors, or its strength in them.

        Raises:
            UserError: as of kohya's format.
        """
        refuses_alpha = base is not None and base.labels is not None and base.labels.refuses_alpha
        tensors_of = _without_alpha if refuses_alpha else kohya_tensors
        tensors = write_named(weights, base, self.name, _dotted, _spelled, tensors_of)
        return (FormatFile(self.file_name(stem), tensors, {"format": "pt"}),)


def _dotted(path: str, base: BaseNames) -> str | Slice:
    """Return what ComfyUI calls a layer, or which rows of a larger one it is."""
    own = base.key_names.get(COMFY.name, {}).get(path)
    if own is not None:
        return own
    return path if path.partition(".")[0] == _DOTTED else dotted_name(path, base)


def _without_alpha(name: str, adapter: LayerAdapter) -> dict[str, Tensor]:
    """Return a layer's tensors under peft's names; of methods other than LoRA with kohya's, which diffusers leaves."""
    is_lora = adapter.method.names.method == "lora"
    return named_tensors(name, fold(adapter), "peft") if is_lora else kohya_tensors(name, adapter)


def _spelled(name: str, base: BaseNames) -> str:
    """Return how ComfyUI spells a dotted name: kohya's with underscores, others as they are."""
    return underscored_name(name, base) if name.partition(".")[0] in _AS_KOHYA else name


COMFY = ComfyFormat()

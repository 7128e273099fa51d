"""The adapter that a run's checkpoint holds, as it was at that step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from veneer.adapter.layers import fit_to_layers, layers_of
from veneer.adapter.protocol import LayerAdapter
from veneer.adapter.registry import METHODS
from veneer.weights.checkpoint import MANIFEST, STATE, Checkpoint, read_checkpoint
from veneer.weights.file import AdapterFile
from veneer.weights.formats.names import memory_path
from veneer.weights.formats.parts import by_layer, parse_names, require_known
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.formats.tensors import adapter_of

__all__ = ["is_checkpoint", "read_checkpoint_adapter"]

_ADAPTER = "adapter."
"""What the names of an adapter's parameters begin with in a checkpoint."""


def is_checkpoint(place: Path) -> bool:
    """Check whether a path is a checkpoint's folder: ``checkpoints/step-000000100``."""
    return (place / MANIFEST).is_file() and (place / STATE).is_file()


def read_checkpoint_adapter(folder: Path, names: BaseNames | None = None) -> AdapterFile:
    """Read the adapter of a checkpoint; its averaged weights, if the run averages, are not looked at.

    Args:
        folder: of the checkpoint.
        names: the layers of its base, under whose names it is returned; None: under its own.

    Raises:
        UserError: the checkpoint is damaged, or of another base.
    """
    checkpoint = read_checkpoint(folder)
    tensors = {name.removeprefix(_ADAPTER): t for name, t in checkpoint.state.items() if name.startswith(_ADAPTER)}
    weights = _layers(tensors, checkpoint)
    fitted = weights if names is None else fit_to_layers(weights, layers_of(names.networks))
    trigger = checkpoint.provenance.config["data"].get("trigger")
    said = {"veneer.steps": str(checkpoint.step), "veneer.version": checkpoint.provenance.version}
    return AdapterFile(fitted, said | ({"veneer.trigger": trigger} if trigger else {}))


def _layers(tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, LayerAdapter]:
    parts = by_layer(require_known(parse_names(tensors)))
    return {
        memory_path(layer): adapter_of(
            layer, {part: tensors[name] for part, name in own.items()}, lambda layer: _settings(layer, checkpoint)
        )
        for layer, own in parts.items()
    }


def _settings(layer: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what peft's config would say of a layer: its rank, its alpha, and the marks of its method."""
    plan = checkpoint.provenance.config["adapter"]
    own = plan["text_encoders"].get(layer.partition(".")[0], plan)
    alpha = own["rank"] if own["alpha"] is None else own["alpha"]
    return {"r": own["rank"], "lora_alpha": alpha, "alpha": alpha, **METHODS[plan["method"]].peft_markers}

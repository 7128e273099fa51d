"""One layer's adapter of every method that is read, of a linear layer (out 12, in 8) or of a norm of 12."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from veneer.adapter.protocol import LayerAdapter
from veneer.weights.formats.tensors import adapter_of

__all__ = ["PARTS", "adapters", "filled"]

OUT, IN = 12, 8
_LOHA = {"hada_w1_a": (OUT, 2), "hada_w1_b": (2, IN), "hada_w2_a": (OUT, 2), "hada_w2_b": (2, IN), "alpha": ()}
_LOKR = {"lokr_w1": (3, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4), "alpha": ()}
PARTS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "lora": {"down": (2, IN), "up": (OUT, 2), "alpha": ()},
    "dora": {"down": (2, IN), "up": (OUT, 2), "alpha": (), "dora_scale": (OUT, 1)},
    "loha": _LOHA,
    "lokr": _LOKR,
    "doha": {**_LOHA, "dora_scale": (OUT, 1)},
    "dokr": {**_LOKR, "dora_scale": (1, IN)},
    "oft": {"oft_blocks": (3, 4, 4), "rescale": (OUT, 1), "alpha": ()},
    "boft": {"oft_blocks": (2, 2, 6, 6), "rescale": (OUT, 1), "alpha": ()},
    "oft_of_peft": {"oft_R": (2, 6)},
    "boft_of_peft": {"boft_R": (1, 2, 4, 4), "boft_s": (OUT, 1)},
    "glora": {"glora_a1": (IN, 2), "glora_a2": (2, IN), "glora_b1": (OUT, 2), "glora_b2": (2, IN), "alpha": ()},
    "ia3": {"ia3_weight": (OUT,), "on_input": ()},
    "ia3_of_peft": {"ia3_l": (OUT, 1)},
    "full": {"diff": (OUT, IN), "diff_b": (OUT,)},
    "norm": {"w_norm": (OUT,), "b_norm": (OUT,)},
    "replaced": {"set_weight": (OUT, IN)},
    "dylora": {"down_list.0": (1, IN), "down_list.1": (1, IN), "up_list.0": (OUT, 1), "up_list.1": (OUT, 1)},
    "biased": {"down": (2, IN), "up": (OUT, 2), "alpha": (), "up_bias": (OUT,)},
}
"""The shapes of the parts of each method's file, by its name."""
_NUMBERS = {"alpha": 1.5, "on_input": 0.0}


def filled(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return random tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    random = {part: torch.randn(shape, generator=generator).to(dtype) for part, shape in shapes.items()}
    return {part: torch.tensor(_NUMBERS[part]).to(dtype) if part in _NUMBERS else random[part] for part in shapes}


def adapters(seed: int = 0) -> dict[str, LayerAdapter]:
    """Return one layer's adapter of each method, by the method's name."""
    return {name: adapter_of("x", filled(shapes, seed), lambda _: None) for name, shapes in PARTS.items()}

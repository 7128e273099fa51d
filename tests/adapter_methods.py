"""One layer's adapter of every method that is read, of a linear layer (out 12, in 8) or of a norm of 12."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from veneer.adapter.protocol import LayerAdapter
from veneer.weights.formats.tensors import adapter_of

__all__ = ["PARTS", "adapters", "filled", "parts_for"]

OUT, IN = 12, 8


def parts_for(out: int, width: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of the parts of each method's file, by its name, for a linear layer whose sizes are even."""
    lora = {"down": (2, width), "up": (out, 2), "alpha": ()}
    loha = {"hada_w1_a": (out, 2), "hada_w1_b": (2, width), "hada_w2_a": (out, 2), "hada_w2_b": (2, width), "alpha": ()}
    lokr = {"lokr_w1": (2, 2), "lokr_w2_a": (out // 2, 2), "lokr_w2_b": (2, width // 2), "alpha": ()}
    a, b = {"glora_a1": (width, 2), "glora_a2": (2, width)}, {"glora_b1": (out, 2), "glora_b2": (2, width)}
    blocks = {f"{part}.{place}": shape for part, shape in _blocks(out, width) for place in (0, 1)}
    return {
        "lora": lora,
        "dora": {**lora, "dora_scale": (out, 1)},
        "loha": loha,
        "lokr": lokr,
        "doha": {**loha, "dora_scale": (out, 1)},
        "dokr": {**lokr, "dora_scale": (1, width)},
        "oft": {"oft_blocks": (out // 4, 4, 4), "rescale": (out, 1), "alpha": ()},
        "boft": {"oft_blocks": (2, out // 2, 2, 2), "rescale": (out, 1), "alpha": ()},
        "oft_of_peft": {"oft_R": (width // 4, 6)},
        "boft_of_peft": {"boft_R": (1, width // 4, 4, 4), "boft_s": (out, 1)},
        "glora": {**a, **b, "alpha": ()},
        "ia3": {"ia3_weight": (out,), "on_input": ()},
        "ia3_of_peft": {"ia3_l": (out, 1)},
        "full": {"diff": (out, width), "diff_b": (out,)},
        "norm": {"w_norm": (out,), "b_norm": (out,)},
        "replaced": {"set_weight": (out, width)},
        "dylora": blocks,
        "biased": {**lora, "up_bias": (out,)},
    }


def _blocks(out: int, width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("down_list", (1, width)), ("up_list", (out, 1))]


PARTS: Mapping[str, Mapping[str, tuple[int, ...]]] = parts_for(OUT, IN)
"""Those of a linear layer of 12 outputs and 8 inputs, and of a norm of 12."""
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

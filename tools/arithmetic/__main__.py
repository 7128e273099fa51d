"""Do the arithmetic of Hu et al. 2021 with the functions by which ``veneer plan`` counts.

``python -m tools.arithmetic`` builds the paper's models from their shapes, without a number in them, counts their
adapters, does a training step of the largest with every weight trained and with LoRA, and writes figures.json beside
this file and the tables of docs/arithmetic.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from tools.publish import publish
from veneer.adapter.inject import Injection, inject
from veneer.adapter.lora import LoraSpec
from veneer.plan.parameters import count_parameters
from veneer.plan.plan import Plan
from veneer.plan.text import format_bytes
from veneer.plan.tracer import MemoryTracer

__all__ = ["BUDGETS", "FIGURES", "GPT2_LARGE", "GPT2_MEDIUM", "GPT3", "PAGE", "counts", "figures", "memory", "tables"]

FIGURES = Path(__file__).parent / "figures.json"
PAGE = Path(__file__).parents[2] / "docs" / "arithmetic.md"

GPT3 = {"hidden_size": 12288, "num_hidden_layers": 96, "num_attention_heads": 96, "max_position_embeddings": 2048}
"""Brown et al. 2020, table 2.1, GPT-3 175B."""
GPT2_MEDIUM = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 1024}
"""Radford et al. 2019, table 2."""
GPT2_LARGE = {"hidden_size": 1280, "num_hidden_layers": 36, "num_attention_heads": 20, "max_position_embeddings": 1024}
"""Likewise."""

QUERY, KEY, VALUE, OUTPUT = "q_proj", "k_proj", "v_proj", "out_proj"
BUDGETS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "Wq": (8, (QUERY,)),
    "Wk": (8, (KEY,)),
    "Wv": (8, (VALUE,)),
    "Wo": (8, (OUTPUT,)),
    "Wq, Wk": (4, (QUERY, KEY)),
    "Wq, Wv": (4, (QUERY, VALUE)),
    "Wq, Wk, Wv, Wo": (2, (QUERY, KEY, VALUE, OUTPUT)),
}
"""The adapters of the paper's table 5: rank and matrices."""
_TOKENS = 2048


def model(shape: Mapping[str, int]) -> OPTForCausalLM:
    """Return a decoder of GPT's kind with its four attention matrices apart, on the meta device.

    OPT (Zhang et al. 2022) has the shapes of GPT-3, which has no public code; the vocabulary is GPT-2's.
    """
    config = OPTConfig(
        vocab_size=50257,
        word_embed_proj_dim=shape["hidden_size"],
        ffn_dim=4 * shape["hidden_size"],
        dropout=0.0,
        use_cache=False,
        **shape,
    )
    with torch.device("meta"):
        return OPTForCausalLM(config)


def counts(network: nn.Module, rank: int, targets: tuple[str, ...]) -> Plan:
    """Count an adapter on a network as the plan does."""
    injection = _adapted(network, rank, targets)
    try:
        return count_parameters({"transformer": network}, injection)
    finally:
        injection.eject()


def _adapted(network: nn.Module, rank: int, targets: tuple[str, ...]) -> Injection:
    spec = LoraSpec(rank, float(rank), targets)
    return inject({"transformer": network}, {"transformer": spec}, seed=0)


def memory(shape: Mapping[str, int], rank: int | None) -> dict[str, int]:
    """Return what is held at the peak of a step with Adam, by part: LoRA on Wq and Wv, or every weight trained.

    Weights, gradients and moments are of 16 bits; one sequence of 2,048 tokens, each block recomputed in the backward
    pass.
    """
    tracer = MemoryTracer(torch.device("cpu"))
    tracer.begin_phase("step")
    network = tracer.without_data(model(shape).to(torch.bfloat16))
    tracer.label("weights", network.parameters())
    with tracer.tracing():
        if rank is None:
            network.requires_grad_(True)
            trained = list(network.parameters())
        else:
            trained = _adapted(network, rank, (QUERY, VALUE)).parameters()
            tracer.label("adapter", trained)
        _step(tracer, network, trained)
    parts = dict(tracer.peaks()["step"].parts)
    names = [name for name in ("weights", "adapter", "gradients", "moments") if name in parts]
    state: dict[str, int] = {name: parts.pop(name) for name in names}
    return {**state, "activations": sum(parts.values()), "total": sum(state.values()) + sum(parts.values())}


def _step(tracer: MemoryTracer, network: Any, trained: list[nn.Parameter]) -> None:
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tracer.label_others("moments")
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda each: tracer.label("gradients", [each.grad]))
    network.gradient_checkpointing_enable({"use_reentrant": False})
    network.train()
    tokens = torch.zeros(1, _TOKENS, dtype=torch.long)
    network(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def figures() -> dict[str, Any]:
    """Return all figures of the page."""
    large = model(GPT3)
    own = counts(large, 4, (QUERY, VALUE))
    budgets = {name: counts(large, *adapter).trainable for name, adapter in BUDGETS.items()}
    smaller = {"GPT-2 medium": GPT2_MEDIUM, "GPT-2 large": GPT2_LARGE}
    return {
        "parameters": own.total,
        "trainable": own.trainable,
        "file_bytes": own.file_bytes,
        "budgets": budgets,
        "smaller": {name: counts(model(shape), 4, (QUERY, VALUE)).trainable for name, shape in smaller.items()},
        "memory": {"all weights": memory(GPT3, None), "LoRA": memory(GPT3, 4)},
    }


def tables(of: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the page, by the section that each stands in."""
    return {"counts": _counts(of), "budget": _budget(of), "memory": _memory(of), "smaller": _smaller(of)}


def _rows(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _counts(of: Mapping[str, Any]) -> str:
    total, trainable = of["parameters"], of["trainable"]
    rows = [
        ("parameters of the model", "175 B", f"{total:,}"),
        ("trained, r = 4 on Wq and Wv", "18.9 M (of which 18 M is the budget of its table 5)", f"{trainable:,}"),
        ("fewer by", "10,000 times", f"{total / trainable:,.0f} times"),
        ("checkpoint of all weights, 16 bits", "350 GB", format_bytes(2 * total)),
        ("checkpoint of the adapter, 16 bits", "35 MB", format_bytes(2 * trainable)),
        ("Veneer's file, float32 and what it tells of itself", "", format_bytes(of["file_bytes"])),
    ]
    return _rows(("", "paper", "counted"), rows)


def _budget(of: Mapping[str, Any]) -> str:
    rows = [(name, str(BUDGETS[name][0]), f"{number:,}") for name, number in of["budgets"].items()]
    return _rows(("matrices", "r", "trained"), rows)


def _memory(of: Mapping[str, Any]) -> str:
    whole, low = of["memory"]["all weights"], of["memory"]["LoRA"]
    names = list(dict.fromkeys([*whole, *low]))
    names.sort(key=lambda name: name in ("activations", "total"))
    rows = [(name, *(format_bytes(part[name]) if name in part else "" for part in (whole, low))) for name in names]
    both = whole["weights"] + whole["moments"]
    rows.append(("weights and moments alone", format_bytes(both), format_bytes(low["weights"] + low["moments"])))
    return _rows(("held at the fullest moment", "Adam on all weights", "LoRA, r = 4 on Wq and Wv"), rows)


def _smaller(of: Mapping[str, Any]) -> str:
    printed = {"GPT-2 medium": "0.35 M", "GPT-2 large": "0.77 M"}
    rows = [(name, printed[name], f"{number / 1e6:.2f} M ({number:,})") for name, number in of["smaller"].items()]
    return _rows(("r = 4 on Wq and Wv", "paper, table 3", "counted"), rows)


def main() -> None:
    """Count, and write the page."""
    found = figures()
    FIGURES.write_text(json.dumps(found, indent=2) + "\n")
    for section, text in tables(found).items():
        publish(PAGE, text, section)
        print(text)


if __name__ == "__main__":
    main()

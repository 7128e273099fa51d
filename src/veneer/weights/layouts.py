"""The layouts that adapter files come in: which tensor is which factor of which layer, and where its strength is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError

__all__ = ["DIFFUSERS_KEY", "Layout", "factors_of", "layout_of", "network_of", "resolve", "to_diffusers"]

Layout = Literal["diffusers", "peft", "kohya"]
DIFFUSERS_KEY = "lora_adapter_metadata"
"""Of the JSON in a file's metadata that diffusers reads the strength from."""

_PEFT_ROOT = "base_model.model."
_NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
_KOHYA = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
}
_PARTS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    # what diffusers' convert_state_dict_to_diffusers, which its guides call before saving, makes of these
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
}
_KOHYA_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}
# transformers 5 dropped this level from CLIPTextModel; files keep it, for every reader knows it and only new ones
# know the other
_CLIP_FILE, _CLIP = "text_encoder.text_model.", "text_encoder."
_LONGEST = 500  # characters of a tensor's name; a Flux block's has less than 100


@dataclass
class _Parts:
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None


def layout_of(names: list[str]) -> Layout:
    """The layout that tensor names are in."""
    if any(name.startswith(_PEFT_ROOT) for name in names):
        return "peft"
    return "kohya" if any(name.startswith(tuple(f"{root}_" for root in _KOHYA)) for name in names) else "diffusers"


def factors_of(
    tensors: Mapping[str, Tensor], layout: Layout, config: Mapping[str, Any] | None
) -> dict[str, LoraFactors]:
    """Each layer's factors, by the name the file has for the layer.

    Args:
        tensors: all of the file's.
        layout: of their names.
        config: peft's adapter config, or diffusers' (each key with its network's prefix); without, alpha = r.

    Raises:
        UserError: a tensor belongs to no factor, a factor has no partner, or the config contradicts the tensors.
    """
    table = _KOHYA_PARTS if layout == "kohya" else _PARTS
    parts: dict[str, _Parts] = {}
    for name, tensor in tensors.items():
        if len(name) > _LONGEST or not name.isprintable():
            raise UserError(f"has a tensor of which the name is no layer's: {name[:40]!r}")
        layer, kind = _split(name, table)
        each = parts.setdefault(layer.removeprefix(_PEFT_ROOT), _Parts())
        if getattr(each, kind) is not None:
            raise UserError(f"{layer} has two factors of one kind; {name} is one")
        setattr(each, kind, tensor)
    if not parts:
        raise UserError("holds no adapter: there is no tensor in it")
    strengths = None if config is None else _Strengths(config, layout)
    return {layer: _factors(layer, each, strengths) for layer, each in sorted(parts.items())}


def _split(name: str, table: Mapping[str, str]) -> tuple[str, str]:
    for ending, kind in table.items():
        if name.endswith(f".{ending}"):
            return name.removesuffix(f".{ending}"), kind
    raise UserError(f"tensor {name} is not of a plain LoRA", remedy="only A, B and alpha are understood")


def _factors(layer: str, parts: _Parts, strengths: _Strengths | None) -> LoraFactors:
    if parts.down is None or parts.up is None:
        lacking = "A (down)" if parts.down is None else "B (up)"
        raise UserError(f"{layer} has no {lacking}", remedy="the file is not whole")
    rank = parts.down.shape[0] if parts.down.ndim else 0
    if parts.alpha is not None and parts.alpha.numel() != 1:
        raise UserError(f"{layer}.alpha is not one number but {parts.alpha.numel()}")
    alpha = float(rank) if parts.alpha is None else float(parts.alpha)
    if strengths is not None:
        alpha = strengths.alpha(layer, rank)
    try:
        return LoraFactors(parts.down, parts.up, alpha)
    except UserError as error:
        raise UserError(error.what, where=layer) from error


class _Strengths:
    """What a config tells of strengths.

    Args:
        config: peft's, or diffusers'.
        layout: of the file.
    """

    def __init__(self, config: Mapping[str, Any], layout: Layout) -> None:
        self._config, self._layout = config, layout
        self._parts: dict[str | None, _Strength] = {}

    def alpha(self, layer: str, rank: int) -> float:
        """The alpha of a layer, such that alpha/r is the strength that peft would use.

        Raises:
            UserError: the config does not tell it, or tells another rank.
        """
        try:
            declared, alpha = self._part(layer).of(_path_of(layer))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"its config does not tell the strength of {layer} ({error!r:.200})") from error
        if declared != rank:
            raise UserError(f"its config says rank {declared!s:.20} for {layer}, whose tensors have rank {rank}")
        return alpha

    def _part(self, layer: str) -> _Strength:
        """Of the layer's network: diffusers prefixes the keys, unless the file is of one network alone."""
        prefix = None if self._layout == "peft" else network_of(layer, "diffusers")
        if prefix not in self._parts:
            own = {key.removeprefix(f"{prefix}."): value for key, value in self._config.items()}
            self._parts[prefix] = _Strength(self._config if prefix is None else own)
        return self._parts[prefix]


class _Strength:
    """A peft config of one network."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._ranks = _ByPattern(config.get("rank_pattern"), config["r"])
        self._alphas = _ByPattern(config.get("alpha_pattern"), config["lora_alpha"])
        self._rank_stabilised = bool(config.get("use_rslora", False))

    def of(self, path: str) -> tuple[Any, float]:
        """Rank and alpha of a layer, such that alpha/r is its strength."""
        rank, alpha = self._ranks[path], float(self._alphas[path])
        return rank, alpha * math.sqrt(rank) if self._rank_stabilised else alpha  # Kalajdzievski 2023: alpha / sqrt(r)


class _ByPattern:
    """Values by layer as peft looks them up: the first pattern that its path, or an ending of it at a dot, is.

    peft takes patterns as regular expressions, and one can be made that takes longer than anybody lives. What writes
    such files writes paths, with ``^`` before one that is no ending; only these are read.
    """

    def __init__(self, patterns: Mapping[str, Any] | None, default: Any) -> None:
        self._default = default
        self._first: dict[tuple[bool, str], tuple[int, Any]] = {}
        for place, (pattern, value) in enumerate((patterns or {}).items()):
            self._first.setdefault((pattern.startswith("^"), _literal(pattern)), (place, value))

    def __getitem__(self, path: str) -> Any:
        parts = path.split(".")
        names = [(True, path), *((False, ".".join(parts[start:])) for start in range(len(parts)))]
        found = [self._first[name] for name in names if name in self._first]
        return min(found, key=lambda each: each[0])[1] if found else self._default


def _literal(pattern: str) -> str:
    """The path that a pattern is; a dot means a dot, though to the letter it is any character."""
    path = re.sub(r"\\(\W)", r"\1", pattern.removeprefix("^").removesuffix("$"))
    if re.search(r"[^\w.\- ]", path):
        raise ValueError(f"the pattern {pattern} is not a layer's name")
    return path


def _path_of(layer: str) -> str:
    return layer.partition(".")[2] if layer.partition(".")[0] in _NETWORKS else layer


def network_of(layer: str, layout: Layout) -> str | None:
    """The network that a file's name for a layer is in; None where only the base's layers can tell."""
    if layout == "kohya":
        return next((net for root, net in _KOHYA.items() if layer.startswith(f"{root}_")), None)
    prefix = layer.partition(".")[0]
    return prefix if layout == "diffusers" and prefix in _NETWORKS else None


def resolve(
    factors: Mapping[str, LoraFactors], layout: Layout, networks: Mapping[str, nn.Module] | None
) -> dict[str, LoraFactors]:
    """The factors by full dotted path.

    Raises:
        UserError: the names tell the path only together with the base's layers, and there is no base, or none of its
            layers has such a name.
    """
    if all(network_of(layer, layout) and layout == "diffusers" for layer in factors):
        return _renamed(factors, {layer: _from_file(layer) for layer in factors})
    if networks is None:
        raise UserError(f"its {layout} names, such as {next(iter(factors))}, need a base to tell which layers they are")
    aliases = _aliases(networks)
    for layer in factors:
        if len(paths := aliases.get(layer, [])) != 1:
            what = f"its name {layer} means {' and '.join(paths) or 'no layer'} of the base"
            raise UserError(what, remedy="use the base that it was trained on")
    return _renamed(factors, {layer: aliases[layer][0] for layer in factors})


def _renamed(factors: Mapping[str, LoraFactors], paths: Mapping[str, str]) -> dict[str, LoraFactors]:
    named: dict[str, LoraFactors] = {}
    for layer, each in factors.items():
        if paths[layer] in named:
            raise UserError(f"has {paths[layer]} twice, under two names")
        named[paths[layer]] = each
    return named


def _aliases(networks: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """What any layout may call each layer; underscoring loses information, so two layers may share a name."""
    aliases: dict[str, set[str]] = {}
    for full in layers_of(networks):
        prefix, _, path = full.partition(".")
        variants = {path, path.removeprefix("text_model."), f"text_model.{path}"}
        roots = [root for root, network in _KOHYA.items() if network == prefix]
        names = {f"{root}_{variant.replace('.', '_')}" for root in roots for variant in variants}
        for name in names | variants | {f"{prefix}.{variant}" for variant in variants}:
            aliases.setdefault(name, set()).add(full)
    return {name: sorted(paths) for name, paths in aliases.items()}


def _from_file(layer: str) -> str:
    return _CLIP + layer.removeprefix(_CLIP_FILE) if layer.startswith(_CLIP_FILE) else layer


def _to_file(layer: str) -> str:
    return _CLIP_FILE + layer.removeprefix(_CLIP) if layer.startswith(_CLIP) and layer == _from_file(layer) else layer


def to_diffusers(weights: AdapterWeights) -> tuple[dict[str, Tensor], str]:
    """diffusers' tensors and JSON: alpha/r is in B, and the JSON says alpha = r, so all readers find one strength."""
    factors = {layer: each for layer, each in weights.items() if isinstance(each, LoraFactors)}
    tensors: dict[str, Tensor] = {}
    for layer, each in factors.items():
        tensors[f"{_to_file(layer)}.lora_A.weight"] = each.down
        tensors[f"{_to_file(layer)}.lora_B.weight"] = (each.up.double() * each.scale).to(each.up.dtype)
    assert len(tensors) == 2 * len(factors), "a layer is named twice, with text_model. and without"
    ranks: dict[str, dict[str, int]] = {}
    for layer, each in factors.items():
        network, _, path = _from_file(layer).partition(".")
        ranks.setdefault(network, {})[path] = each.rank
    config = {f"{net}.{key}": value for net, of in ranks.items() for key, value in _peft_config(net, of).items()}
    return tensors, json.dumps(config, sort_keys=True)


def _peft_config(network: str, ranks: Mapping[str, int]) -> dict[str, Any]:
    """What peft's ``LoraConfig`` needs for these layers, with alpha = r for each."""
    counts = list(ranks.values())
    usual = max(sorted(set(counts)), key=counts.count)
    anchor = "" if network == "text_encoder" else "^"  # a CLIP reader may have text_model. before the path
    pattern = {f"{anchor}{re.escape(path)}": rank for path, rank in sorted(ranks.items()) if rank != usual}
    targets = sorted(ranks)
    return {
        "r": usual,
        "lora_alpha": usual,
        "target_modules": targets,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
    }

"""Adapters put into live networks, to train or to sample, and taken out again without a trace."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from veneer.adapter.layers import Layer, fit, layers_of, layers_under, nearest
from veneer.adapter.lora import LoraFactors, LoraSpec
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError
from veneer.rng import torch_generator

__all__ = ["Injection", "Match", "inject"]

_NAME = "default"
"""peft's name of the adapter; its helpers take this one when none is given."""


@dataclass(frozen=True)
class Match:
    """What one target of a spec matched.

    Attributes:
        network: prefix of the network.
        target: the target as the spec has it.
        modules: full dotted paths of the layers, prefix included, as in ``AdapterWeights``.
    """

    network: str
    target: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class _Site:
    """One adapted layer: where it hangs, what hung there before, and what hangs there now."""

    parent: nn.Module
    name: str
    original: nn.Module
    adapted: LoraLayer
    alpha: float

    @property
    def down(self) -> nn.Parameter:
        return _weight(self.adapted.lora_A)

    @property
    def up(self) -> nn.Parameter:
        return _weight(self.adapted.lora_B)


def _weight(factor: nn.ModuleDict) -> nn.Parameter:
    weight = factor[_NAME].weight
    assert isinstance(weight, nn.Parameter)
    return weight


class Injection:
    """An adapter in live networks; made by :func:`inject`.

    Attributes:
        matches: what each target matched.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        matches: tuple[Match, ...],
        sites: Mapping[str, _Site],
        flags: list[tuple[nn.Parameter, bool]],
    ) -> None:
        self.matches = matches
        self._networks = dict(networks)
        self._sites = dict(sites)
        self._flags = flags
        self._ejected = False

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each A and B by the name it has in a file: ``unet...to_q.lora_A.weight``."""
        for path, site in self._sites.items():
            yield f"{path}.lora_A.weight", site.down
            yield f"{path}.lora_B.weight", site.up

    def parameters(self) -> list[nn.Parameter]:
        """Each A and B, float32: all that trains."""
        return [parameter for _, parameter in self.named_parameters()]

    def by_network(self, prefix: str) -> list[nn.Parameter]:
        """Those of one network; none if it has no adapter."""
        return [parameter for name, parameter in self.named_parameters() if name.startswith(f"{prefix}.")]

    def weights(self) -> dict[str, LoraFactors]:
        """Copies of the numbers as they are now, float32 on the CPU."""
        return {path: LoraFactors(_copy(s.down), _copy(s.up), s.alpha) for path, s in self._sites.items()}

    def load(self, factors: AdapterWeights) -> None:
        """Take these numbers; the strength stays theirs, whatever alpha this injection has.

        Raises:
            UserError: a layer is missing on either side, or differs in shape or rank.
        """
        named = fit(factors, layers_of(self._networks))
        _same_layers(set(named), set(self._sites))
        for path, site in self._sites.items():
            if named[path].rank != site.down.shape[0]:
                raise UserError(f"{path} has rank {named[path].rank} in the adapter and {site.down.shape[0]} here")
        with torch.no_grad():
            for path, site in self._sites.items():
                site.down.copy_(named[path].down)
                site.up.copy_(named[path].up * (named[path].alpha / site.alpha))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base's own behaviour inside; nothing but a switch is changed, and it is left as it was found."""
        parameters = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        switches = [(site.adapted, not site.adapted.disable_adapters) for site in self._sites.values()]
        for layer, _ in switches:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer, enabled in switches:
                layer.enable_adapters(enabled)
            _set_flags(parameters)

    def eject(self) -> None:
        """Put the very modules back that were there before, and their ``requires_grad``; a second call does nothing."""
        if self._ejected:
            return
        self._ejected = True
        for site in self._sites.values():
            setattr(site.parent, site.name, site.original)
        for network in self._networks.values():
            vars(network).pop("peft_config", None)
        _set_flags(self._flags)


def inject(networks: Mapping[str, nn.Module], specs: Mapping[str, LoraSpec], seed: int) -> Injection:
    """Put adapters of delta W = 0 into the networks, and freeze every other parameter of them.

    A is normal with deviation 1/r, keyed by (seed, full path), so a layer gets the same A whatever else is targeted;
    B is zero, so the outputs keep their bits. Dropout, where the spec has it, is active in training mode only.

    Args:
        networks: by prefix; all of them are frozen, those without a spec too.
        specs: by prefix of the network.
        seed: of A.

    Raises:
        UserError: a target matches nothing that can be adapted, or a rank is larger than its matrix; no network has
            been changed then.
    """
    _check_networks(networks, specs)
    matches = tuple(match for prefix, spec in specs.items() for match in _match_all(prefix, networks[prefix], spec))
    flags = [(p, p.requires_grad) for network in networks.values() for p in network.parameters()]
    sites: dict[str, _Site] = {}
    for prefix, spec in specs.items():
        paths = [path for match in matches if match.network == prefix for path in match.modules]
        sites |= _adapt(prefix, networks[prefix], spec, paths)
    for path, site in sites.items():
        _initialise(site, seed, path)
    injection = Injection(networks, matches, sites, flags)
    _set_flags([(parameter, False) for parameter, _ in flags])
    _set_flags([(parameter, True) for parameter in injection.parameters()])
    return injection


def _check_networks(networks: Mapping[str, nn.Module], specs: Mapping[str, LoraSpec]) -> None:
    if unknown := [prefix for prefix in specs if prefix not in networks]:
        raise UserError(f"the base has no {unknown[0]!r} to adapt", remedy=f"it has {', '.join(networks)}")
    for prefix, network in networks.items():
        if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
            raise UserError(f"{prefix} carries an adapter already", remedy="eject or unload that one first")


def _match_all(prefix: str, network: nn.Module, spec: LoraSpec) -> list[Match]:
    layers = dict(layers_under(network))
    taken: dict[str, str] = {}
    matches = []
    for target in spec.targets:
        paths = [path for path in layers if _names(target, path)]
        if not paths:
            raise _no_match(prefix, network, target, list(layers))
        for path in paths:
            _check_layer(f"{prefix}.{path}", layers[path], spec.rank)
            if path in taken:
                raise UserError(f"targets {taken[path]!r} and {target!r} both name {prefix}.{path}", remedy="keep one")
            taken[path] = target
        matches.append(Match(prefix, target, tuple(f"{prefix}.{path}" for path in paths)))
    return matches


def _names(target: str, path: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _no_match(prefix: str, network: nn.Module, target: str, paths: list[str]) -> UserError:
    kinds = sorted({type(module).__name__ for path, module in network.named_modules() if _names(target, path)})
    if not kinds:
        what, options = f"target {target!r} matches nothing in {prefix}", nearest(target, paths)
        return UserError(what, remedy=f"did you mean {' or '.join(options)}?")
    what = f"target {target!r} names {' and '.join(kinds)} in {prefix}, which is neither Linear nor Conv2d"
    inside = [target + f".{path}".rpartition(f".{target}")[2] for path in paths if f".{target}." in f".{path}"]
    return UserError(what, remedy=f"name layers inside, as {' '.join(dict.fromkeys(inside[:3]))}" if inside else None)


def _check_layer(path: str, layer: Layer, rank: int) -> None:
    largest = min(layer.weight.shape[0], layer.weight[0].numel())
    if rank > largest:
        shape = tuple(layer.weight.shape)
        raise UserError(f"rank {rank} is larger than the matrix of {path} {shape}", remedy=f"use at most {largest}")
    if isinstance(layer, nn.Conv2d) and (layer.groups, layer.dilation, layer.padding_mode) != (1, (1, 1), "zeros"):
        what = f"{path} is a convolution with groups, dilation or padding other than zeros"
        raise UserError(what, remedy="take it off the targets")


def _adapt(prefix: str, network: nn.Module, spec: LoraSpec, paths: list[str]) -> dict[str, _Site]:
    names = {path: path.removeprefix(f"{prefix}.") for path in paths}
    parents = {path: network.get_submodule(name.rpartition(".")[0]) for path, name in names.items()}
    originals = {path: network.get_submodule(name) for path, name in names.items()}
    with torch.random.fork_rng(devices=[]):  # peft draws numbers that we replace
        inject_adapter_in_model(_exact_config(spec, list(names.values())), network, _NAME)
    sites = {}
    for path, name in names.items():
        adapted = network.get_submodule(name)
        assert isinstance(adapted, LoraLayer)
        adapted.train(originals[path].training)  # a new module trains, dropout and all, whatever its parent does
        sites[path] = _Site(parents[path], name.rpartition(".")[2], originals[path], adapted, spec.alpha)
    return sites


def _exact_config(spec: LoraSpec, names: list[str]) -> LoraConfig:
    """The spec for these layers alone; as a pattern, for peft takes the entries of a list as endings."""
    config = spec.to_peft()
    config.target_modules = "|".join(re.escape(name) for name in names)
    return config


def _initialise(site: _Site, seed: int, path: str) -> None:
    for factor in (site.adapted.lora_A, site.adapted.lora_B):
        factor[_NAME].to(torch.float32)
    noise = torch.randn(site.down.shape, generator=torch_generator(seed, "adapter", path))
    with torch.no_grad():
        site.down.copy_(noise / site.down.shape[0])
        site.up.zero_()


def _same_layers(given: set[str], here: set[str]) -> None:
    if missing := sorted(here - given):
        raise UserError(f"the adapter has nothing for {missing[0]}, which is adapted here ({len(missing)} such layers)")
    if extra := sorted(given - here):
        raise UserError(f"the adapter changes {extra[0]}, which is not adapted here ({len(extra)} such layers)")


def _set_flags(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, requires_grad in flags:
        parameter.requires_grad_(requires_grad)


def _copy(parameter: Tensor) -> Tensor:
    if parameter.is_meta:  # of a model that is only counted
        return parameter.detach().to(torch.float32, copy=True)
    return parameter.detach().to("cpu", torch.float32, copy=True)

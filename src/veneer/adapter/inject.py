"""Adapters put into live networks, to train or to sample, and taken out again without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from veneer.adapter.layers import fit_to_layers, is_wrapped, layers_of, layers_under, nearest, places_under
from veneer.adapter.peft_library import BaseTunerLayer
from veneer.adapter.protocol import AdapterSpec, AdapterWeights, InjectedLayer, LayerAdapter
from veneer.adapter.targets import BlockCoverage, is_named, layers_in_blocks, measure_coverage
from veneer.config.adapter_config import TargetPreset
from veneer.errors import UserError

__all__ = ["Injection", "Match", "find_matches", "inject"]


@dataclass(frozen=True)
class Match:
    """The layers that one target of a spec matched.

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
    """One adapted layer: the module it hangs in, under which name, what hung there before, and what hangs there now."""

    parent: nn.Module
    name: str
    original: nn.Module
    layer: InjectedLayer


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
        """Yield each parameter that trains by the name it has in a file: ``transformer...to_q.lora_A.weight``."""
        for path, site in self._sites.items():
            for ending, parameter in site.layer.named_parameters().items():
                yield f"{path}.{ending}", parameter

    def parameters(self) -> list[nn.Parameter]:
        """Return all that trains, float32."""
        return [parameter for _, parameter in self.named_parameters()]

    def by_network(self, prefix: str) -> list[nn.Parameter]:
        """Return all that trains in one network; nothing if it has no adapter."""
        return [parameter for name, parameter in self.named_parameters() if name.startswith(f"{prefix}.")]

    def block_coverage(self) -> dict[str, BlockCoverage]:
        """Return which blocks of each adapted network are reached, by the network's prefix."""
        modules: dict[str, list[str]] = {}
        for match in self.matches:
            paths = modules.setdefault(match.network, [])
            paths += [module.removeprefix(f"{match.network}.") for module in match.modules]
        return {prefix: measure_coverage(self._networks[prefix], paths) for prefix, paths in modules.items()}

    def parameter_counts(self) -> dict[str, int]:
        """Return how many numbers train on each layer, by its full path."""
        return {
            path: sum(parameter.numel() for parameter in site.layer.named_parameters().values())
            for path, site in self._sites.items()
        }

    def weights(self) -> dict[str, LayerAdapter]:
        """Return copies of the numbers as they are now, float32 on the CPU."""
        return {path: site.layer.read() for path, site in self._sites.items()}

    def load(self, weights: AdapterWeights) -> None:
        """Take these numbers; the strength stays theirs, whatever alpha this injection has.

        Raises:
            UserError: a layer is missing on either side, or differs in method, shape or rank; nothing has been changed
                then.
        """
        named = fit_to_layers(weights, layers_of(self._networks))
        _check_same_layers(set(named), set(self._sites))
        for path, site in self._sites.items():
            site.layer.check(path, named[path])
        for path, site in self._sites.items():
            site.layer.load(named[path])

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch the adapter off inside, which gives the base's own outputs, and restore each switch afterwards."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        switches = [(site.layer.module, not site.layer.module.disable_adapters) for site in self._sites.values()]
        for module, _ in switches:
            module.enable_adapters(False)
        try:
            yield
        finally:
            for module, enabled in switches:
                module.enable_adapters(enabled)
            _set_flags(flags)

    def eject(self) -> None:
        """Put the very modules back that were there before, and their ``requires_grad``; a second call does nothing."""
        if self._ejected:
            return
        self._ejected = True
        for site in self._sites.values():
            setattr(site.parent, site.name, site.original)
        for network in self._networks.values():
            for module in network.modules():  # peft leaves it on the network, which a wrapper hands on
                vars(module).pop("peft_config", None)
        _set_flags(self._flags)


def inject(networks: Mapping[str, nn.Module], specs: Mapping[str, AdapterSpec], seed: int) -> Injection:
    """Put adapters of delta W = 0 into the networks, and freeze every other parameter of them.

    What is random is keyed by (seed, full path), so a layer starts the same whatever else is targeted; the outputs keep
    their bits. Dropout, where the spec has it, is active in training mode only.

    Args:
        networks: by prefix; all of them are frozen, those without a spec too. ``torch.compile`` and ``DataParallel``
            around them are looked through.
        specs: by prefix of the network.
        seed: of the random start.

    Raises:
        UserError: a target matches nothing that can be adapted, a layer is one that the method cannot adapt, or a
            network is in ``DistributedDataParallel`` or FSDP; no network has been changed then.
    """
    _check_networks(networks, specs)
    matches = find_matches(networks, specs)
    flags = [(p, p.requires_grad) for network in networks.values() for p in network.parameters()]
    sites: dict[str, _Site] = {}
    for prefix, spec in specs.items():
        paths = [path for match in matches if match.network == prefix for path in match.modules]
        sites |= _adapt(prefix, networks[prefix], spec, paths)
    for path, site in sites.items():
        site.layer.initialise(seed, path)
    injection = Injection(networks, matches, sites, flags)
    _set_flags([(parameter, False) for parameter, _ in flags])
    _set_flags([(parameter, True) for parameter in injection.parameters()])
    return injection


def find_matches(networks: Mapping[str, nn.Module], specs: Mapping[str, AdapterSpec]) -> tuple[Match, ...]:
    """Return the layers that :func:`inject` would adapt, by target; nothing is changed.

    Raises:
        UserError: a target matches nothing that can be adapted, or a layer is one that the method cannot adapt.
    """
    return tuple(match for prefix, spec in specs.items() for match in _match_all(prefix, networks[prefix], spec))


def _check_networks(networks: Mapping[str, nn.Module], specs: Mapping[str, AdapterSpec]) -> None:
    if unknown := [prefix for prefix in specs if prefix not in networks]:
        what, remedy = f"the base has no {unknown[0]!r} to adapt", f"it has {', '.join(networks)}"
        raise UserError(what, code="adapter.unknown_network", remedy=remedy)
    for prefix, network in networks.items():
        if is_wrapped(network, (DistributedDataParallel,)):
            what = f"{prefix} is in DistributedDataParallel already, which would leave the adapter's gradients apart"
            raise UserError(what, code="adapter.wrapped_network", remedy="inject first, and wrap the network then")
        if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
            what = f"{prefix} carries an adapter already"
            raise UserError(what, code="adapter.already_adapted", remedy="eject or unload that one first")


def _match_all(prefix: str, network: nn.Module, spec: AdapterSpec) -> list[Match]:
    layers = dict(layers_under(network))
    inside = layers_in_blocks(list(layers), spec.blocks)
    taken: dict[str, str] = {}
    matches = []
    for target in spec.targets:
        paths = [path for path in inside if is_named(target, path)]
        if not paths:
            raise _no_match(prefix, network, target, inside, spec.blocks)
        for path in paths:
            spec.check_layer(f"{prefix}.{path}", layers[path])
            if path in taken:
                what = f"targets {taken[path]!r} and {target!r} both name {prefix}.{path}"
                raise UserError(what, code="adapter.targets_overlap", remedy="keep one")
            taken[path] = target
        matches.append(Match(prefix, target, tuple(f"{prefix}.{path}" for path in paths)))
    return matches


def _no_match(prefix: str, network: nn.Module, target: str, paths: Sequence[str], blocks: Sequence[str]) -> UserError:
    """Return the mistake of a target that is no layer.

    Args:
        prefix: the network's.
        network: in which it was looked for.
        target: what was looked for.
        paths: of the layers that it could have been.
        blocks: that they are in; none: all.
    """
    named = {path: module for path, module in network.named_modules() if is_named(target, path)}
    kinds = sorted({type(module).__name__ for module in named.values()})
    if not kinds or any(isinstance(module, nn.Linear | nn.Conv2d) for module in named.values()):
        where = f"{', '.join(blocks)} of {prefix}" if blocks else prefix
        what, options = f"target {target!r} matches nothing in {where}", nearest(target, list(paths))
        remedy = f"did you mean {' or '.join(options)}?"
        if target in get_args(TargetPreset):
            remedy = f"write target_modules={target}, not in a list"
        return UserError(what, code="adapter.target_matches_nothing", remedy=remedy)
    what = f"target {target!r} names {' and '.join(kinds)} in {prefix}, which is neither Linear nor Conv2d"
    inside = [target + f".{path}".rpartition(f".{target}")[2] for path in paths if f".{target}." in f".{path}"]
    layers = f"name layers inside, as {' '.join(dict.fromkeys(inside[:3]))}" if inside else None
    return UserError(what, code="adapter.target_is_no_layer", remedy=layers)


def _adapt(prefix: str, network: nn.Module, spec: AdapterSpec, paths: list[str]) -> dict[str, _Site]:
    """Wrap the layers of one network; return the sites by full path."""
    places = places_under(network)
    names = {path: places[path.removeprefix(f"{prefix}.")] for path in paths}
    parents = {path: network.get_submodule(name.rpartition(".")[0]) for path, name in names.items()}
    originals = {path: network.get_submodule(name) for path, name in names.items()}
    spec.wrap_layers(network, list(names.values()))
    sites = {}
    for path, name in names.items():
        module = network.get_submodule(name)
        assert isinstance(module, BaseTunerLayer) and isinstance(module, nn.Module)
        module.train(originals[path].training)  # a new module trains, dropout and all, whatever its parent does
        sites[path] = _Site(parents[path], name.rpartition(".")[2], originals[path], spec.injected_layer(module))
    return sites


def _check_same_layers(given: set[str], here: set[str]) -> None:
    code = "adapter.other_layers"
    if missing := sorted(here - given):
        what = f"the adapter has nothing for {missing[0]}, which is adapted here ({len(missing)} such layers)"
        raise UserError(what, code=code)
    if extra := sorted(given - here):
        what = f"the adapter changes {extra[0]}, which is not adapted here ({len(extra)} such layers)"
        raise UserError(what, code=code)


def _set_flags(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, requires_grad in flags:
        parameter.requires_grad_(requires_grad)

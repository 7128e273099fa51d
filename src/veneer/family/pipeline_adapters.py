"""What adapters of families of diffusers pipelines change, and what files call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from veneer.adapter.targets import expand_preset, names_in_blocks
from veneer.config.adapter_config import TargetPreset
from veneer.family.pipeline_parts import PipelineParts
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = ["PipelineAdapters"]


class PipelineAdapters(PipelineParts):
    """The layers of a family that adapters change, and their names in files."""

    default_targets: Mapping[str, tuple[str, ...]]
    """Of each network that an adapter may change, the layers that it changes where a config names none."""
    default_blocks: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Of networks whose adapters are confined to some blocks by default, these."""
    target_presets: Mapping[TargetPreset, tuple[str, ...]] = MappingProxyType({})
    """Of presets of the denoiser's layers, the names that they mean; others are found by looking into its blocks."""
    folded_layers: tuple[str, ...] = ()

    @property
    def key_names(self) -> KeyNames:
        """No other names than those in memory."""
        return {}

    @property
    def labels(self) -> BaseLabels:
        """What programs and sites call bases of this kind."""
        raise NotImplementedError

    def expand_targets(
        self, network: str, wanted: TargetPreset | None, blocks: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the layers' names and the blocks that a preset means, or the default, within some blocks."""
        if wanted is None:
            return names_in_blocks(self.networks[network], self.default_targets[network], blocks), tuple(blocks)
        own = self.target_presets.get(wanted, ()) if network == self.denoiser else ()
        return expand_preset(self.networks[network], wanted, blocks, own)

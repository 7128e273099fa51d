"""The adapter methods by name: the one table that a new method is entered in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from veneer.adapter.biased import biased_method
from veneer.adapter.boft import BOFT
from veneer.adapter.boft_of_peft import BOFT_OF_PEFT
from veneer.adapter.decomposed import DOHA, DOKR
from veneer.adapter.dora import DORA
from veneer.adapter.dylora import DYLORA
from veneer.adapter.full import FULL, NORM
from veneer.adapter.glora import GLORA
from veneer.adapter.ia3 import IA3, IA3_OF_PEFT
from veneer.adapter.loha import LOHA
from veneer.adapter.lokr import LOKR
from veneer.adapter.lora import LORA
from veneer.adapter.oft import OFT
from veneer.adapter.oft_of_peft import OFT_OF_PEFT
from veneer.adapter.protocol import AdapterSpec, AdapterWeights, LayerAdapter, Method
from veneer.adapter.replaced import REPLACED
from veneer.config.adapter_config import AdapterConfig, TextEncoderAdapterConfig
from veneer.config.load import BaseDefaults, complete_adapter
from veneer.errors import UserError

__all__ = ["METHODS", "TRAINED", "Networks", "from_tensors", "specs_of", "to_tensors"]

_OTHERS = (LOHA, LOKR, DOHA, DOKR, OFT, BOFT, OFT_OF_PEFT, BOFT_OF_PEFT, GLORA, IA3, IA3_OF_PEFT)
_METHODS = (LORA, DORA, *_OTHERS, FULL, NORM, REPLACED, DYLORA)
_BY_NAME = {method.name: method for method in _METHODS}
METHODS: Mapping[str, Method] = {method.name: method for method in (*_METHODS, biased_method(_BY_NAME))}
"""Each method by its name."""
TRAINED: Mapping[str, Method] = {name: method for name, method in METHODS.items() if method.spec is not None}
"""Those that are trained here, by their value of ``adapter.method``."""


class Networks(BaseDefaults, Protocol):
    """What of a base an adapter's plan depends on; ``veneer.family.protocol.Family`` is one."""

    networks: Mapping[str, nn.Module]


def specs_of(config: AdapterConfig, base: Networks) -> dict[str, AdapterSpec]:
    """Return the adapters that a config asks for, by the name of their network: the denoiser's, then text encoders'.

    Raises:
        UserError: the base has no text encoder of a name in the config, or no such layers or blocks.
    """
    text_encoders = [name for name in base.networks if name != base.denoiser]
    if unknown := next((name for name in config.text_encoders if name not in text_encoders), None):
        raise UserError(
            f"the base has no {unknown}",
            code="adapter.unknown_text_encoder",
            where="adapter.text_encoders",
            remedy=f"it has {', '.join(text_encoders) or 'none that can be adapted'}",
        )
    specs = {base.denoiser: _spec(config.method, complete_adapter(config, base, base.denoiser))}
    sections = {name: config.text_encoders[name] for name in text_encoders if name in config.text_encoders}
    return specs | {name: _spec(config.method, complete_adapter(one, base, name)) for name, one in sections.items()}


def _spec(method: str, section: AdapterConfig | TextEncoderAdapterConfig) -> AdapterSpec:
    make = TRAINED[method].spec
    assert make is not None
    return make(section)


def to_tensors(weights: AdapterWeights) -> dict[str, Tensor]:
    """Return an adapter as tensors named ``METHOD.LAYER.PART``, from which :func:`from_tensors` makes it again."""
    return {
        f"{layer.method.name}.{path}.{part}": tensor
        for path, layer in weights.items()
        for part, tensor in layer.state_dict().items()
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, LayerAdapter]:
    """Return the adapter that :func:`to_tensors` took apart, bit for bit."""
    states: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        method, _, rest = name.partition(".")
        path, _, part = rest.rpartition(".")
        states.setdefault((method, path), {})[part] = tensor
    return {path: METHODS[method].from_state(state) for (method, path), state in states.items()}

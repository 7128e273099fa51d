"""Load a base's networks with all their weights, in the dtype and the quantised form that a run wants.

diffusers and transformers load a network. What they cannot do is quantise it on its way from the disk, so that is done
here: a network without memory for its weights gets them one by one, and each linear layer's are packed as they come.
Which names and shapes its files must have, and what to say where they do not, stays the libraries' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from veneer.engine.quantization import NONE
from veneer.engine.quantized import linear_weights, quantize, quantize_streamed
from veneer.errors import UserError
from veneer.family.libraries import one_line_errors, silence_libraries
from veneer.family.offload import Loader
from veneer.family.shards import Shards, weight_files

__all__ = ["LoadOptions", "load_network", "load_pipeline", "loader_of"]


@dataclass(frozen=True)
class LoadOptions:
    """The dtype and the quantisation of a base's weights.

    Attributes:
        dtype: the dtype of all weights that are not quantised.
        quantization: of the linear layers of ``networks``: a key of ``FORMATS``, or ``none``.
        networks: names of the networks that are quantised.
        device: the device that their weights are quantised on and stay on; None: the CPU.
    """

    dtype: torch.dtype = torch.float32
    quantization: str = NONE
    networks: tuple[str, ...] = ()
    device: torch.device | None = None

    def quantization_of(self, network: str) -> str:
        """Return the format of a network's linear layers; ``none`` if they are not quantised."""
        return self.quantization if network in self.networks else NONE


def load_pipeline(
    pipeline: Any, place: Path, networks: Mapping[str, type[Any]], options: LoadOptions, **parts: Any
) -> Any:
    """Load a diffusers pipeline from its folder or from a single checkpoint file.

    Args:
        pipeline: its class.
        place: the folder or the file.
        networks: class of each network by its name, which is its folder's too.
        options: dtype and quantisation.
        parts: what the pipeline is made with beside its networks and what its files say.

    Raises:
        UserError: a network lacks weights, or has some that it has no place for.
        Exception: whatever the libraries raise at files that cannot be read.
    """
    if place.is_file():
        return _load_file(pipeline, place, networks, options, **parts)
    loaded = {name: load_network(kind, place, name, options) for name, kind in networks.items()}
    return pipeline.from_pretrained(str(place), **loaded, **parts)


def _load_file(pipeline: Any, file: Path, networks: Mapping[str, type[Any]], options: LoadOptions, **parts: Any) -> Any:
    # a checkpoint has no tokenizer and no configs: they come from a diffusers folder it lies in, or from the hub
    config = {"config": str(file.parent)} if (file.parent / "model_index.json").is_file() else {}
    loaded = pipeline.from_single_file(str(file), torch_dtype=_dtype_to_read(file, options), **config, **parts)
    for name in networks:
        quantize(getattr(loaded, name), options.quantization_of(name), options.device)
    return loaded.to(options.dtype)


def _dtype_to_read(file: Path, options: LoadOptions) -> torch.dtype:
    """Return the dtype that a checkpoint's weights are read in: its own, if it has one and they are quantised then.

    So they are quantised as they lie in the file, and none is copied into a wider dtype but the layer at hand.
    """
    dtypes = Shards([file]).dtypes() if options.networks and options.quantization != NONE else set()
    return dtypes.pop() if len(dtypes) == 1 else options.dtype if options.quantization == NONE else torch.float32


def loader_of(
    place: Path, parts: Mapping[str, str], networks: Mapping[str, type[Any]], dtype: torch.dtype
) -> Loader | None:
    """Return a function that loads a part of a base again, as it was loaded first; None for a single file.

    Args:
        place: the base's folder or file.
        parts: the network's name by the part's.
        networks: class of each network.
        dtype: of its weights.
    """
    if place.is_file():
        return None
    options = LoadOptions(dtype)

    def load(part: str) -> nn.Module:
        name = parts[part]
        with silence_libraries(), one_line_errors(str(place), "it must be there, complete, until the run ends"):
            return load_network(networks[name], place, name, options)

    return load


def load_network(kind: type[Any], folder: Path, name: str, options: LoadOptions) -> nn.Module:
    """Load one network of a pipeline's folder.

    Args:
        kind: its class, of diffusers or transformers.
        folder: the pipeline's.
        name: the network's, which is that of its folder within.
        options: dtype and quantisation.

    Raises:
        UserError: weights are missing, or there are some that it has no place for.
        Exception: whatever the libraries raise at files that cannot be read.
    """
    quantization = options.quantization_of(name)
    if quantization == NONE:
        return _load_whole(kind, folder, name, options.dtype)
    return _load_streamed(kind, folder, name, options) or _load_then_quantize(kind, folder, name, options)


def _load_whole(kind: type[Any], folder: Path, name: str, dtype: torch.dtype) -> nn.Module:
    network: nn.Module
    network, info = kind.from_pretrained(
        str(folder), subfolder=name, use_safetensors=True, torch_dtype=dtype, output_loading_info=True
    )
    # left to themselves the libraries draw missing weights at random, and drop those that they have no place for
    for problem, keys in (("has no", info["missing_keys"]), ("has no place for", info["unexpected_keys"])):
        if keys:
            what = f"{name} {problem} {min(keys)}"
            if len(keys) > 1:
                what += f", and {len(keys) - 1} more weights"
            raise UserError(what, code="base.wrong_weights", where=folder, remedy="fetch the base again")
    return network


def _load_then_quantize(kind: type[Any], folder: Path, name: str, options: LoadOptions) -> nn.Module:
    network = _load_whole(kind, folder, name, torch.float32)
    quantize(network, options.quantization, options.device)
    return network.to(options.dtype)


def _load_streamed(kind: type[Any], folder: Path, name: str, options: LoadOptions) -> nn.Module | None:
    """Load and quantise a network weight by weight; None: its files name the weights otherwise than it does."""
    network = _without_weights(kind, folder, name)
    shards = Shards(weight_files(folder / name))
    stored = _stored_names(network, shards.shapes)
    if stored is None:
        return None
    packed = {stored[weight]: weight for weight in linear_weights(network)}
    stream = ((packed[name], weight) for name, weight in shards.stream(packed))
    quantize_streamed(network, options.quantization, stream, options.dtype, options.device)
    rest = {weight: name for weight, name in stored.items() if name not in packed}
    network.load_state_dict(_tensors(network, rest, shards, options.dtype), strict=False, assign=True)
    return network.eval()


def _tensors(network: nn.Module, names: Mapping[str, str], shards: Shards, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights by their names in a network, and one parameter for those that share it."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    read = _read(shards, set(names.values()), dtype)
    shared = {
        stored: nn.Parameter(read[stored], parameters[own].requires_grad) if own in parameters else read[stored]
        for own, stored in names.items()
    }
    return {own: shared[stored] for own, stored in names.items()}


def _read(shards: Shards, names: set[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Read tensors in a dtype: those that have it stay in their file, copies are made of the others one by one."""
    mapped = {
        name: tensor
        for name, tensor in shards.map(names).items()
        if tensor.dtype == dtype or not tensor.is_floating_point()
    }
    return mapped | {name: tensor.to(dtype) for name, tensor in shards.stream(names - mapped.keys())}


def _stored_names(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str] | None:
    """Return the name in the files of each of a network's weights.

    The files may have one component more in front of all names, such as ``text_model.``, and a weight that several
    modules share may stand there under the name of any of them.

    Returns:
        None if a weight is not there or has another shape, or if there are others.
    """
    own = network.state_dict(keep_vars=True)
    components = {name.partition(".")[0] for name in shapes}
    for prefix in ("", *(f"{component}." for component in components if len(components) == 1)):
        by_tensor = {id(own[name]): prefix + name for name in own if prefix + name in shapes}
        names = {name: by_tensor.get(id(tensor), "") for name, tensor in own.items()}
        unused = shapes.keys() - names.values() - {prefix + name for name, _ in network.named_buffers()}
        if not unused and all(shapes.get(names[name]) == tuple(tensor.shape) for name, tensor in own.items()):
            return names
    return None


def _without_weights(kind: type[Any], folder: Path, name: str) -> nn.Module:
    """Make a network whose weights are on the meta device; its buffers have the values that its class gives them."""
    from accelerate import init_empty_weights
    from diffusers import ModelMixin

    if issubclass(kind, ModelMixin):
        config = kind.load_config(str(folder), subfolder=name)
        with init_empty_weights():
            return cast(nn.Module, kind.from_config(config))
    config = kind.config_class.from_pretrained(str(folder), subfolder=name)
    with init_empty_weights():
        network: nn.Module = kind(config)
    cast(Any, network).tie_weights()  # after the block, within which each assigned parameter becomes another
    return network

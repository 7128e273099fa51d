"""Load a base's networks with all their weights, in the dtype and the quantised form that a run wants.

diffusers and transformers load a network. What they cannot do is quantise it on its way from the disk, so that is done
here: a network without memory for its weights gets them one by one, and each linear layer's are packed as they come.
Which names and shapes its files must have, and what to say where they do not, stays the libraries' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from veneer.engine.quantization import NONE, find_format
from veneer.engine.quantized import packed_weights, quantize, quantize_streamed
from veneer.errors import UserError
from veneer.family.assembled import is_assembled
from veneer.family.base_index import find_index
from veneer.family.file_content import fetch_again
from veneer.family.foreign_weights import foreign_weights
from veneer.family.gguf_file import open_weights
from veneer.family.libraries import one_line_errors, silence_libraries
from veneer.family.network_files import NetworkFiles
from veneer.family.offload import Loader, without_memory
from veneer.family.pipeline_folder import PipelineFolder, check_network_weights
from veneer.family.shards import Shards
from veneer.family.stored_weight import StoredWeight

__all__ = [
    "LoadOptions",
    "load_file",
    "load_network",
    "load_parts",
    "loader_of",
    "make_network",
    "stored_format",
]

_NATIVE_DENOISER = "model.diffusion_model."
"""What begins the names of the denoiser's weights in a single file."""


@dataclass(frozen=True)
class LoadOptions:
    """The dtype and the quantisation of a base's weights.

    Attributes:
        dtype: the dtype of all weights that are not quantised.
        quantization: of the linear layers of ``networks``: a key of ``FORMATS``, or ``none``.
        networks: names of the networks that are quantised.
        device: the device that their weights are quantised on and stay on; None: the CPU.
        text_encoders: names of text encoders; those that are not among ``networks`` have a format of their own.
        text_encoder_quantization: that format; None: they are held as their files have them, 16-bit numbers in 16 bits.
        on_demand: whether a large base's networks are to be read when they are first called.
        keeps_denoiser: whether its denoiser is none of them, since blocks of it will wait in CPU memory.
        unread: names of those networks.
    """

    dtype: torch.dtype = torch.float32
    quantization: str = NONE
    networks: tuple[str, ...] = ()
    device: torch.device | None = None
    text_encoders: tuple[str, ...] = ()
    text_encoder_quantization: str | None = NONE
    on_demand: bool = False
    keeps_denoiser: bool = False
    unread: tuple[str, ...] = ()

    def quantization_of(self, network: str, stored: Collection[torch.dtype] = ()) -> str:
        """Return the format of a network's linear layers; ``none`` if they are not quantised.

        Args:
            network: its name.
            stored: the dtypes of the numbers in its files.
        """
        if network in self.networks:
            return self.quantization
        if network not in self.text_encoders:
            return NONE
        if self.text_encoder_quantization is not None:
            return self.text_encoder_quantization
        return stored_format(stored)


_HALVES: Mapping[torch.dtype, str] = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float8_e4m3fn: "bfloat16",
}


def stored_format(dtypes: Collection[torch.dtype]) -> str:
    """Return the format that holds numbers of these dtypes in as many bits and to the same bits.

    A layer in it computes what it does with the same numbers in float32: they are widened for each product.
    """
    return _HALVES.get(next(iter(dtypes)), NONE) if len(dtypes) == 1 else NONE


def load_parts(
    folder: PipelineFolder, networks: Mapping[str, type[Any]], tokenizers: Collection[str], options: LoadOptions
) -> dict[str, Any]:
    """Load networks, tokenizers and the scheduler of a base in diffusers' layout, all checked before the first is read.

    Whatever else the folder holds or its index names is left alone.

    Args:
        folder: the base.
        networks: class of each network by its name, which is its folder's too.
        tokenizers: their names.
        options: dtype and quantisation.

    Raises:
        UserError: a part is missing, broken or another base's.
    """
    for name, kind in networks.items():
        folder.check_network(name, kind)
    kinds = {name: folder.check_tokenizer(name) for name in tokenizers} | {"scheduler": folder.check_scheduler()}
    loaded: dict[str, Any] = {
        name: make_network(kind, folder.path, name, options)
        if name in options.unread
        else load_network(kind, folder.path, name, options)
        for name, kind in networks.items()
    }
    return loaded | {name: _load_part(kind, folder.path / name) for name, kind in kinds.items()}


def _load_part(kind: type[Any], folder: Path) -> Any:
    """Load a tokenizer or a scheduler."""
    with one_line_errors(str(folder), f"its files are no {kind.__name__}'s, or damaged: {fetch_again(folder)}"):
        return kind.from_pretrained(str(folder))


def load_file(pipeline: Any, file: Path, networks: Mapping[str, type[Any]], options: LoadOptions, **parts: Any) -> Any:
    """Load a diffusers pipeline from a single checkpoint file.

    Args:
        pipeline: its class.
        file: the checkpoint.
        networks: class of each network by its name.
        options: dtype and quantisation.
        parts: what the pipeline is made with beside its networks and what its files say.

    Raises:
        Exception: whatever the libraries raise at files that cannot be read.
    """
    # a checkpoint has no tokenizer and no configs: they come from a diffusers folder it lies in, or from the hub
    config = {"config": str(file.parent)} if (file.parent / "model_index.json").is_file() else {}
    try:
        loaded = pipeline.from_single_file(str(file), torch_dtype=_dtype_to_read(file, options), **config, **parts)
    except NotImplementedError as error:  # PyTorch's, at weights on the meta device: diffusers does not say which
        what = "lacks weights that its configurations ask for"
        raise UserError(what, code="base.wrong_weights", where=file, remedy=_of_another_base(file)) from error
    for name in networks:
        _check_filled(file, name, getattr(loaded, name))
    _check_used(file, loaded)
    for name in networks:
        quantize(getattr(loaded, name), options.quantization_of(name), options.device)
    return loaded.to(options.dtype)


def _check_filled(file: Path, name: str, network: nn.Module) -> None:
    """Refuse a network of which a single file lacks weights: diffusers leaves those without memory and goes on."""
    lost = [weight for weight, parameter in network.named_parameters() if parameter.is_meta]
    if lost:
        what = f"has no weights for {lost[0]} of the {name}" + (f", and {len(lost) - 1} more" if len(lost) > 1 else "")
        raise UserError(what, code="base.wrong_weights", where=file, remedy=_of_another_base(file))


def _check_used(file: Path, pipeline: Any) -> None:
    """Refuse a file with more weights of the denoiser than its configuration has a place for, which are passed over."""
    shapes = Shards([file]).shapes
    stored = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(_NATIVE_DENOISER))
    own = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    if stored > own:
        what = f"has {stored:,} weights of the denoiser, and the configuration has a place for {own:,}"
        raise UserError(what, code="base.wrong_weights", where=file, remedy=_of_another_base(file))


def _of_another_base(file: Path) -> str:
    """Return what to do about weights that do not fit the configurations that a single file is read with."""
    if find_index(file.parent) is not None:
        return f"the configurations in {file.parent} are of another base, or it is damaged: {fetch_again(file)}"
    return f"it is damaged, or of a kind that is not known: {fetch_again(file)}"


def _dtype_to_read(file: Path, options: LoadOptions) -> torch.dtype:
    """Return the dtype that a checkpoint's weights are read in: its own, if it has one and they are quantised then.

    So they are quantised as they lie in the file, and none is copied into a wider dtype but the layer at hand.
    """
    dtypes = Shards([file]).dtypes() if options.networks and options.quantization != NONE else set()
    return dtypes.pop() if len(dtypes) == 1 else options.dtype if options.quantization == NONE else torch.float32


def loader_of(
    place: Path, parts: Mapping[str, str], networks: Mapping[str, type[Any]], options: LoadOptions
) -> Loader | None:
    """Return a function that loads a part of a base again, as it was loaded first; None for a single file.

    Args:
        place: the base's folder or file.
        parts: the network's name by the part's.
        networks: class of each network.
        options: those that the base was loaded with.
    """
    if place.is_file():
        return None

    def load(part: str) -> nn.Module:
        name = parts[part]
        try:
            with silence_libraries():
                return load_network(networks[name], place, name, options)
        except UserError as fault:
            remedy = "it was whole when the run began, and must be until the run ends"
            raise UserError(fault.what, code=fault.code, where=fault.where, remedy=remedy) from fault

    return load


def load_network(kind: type[Any], folder: Path, name: str, options: LoadOptions) -> nn.Module:
    """Load one network of a pipeline's folder.

    Args:
        kind: its class, of diffusers or transformers.
        folder: the pipeline's.
        name: the network's, which is that of its folder within.
        options: dtype and quantisation.

    Raises:
        UserError: its files are missing, broken, or do not fit together.
    """
    network = NetworkFiles(kind, folder, name, check_network_weights(folder / name, kind))
    with network.causes():
        format = _format_of(network, options)
        if (foreign := _load_foreign(network, format, options)) is not None:
            return foreign
        if format == NONE:
            return _load_whole(network, options.dtype)
        return _load_streamed(network, format, options) or _load_then_quantize(network, format, options)


def make_network(kind: type[Any], folder: Path, name: str, options: LoadOptions) -> nn.Module:
    """Make one network of a pipeline's folder without weights, in the form in which :func:`load_network` loads it.

    Its files are compared with its configuration. Where their names are others than its own, which only the libraries
    can tell to be the same, it is loaded.

    Args:
        kind: as of :func:`load_network`.
        folder: the same.
        name: the same.
        options: the same.

    Raises:
        UserError: its files are missing, broken, or do not fit together.
    """
    network = NetworkFiles(kind, folder, name, check_network_weights(folder / name, kind))
    with network.causes():
        format = _format_of(network, options)
        if format != NONE:
            find_format(format).check_installed()
        empty = network.without_weights()
        if _names_in_files(network, empty) is None and _foreign(network, empty) is None:
            return load_network(kind, folder, name, options)
        quantize(empty, format)
        return without_memory(empty.eval(), options.device, options.dtype)


def _format_of(network: NetworkFiles, options: LoadOptions) -> str:
    """Return the format of a network's linear layers, which its files may decide."""
    if network.name in options.networks or network.name not in options.text_encoders:
        return options.quantization_of(network.name)
    if network.files.is_pickled or network.files.has_foreign_names:
        return options.quantization_of(network.name)
    return options.quantization_of(network.name, Shards(network.files.files(network.folder)).dtypes())


def _load_whole(network: NetworkFiles, dtype: torch.dtype) -> nn.Module:
    loaded: nn.Module
    loaded, info = network.kind.from_pretrained(
        str(network.base),
        subfolder=network.name,
        use_safetensors=not network.files.is_pickled,
        variant=network.files.variant or None,
        torch_dtype=dtype,
        output_loading_info=True,
    )
    # left to themselves the libraries draw missing weights at random, and drop those that they have no place for
    network.refuse_other_names(info["missing_keys"], info["unexpected_keys"])
    return loaded


def _load_then_quantize(network: NetworkFiles, format: str, options: LoadOptions) -> nn.Module:
    loaded = _load_whole(network, torch.float32)
    quantize(loaded, format, options.device)
    return loaded.to(options.dtype)


def _foreign(network: NetworkFiles, empty: nn.Module) -> dict[str, StoredWeight] | None:
    """Return where a single file has the weights of a network; None: its files are of a diffusers folder."""
    if not is_assembled(network.base) or len(files := network.files.files(network.folder)) != 1:
        return None
    if network.folder.is_symlink():  # to a folder, whose names are the libraries'
        return None
    return foreign_weights(empty, network.config, open_weights(files[0]))


def _load_foreign(network: NetworkFiles, format: str, options: LoadOptions) -> nn.Module | None:
    """Load a network from a single file with names of its own, weight by weight; None: there is no such file."""
    if not is_assembled(network.base):
        return None
    empty = network.without_weights()
    stored = _foreign(network, empty)
    if stored is None:
        return None
    packed = [] if format == NONE else packed_weights(empty, format)
    if packed:
        stream = ((name, stored[name].read_number()) for name in packed)
        quantize_streamed(empty, format, stream, options.dtype, options.device)
    own = empty.state_dict(keep_vars=True)
    read: dict[int, nn.Parameter | Tensor] = {}
    for name in own.keys() - set(packed):
        if id(own[name]) not in read:
            weight = stored[name].read_number()
            weight = weight.to(options.dtype) if weight.is_floating_point() else weight
            is_parameter = isinstance(own[name], nn.Parameter)
            read[id(own[name])] = nn.Parameter(weight, own[name].requires_grad) if is_parameter else weight
    weights = {name: read[id(own[name])] for name in own.keys() - set(packed)}
    empty.load_state_dict(weights, strict=False, assign=True)
    return empty.eval()


def _load_streamed(network: NetworkFiles, format: str, options: LoadOptions) -> nn.Module | None:
    """Load and quantise a network weight by weight; None: its files name the weights otherwise than it does."""
    empty = network.without_weights()
    stored = _names_in_files(network, empty)
    if stored is None:
        return None
    shards = Shards(network.files.files(network.folder))
    packed = {stored[weight]: weight for weight in packed_weights(empty, format)}
    stream = ((packed[name], weight) for name, weight in shards.stream(packed))
    quantize_streamed(empty, format, stream, options.dtype, options.device)
    rest = {weight: name for weight, name in stored.items() if name not in packed}
    empty.load_state_dict(_tensors(empty, rest, shards, options.dtype), strict=False, assign=True)
    return empty.eval()


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


def _names_in_files(network: NetworkFiles, empty: nn.Module) -> dict[str, str] | None:
    """Return the name in a network's files of each of its weights; None: they are not the network's own, or pickled."""
    if network.files.is_pickled or network.files.has_foreign_names:
        return None
    shapes = Shards(network.files.files(network.folder)).shapes
    return _stored_names(empty, shapes) or _renamed_names(empty, shapes)


def _renamed_names(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str] | None:
    """Return the same where transformers renames what it reads, as of vision-language models of earlier releases.

    Returns:
        None if it does more than that, or a weight is not there.
    """
    own = network.state_dict(keep_vars=True)
    renamings = _renamings(network)
    if renamings is None:
        return None
    stored = {renamings(name, own): name for name in shapes}
    found = _stored_names(network, {name: shapes[old] for name, old in stored.items()})
    return None if found is None else {name: stored[new] for name, new in found.items()}


def _renamings(network: nn.Module) -> Callable[[str, Mapping[str, Any]], str] | None:
    """Return what turns a stored name into a network's own, as transformers does; None: it does more, or nothing."""
    from transformers import PreTrainedModel

    if not isinstance(network, PreTrainedModel):
        return None
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    steps = get_model_conversion_mapping(network)
    if any(isinstance(step, WeightConverter) for step in steps):
        return None
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    return lambda name, own: rename_source_key(name, renamings, [], network.base_model_prefix, dict(own))[0]


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

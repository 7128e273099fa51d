"""Tell what a single checkpoint file is by its header alone: no weight is read, nothing in it is run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from veneer.errors import UserError
from veneer.family.file_content import check_content, header
from veneer.family.gguf_file import open_weights
from veneer.file_kind import GGUF, SAFETENSORS, FileKind, kind_despite_ending
from veneer.files import is_pickle
from veneer.weights.formats.contents import DENOISER, TEXT_ENCODER, content_of
from veneer.weights.formats.foreign import is_adapter
from veneer.weights.header import TensorEntry

__all__ = ["check_is_safetensors", "check_is_whole", "conversion", "kind_of_checkpoint"]

_FALLBACK, _NATIVE = "v1", "model.diffusion_model."
_LDM = f"{_NATIVE}input_blocks."
_OF_UNETS = ("v1", "v2", "xl_base")
"""Kinds of checkpoints that diffusers reads as a whole, and whatever it does not know."""
_PREFIXES = ("", _NATIVE, "net.", f"{_NATIVE}net.")
"""What a denoiser's names begin with; ``net.`` is Cosmos'."""
_TELLING: Mapping[str, tuple[str, str]] = {
    "anima": ("blocks.0.adaln_modulation_self_attn.1.weight", "llm_adapter.out_proj.weight"),
    "qwen-image": ("txt_norm.weight", "transformer_blocks.0.img_mod.1.weight"),
    "ernie-image": ("layers.0.adaLN_sa_ln.weight", "layers.0.mlp.linear_fc2.weight"),
    "ideogram4": ("llm_cond_proj.weight", "embed_image_indicator.weight"),
    "ltx2-dev": ("audio_patchify_proj.weight", "av_ca_a2v_gate_adaln_single.linear.weight"),
    "hidream": ("double_stream_blocks.0.block.adaLN_modulation.1.bias", "final_layer.linear.weight"),
}
"""Weights that denoisers have which diffusers has no kind for, knows without ComfyUI's prefix only, or mistakes: it
takes LTX-2 for LTX-Video."""
_FLUX2, _FLUX2_KLEIN, _GUIDANCE = "flux-2-dev", "flux-2-klein", re.compile(r"guidance_(?:in|embedder)\.")
"""diffusers has one kind for FLUX.2, of which [klein] takes no guidance."""
_PACKED = r"\.(absmax|quant_map|qweight|qzeros|weight_scale_2)$|quant_state"
"""Names of the scales of packed numbers."""
_SCALED = r"scaled_fp8|\.(scale_weight|weight_scale|scale_input)$"
"""Names of the scales of 8-bit floats."""
_NEEDED = {
    "its autoencoder (first_stage_model)": r"^first_stage_model\.",
    "its text encoder (cond_stage_model, conditioner)": r"^(cond_stage_model|conditioner)\.",
}


def check_is_safetensors(file: Path) -> None:
    """Check by its first bytes and its name that a single file may be opened as safetensors or GGUF.

    Raises:
        UserError: it is a pickle, which is not opened, or something else.
    """
    if is_pickle(file) and kind_despite_ending(file) is None:
        raise _pickle(file)
    kind = check_content(file)
    if kind is GGUF:
        return
    if file.suffix.lower() != ".safetensors":
        raise _other_ending(file, kind)


def _other_ending(file: Path, kind: FileKind | None) -> UserError:
    if kind is SAFETENSORS:
        what = f"is a safetensors file under the name of {'a pickle' if is_pickle(file) else 'something else'}"
        remedy = f"rename it to {file.with_suffix('.safetensors').name}"
        return UserError(what, code="base.wrong_file", where=file, remedy=remedy)
    what = "is no model" if kind is None else f"is {kind.name}, not a model"
    return _no_base(file, what, "give a diffusers folder or a .safetensors file")


def _pickle(file: Path) -> UserError:
    what = f"{file.suffix} is a pickle, which can run code when it is opened"
    remedy = f"convert it, which reads tensors and runs nothing: {conversion(file)}"
    return UserError(what, code="base.pickle", where=file, remedy=remedy)


def conversion(file: Path) -> str:
    """Return the command that writes a pickle's tensors into a safetensors file beside it, and runs no code of it."""
    old, new = json.dumps(str(file)), json.dumps(str(file.with_suffix(".safetensors")))
    code = (
        f'import torch, safetensors.torch as s; w = torch.load({old}, map_location="cpu", weights_only=True); '
        'w = w.get("state_dict", w); '
        f's.save_file({{k: v.clone().contiguous() for k, v in w.items() if hasattr(v, "clone")}}, {new})'
    )
    return f"python -c {shlex.quote(code)}"


def kind_of_checkpoint(file: Path) -> str:
    """Return what diffusers calls such checkpoints (``infer_diffusers_model_type``), for one that is a whole base.

    diffusers takes whatever it does not know for Stable Diffusion 1, so what is none is told first.

    Raises:
        UserError: the file is broken, or holds something else than a base.
    """
    tensors = open_weights(file).header.tensors
    if not tensors:
        what = "is a GGUF file without tensors" if check_content(file) is GGUF else "holds no tensors"
        raise _no_base(file, what, "give the base's file")
    _refuse_packed(file, tensors)
    if _lacks(tensors):  # names within a whole base are its own affair
        _refuse_additions(file, tensors)
    kind = _infer(tensors)
    if kind not in _OF_UNETS:
        return kind
    _refuse_gguf(file)
    _refuse_scaled(file, tensors)
    if kind == _FALLBACK and not any(name.startswith(_LDM) for name in tensors):
        _refuse_parts(file, tensors)
        what = "holds no base model that is known by the names of its weights"
        raise _no_base(file, what, "give a diffusers folder or a checkpoint")
    return kind


def _refuse_packed(file: Path, names: Collection[str]) -> None:
    if any(re.search(_PACKED, name) for name in names):
        what = "is quantised: its numbers are packed with scales beside them"
        raise _no_base(file, what, "give the base's file in float16, bfloat16 or float32")


def _refuse_gguf(file: Path) -> None:
    """Refuse GGUF where diffusers reads the file as a whole, which it does not in this format."""
    if check_content(file) is GGUF:
        what = "is a GGUF file of no family whose denoiser is read from such a file"
        raise _no_base(file, what, "give the base's .safetensors file or folder")


def _refuse_scaled(file: Path, names: Collection[str]) -> None:
    """Refuse 8-bit floats with scales where diffusers reads the file as a whole, which passes over the scales."""
    if any(re.search(_SCALED, name) for name in names):
        what = "is quantised: its numbers are packed with scales beside them"
        raise _no_base(file, what, "give the base's file in float16, bfloat16 or float32")


def _refuse_additions(file: Path, names: Collection[str]) -> None:
    """Refuse what is used beside a base."""
    addition = content_of(names, "addition")
    title = "an adapter" if any(map(is_adapter, names)) else addition.title if addition else None
    if title:
        raise _no_base(file, f"is {title}, not a base", "give the base that it belongs to")


def _refuse_parts(file: Path, names: Collection[str]) -> None:
    """Refuse a part of a base."""
    part = content_of(names, "part")
    if part is DENOISER:
        what = "is a denoiser alone, without autoencoder and text encoder"
        raise _no_base(file, what, "give the whole checkpoint, or the base's folder")
    if part:
        title = "a text encoder (CLIP)" if part is TEXT_ENCODER else part.title
        raise _no_base(file, f"is {title} alone", "give the base that it belongs to")


def _no_base(file: Path, what: str, remedy: str) -> UserError:
    return UserError(what, code="base.not_a_model", where=file, remedy=remedy)


def _infer(tensors: Mapping[str, TensorEntry]) -> str:
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    for kind, telling in _TELLING.items():
        if any(all(prefix + name in tensors for name in telling) for prefix in _PREFIXES):
            return kind
    shapes = {name: torch.empty(entry.shape, device="meta") for name, entry in tensors.items()}
    found = str(infer_diffusers_model_type(shapes))
    is_klein = found == _FLUX2 and not any(map(_GUIDANCE.search, tensors))
    return _FLUX2_KLEIN if is_klein else found


def _lacks(names: Collection[str]) -> list[str]:
    """Return what a checkpoint of these names lacks of a whole base, in words."""
    return [what for what, pattern in _NEEDED.items() if not any(re.search(pattern, name) for name in names)]


def check_is_whole(file: Path) -> None:
    """Check that a checkpoint of the original authors' names has all parts of a base.

    Raises:
        UserError: it has its denoiser alone, as files for other programs have that keep the parts apart.
    """
    if lost := _lacks(header(file).tensors):
        what = f"has its denoiser, but not {' and '.join(lost)}"
        raise _no_base(file, what, "give the whole checkpoint, or the base's folder")

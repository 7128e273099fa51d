"""Tell what a single checkpoint file is by its header alone: no weight is read, nothing in it is run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from veneer.errors import UserError
from veneer.family.file_content import check_content, header
from veneer.file_kind import GGUF, SAFETENSORS, FileKind, kind_despite_ending
from veneer.files import is_pickle
from veneer.weights.header import TensorEntry

__all__ = ["check_is_safetensors", "check_is_whole", "conversion", "kind_of_checkpoint"]

_FALLBACK, _LDM = "v1", "model.diffusion_model.input_blocks."
_BASE = "give the base that it belongs to"


class _Kind(NamedTuple):
    """What is no base though it holds tensors.

    Attributes:
        pattern: found in at least one tensor's name.
        title: what it is.
        remedy: what to give in its stead.
    """

    pattern: str
    title: str
    remedy: str = _BASE


_KINDS = (
    _Kind(r"(lora|lokr|loha|hada|glora|oft)[_.]|[._]lora\b|\.(dora_scale|diff_b|alpha)$", "an adapter, not a base"),
    _Kind(r"^(ip_adapter|image_proj)\.", "an IP-Adapter, not a base"),
    _Kind(r"^adapter\.body\.|^body\.0\.", "a T2I-Adapter, not a base"),
    _Kind(r"^control_model\.|controlnet_cond_embedding|^controlnet_|^input_hint_block", "a ControlNet, not a base"),
    _Kind(r"motion_modules\.", "a motion module, not a base"),
    _Kind(r"^(string_to_param|emb_params)|^clip_[lg]$", "a textual inversion embedding, not a base"),
    _Kind(r"^optimizer\.|^(exp_avg|ema)\.", "a training's saved state, not a base"),
)
_PACKED = (
    _Kind(
        r"scaled_fp8|\.(scale_weight|weight_scale|scale_input|absmax|quant_map|qweight|qzeros|weight_scale_2)$|quant_state",
        "quantised: its numbers are packed with scales beside them",
        "give the base's file in float16, bfloat16 or float32",
    ),
)
_PARTS = (
    _Kind(r"^(encoder|decoder)\.(down|up|mid|conv_in|conv_out)|^(post_)?quant_conv", "an autoencoder (VAE) alone"),
    _Kind(r"^(text_model|transformer\.text_model|transformer\.resblocks)\.", "a text encoder (CLIP) alone"),
    _Kind(r"^encoder\.block\.\d+\.layer|^shared\.weight$|^enc\.blk", "a text encoder (T5) alone"),
    _Kind(r"^model\.layers\.\d+\.self_attn", "a language model alone"),
    _Kind(
        r"^(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block|transformer_blocks"
        r"|single_transformer_blocks)\.",
        "a denoiser alone, without autoencoder and text encoder",
        "give the whole checkpoint, or the base's folder",
    ),
)
_NEEDED = {
    "its autoencoder (first_stage_model)": r"^first_stage_model\.",
    "its text encoder (cond_stage_model, conditioner)": r"^(cond_stage_model|conditioner)\.",
}


def check_is_safetensors(file: Path) -> None:
    """Check by its first bytes and its name that a single file may be opened as safetensors.

    Raises:
        UserError: it is a pickle, which is not opened, or something else.
    """
    if is_pickle(file) and kind_despite_ending(file) is None:
        raise _pickle(file)
    kind = check_content(file)
    if kind is GGUF:
        remedy = "give the base's .safetensors file or folder"
        what = "is a GGUF file, whose numbers are packed for painting: nothing is trained on it"
        raise UserError(what, code="base.not_a_model", where=file, remedy=remedy)
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
    tensors = header(file).tensors
    if not tensors:
        raise _no_base(file, "holds no tensors", "give the base's file")
    _refuse(file, tensors, _PACKED)
    if _lacks(tensors):  # names within a whole base are its own affair
        _refuse(file, tensors, _KINDS)
    kind = _infer(tensors)
    if kind == _FALLBACK and not any(name.startswith(_LDM) for name in tensors):
        _refuse(file, tensors, _PARTS)
        what = "holds no base model that is known by the names of its weights"
        raise _no_base(file, what, "give a diffusers folder or a checkpoint")
    return kind


def _refuse(file: Path, names: Collection[str], kinds: Collection[_Kind]) -> None:
    for kind in kinds:
        if any(re.search(kind.pattern, name) for name in names):
            raise _no_base(file, f"is {kind.title}", kind.remedy)


def _no_base(file: Path, what: str, remedy: str) -> UserError:
    return UserError(what, code="base.not_a_model", where=file, remedy=remedy)


def _infer(tensors: Mapping[str, TensorEntry]) -> str:
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    shapes = {name: torch.empty(entry.shape, device="meta") for name, entry in tensors.items()}
    return str(infer_diffusers_model_type(shapes))


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

"""What tests know of bases without loading one, and tiny bases beside the one that most tests use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tests.conftest import write_tiny_tokenizer
from tests.families.parts import t5_tokenizer
from veneer.config.adapter_config import TargetPreset
from veneer.config.objective_config import Density, TimestepShift

__all__ = ["Defaults", "write_flux_file", "write_single_file", "write_tiny_flux", "write_tiny_sdxl"]


@dataclass
class Defaults:
    """What a config's defaults depend on, as Stable Diffusion has it.

    Attributes:
        resolution: side of the square that the base was trained on, in pixels.
        denoiser: the name of its denoiser.
        default_targets: of each network.
        default_blocks: of none.
        default_density: of timesteps.
        default_shift: of timesteps.
        default_logit_mean: of a logit-normal density.
        default_logit_std: of a logit-normal density.
        multiple: what sides of pictures are multiples of.
        longest_side: what they may be at most.
        trained_times: in which the denoiser removes noise.
        frame_stride: None: it takes pictures only.
        frame_rate: likewise.
    """

    resolution: int
    denoiser: str = "unet"
    default_density: Density = "uniform"
    default_blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default_shift: TimestepShift = 1.0
    default_logit_mean: float = 0.0
    default_logit_std: float = 1.0
    multiple: int = 4
    longest_side: int | None = None
    trained_times: tuple[float, float] = (0.0, 1.0)
    frame_stride: int | None = None
    frame_rate: float | None = None
    default_targets: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "unet": ("to_q", "to_k", "to_v", "to_out.0"),
            "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
        }
    )

    def expand_targets(
        self, network: str, wanted: TargetPreset | None, blocks: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the default; what a preset means, only a base can tell."""
        assert wanted is None
        return self.default_targets[network], tuple(blocks)


def write_tiny_sdxl(folder: Path, prediction: str = "epsilon", *, zero_terminal_snr: bool = False) -> Path:
    """Write an SDXL pipeline of random weights (seed 0) at 16 pixels, 8 x 8 latents; the same bits each time."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    for name, padding in (("tokenizer", None), ("tokenizer_2", "!")):
        write_tiny_tokenizer(folder / name)
        if padding is not None:  # as the published ones have it
            config = folder / name / "tokenizer_config.json"
            config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "pad_token": padding}), "utf-8")
    tokenizers = {name: CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _tiny_sdxl_networks(len(tokenizers["tokenizer"]))
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
        steps_offset=1,
    )
    pipeline = StableDiffusionXLPipeline(**networks, **tokenizers, scheduler=scheduler, add_watermarker=False)
    pipeline.save_pretrained(folder)
    return folder


def _tiny_sdxl_networks(vocabulary: int) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text: dict[str, Any] = {"vocab_size": vocabulary, "max_position_embeddings": 16, "num_attention_heads": 4, **ids}
    # the tenth layer is what single files are known by
    second: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 10, **text}
    second |= {"projection_dim": 24, "hidden_act": "gelu"}
    return {
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, **text)
        ),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**second)),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
            scaling_factor=0.13025,
        ),
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=32 + 48,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
    }


def write_single_file(folder: Path, path: Path, marks: Sequence[str] = (), *, is_second: bool = False) -> Path:
    """Write the networks of a Stable Diffusion into one file, under the names that the original authors gave them.

    Args:
        folder: from :func:`write_tiny_sdxl` or ``write_tiny_base``.
        path: the file to write.
        marks: names of empty tensors beside them, which say what the base predicts.
        is_second: whether it is to be a Stable Diffusion 2, whose text encoder is OpenCLIP's.
    """
    import torch
    from safetensors.torch import load_file, save_file

    def weights(name: str, file: str) -> dict[str, Any]:
        return load_file(folder / name / file)

    tensors = {
        _unet_name(name): tensor for name, tensor in weights("unet", "diffusion_pytorch_model.safetensors").items()
    }
    autoencoder = weights("vae", "diffusion_pytorch_model.safetensors")
    tensors |= {_autoencoder_name(name): _as_convolution(name, tensor) for name, tensor in autoencoder.items()}
    first, is_xl = weights("text_encoder", "model.safetensors"), (folder / "text_encoder_2").exists()
    stem = "conditioner.embedders.0.transformer" if is_xl else "cond_stage_model.transformer"
    if is_second:
        tensors |= _open_clip(first, "cond_stage_model.model")
    else:
        tensors |= {f"{stem}.text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in first.items()}
    if is_xl:
        tensors |= _open_clip(weights("text_encoder_2", "model.safetensors"), "conditioner.embedders.1.model")
    tensors |= {mark: torch.zeros(0) for mark in marks}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
_RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
_OUTER = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
_OUTER |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
_OUTER |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}


def _unet_name(name: str) -> str:
    """Rename a weight of a UNet of one layer a block."""
    module, _, kind = name.rpartition(".")
    parts = module.split(".")
    if module in _OUTER:
        return f"model.diffusion_model.{_OUTER[module]}.{kind}"
    block = int(parts[1]) if parts[1].isdigit() else 0
    if parts[0] == "mid_block":
        place = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}[".".join(parts[1:3])]
        stem, inner = f"middle_block.{place}", parts[3:]
    elif parts[0] == "down_blocks":
        places = {
            "resnets": f"{1 + 2 * block}.0",
            "attentions": f"{1 + 2 * block}.1",
            "downsamplers": f"{2 + 2 * block}.0",
        }
        stem, inner = f"input_blocks.{places[parts[2]]}", parts[4:]
    else:
        layer = 2 * block + int(parts[3])
        # only the first block has attention, so its upsampler comes third
        places = {"resnets": f"{layer}.0", "attentions": f"{layer}.1", "upsamplers": f"{2 * block + 1}.2"}
        stem, inner = f"output_blocks.{places[parts[2]]}", parts[4:]
    if parts[2] == "downsamplers":
        inner = ["op"]
    elif "resnets" in parts:
        inner = [_RESNET[inner[0]]]
    return f"model.diffusion_model.{'.'.join([stem, *inner])}.{kind}"


_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _autoencoder_name(name: str) -> str:
    """Rename a weight of an autoencoder of two blocks."""
    for side, blocks in (("encoder", "down"), ("decoder", "up")):
        for block in range(2):
            place = block if side == "encoder" else 1 - block
            name = name.replace(f"{side}.{blocks}_blocks.{block}.resnets.", f"{side}.{blocks}.{place}.block.")
            for sampler in ("downsample", "upsample"):
                name = name.replace(
                    f"{side}.{blocks}_blocks.{block}.{sampler}rs.0.conv",
                    f"{side}.{blocks}.{place}.{sampler[:-1]}e.conv",
                )
    for block in range(2):
        name = name.replace(f"mid_block.resnets.{block}.", f"mid.block_{block + 1}.")
    for new, old in _ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
    return "first_stage_model." + name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def _as_convolution(name: str, tensor: Any) -> Any:
    """Return a matrix of the autoencoder's attention as the convolution that it was."""
    return tensor[:, :, None, None] if "attentions" in name and tensor.ndim == 2 else tensor


_CLIP = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
_CLIP |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def _open_clip(weights: Mapping[str, Any], stem: str) -> dict[str, Any]:
    """Rename a text encoder's weights as OpenCLIP has them, its queries, keys and values in one matrix."""
    import torch

    own = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    found = {
        "token_embedding.weight": own["embeddings.token_embedding.weight"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "ln_final.weight": own["final_layer_norm.weight"],
        "ln_final.bias": own["final_layer_norm.bias"],
    }
    if "text_projection.weight" in own:
        found["text_projection"] = own["text_projection.weight"].T
    layers = {name.split(".")[2] for name in own if name.startswith("encoder.layers.")}
    for layer, kind in product(layers, ("weight", "bias")):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        qkv = [own[f"{old}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
        found[f"{new}.attn.in_proj_{kind}"] = torch.cat(qkv)
        found |= {f"{new}.{theirs}.{kind}": own[f"{old}.{ours}.{kind}"] for ours, theirs in _CLIP.items()}
    return {f"{stem}.{name}": tensor for name, tensor in found.items()}


def write_tiny_flux(folder: Path, *, takes_guidance: bool = True) -> Path:
    """Write a FLUX.1 pipeline of random weights (seed 0), one token for each 4 x 4 pixels; the same bits each time."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import CLIPTokenizer

    write_tiny_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer_2 = t5_tokenizer(512)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _tiny_flux_networks(len(tokenizer), len(tokenizer_2), takes_guidance)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipeline = FluxPipeline(**networks, tokenizer=tokenizer, tokenizer_2=tokenizer_2, scheduler=scheduler)
    pipeline.save_pretrained(folder)
    return folder


def write_flux_file(folder: Path, path: Path, stem: str = "", dtype: Any = None) -> Path:
    """Write a FLUX.1 folder's transformer into one file, under the names that its authors gave it.

    Args:
        folder: from :func:`write_tiny_flux`.
        path: the file to write.
        stem: what the names begin with.
        dtype: of the weights; None: as they are.
    """
    import torch
    from safetensors.torch import load_file, save_file

    own = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    tensors: dict[str, Any] = {}
    for native, names in _flux_names(own).items():
        for kind in ("weight", "bias"):
            if f"{names[0]}.{kind}" in own:
                ending = "scale" if "_norm" in native else kind
                tensors[f"{native}.{ending}"] = torch.cat([own.pop(f"{name}.{kind}") for name in names])
    for kind in ("weight", "bias"):
        scale, shift = own.pop(f"norm_out.linear.{kind}").chunk(2)
        tensors[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    assert not own, "each weight has its place"
    tensors = {f"{stem}{name}": tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    save_file(tensors, path)
    return path


_FLUX_OUTER = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
_FLUX_OUTER |= {
    f"{native}_in.{place}_layer": f"time_text_embed.{own}_embedder.linear_{number}"
    for native, own in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
    for number, place in ((1, "in"), (2, "out"))
}


def _flux_names(weights: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return which of diffusers' layers each native layer consists of."""
    found = {native: [own] for native, own in _FLUX_OUTER.items() if f"{own}.weight" in weights}
    for number in range(sum(name.endswith("add_q_proj.weight") for name in weights)):
        native, own = f"double_blocks.{number}", f"transformer_blocks.{number}"
        for side, qkv, out, mlp, norm, added in (
            ("img", "to_", "to_out.0", "ff", "norm1", ""),
            ("txt", "add_", "to_add_out", "ff_context", "norm1_context", "added_"),
        ):
            end = "_proj" if side == "txt" else ""
            found[f"{native}.{side}_attn.qkv"] = [f"{own}.attn.{qkv}{letter}{end}" for letter in "qkv"]
            found[f"{native}.{side}_attn.proj"] = [f"{own}.attn.{out}"]
            found[f"{native}.{side}_mod.lin"] = [f"{own}.{norm}.linear"]
            found[f"{native}.{side}_mlp.0"] = [f"{own}.{mlp}.net.0.proj"]
            found[f"{native}.{side}_mlp.2"] = [f"{own}.{mlp}.net.2"]
            for name in ("query", "key"):
                found[f"{native}.{side}_attn.norm.{name}_norm"] = [f"{own}.attn.norm_{added}{name[0]}"]
    for number in range(sum(name.endswith("proj_mlp.weight") for name in weights)):
        native, own = f"single_blocks.{number}", f"single_transformer_blocks.{number}"
        found[f"{native}.linear1"] = [*(f"{own}.attn.to_{letter}" for letter in "qkv"), f"{own}.proj_mlp"]
        found[f"{native}.linear2"] = [f"{own}.proj_out"]
        found[f"{native}.modulation.lin"] = [f"{own}.norm.linear"]
        for name in ("query", "key"):
            found[f"{native}.norm.{name}_norm"] = [f"{own}.attn.norm_{name[0]}"]
    return found


def _tiny_flux_networks(clip_tokens: int, t5_tokens: int, takes_guidance: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    ids = {"bos_token_id": clip_tokens - 2, "eos_token_id": clip_tokens - 1, "pad_token_id": clip_tokens - 1}
    clip: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, **ids}
    t5: dict[str, Any] = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return {
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(vocab_size=clip_tokens, num_attention_heads=4, max_position_embeddings=16, **clip)
        ),
        "text_encoder_2": T5EncoderModel(T5Config(vocab_size=t5_tokens, feed_forward_proj="gated-gelu", **t5)),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "transformer": FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=32,
            guidance_embeds=takes_guidance,
            axes_dims_rope=(4, 6, 6),
        ),
    }

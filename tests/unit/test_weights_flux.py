"""FLUX adapters in every format and back: kohya's has one layer where diffusers has several."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tests.errors import raises_code
from veneer.adapter.layers import layers_of
from veneer.adapter.lokr import LokrFactors
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights
from veneer.family.key_names.flux import flux_names, linear1_qkv_names, onetrainer_names, x_labs_names
from veneer.family.key_names.network import names_in
from veneer.weights.file import load
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.protocol import BaseNames

KINDS = {"kohya": flux_names, "x-labs": x_labs_names, "onetrainer": onetrainer_names, "linear1_qkv": linear1_qkv_names}


def networks() -> dict[str, nn.Module]:
    sizes: dict[str, Any] = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    inner = {"joint_attention_dim": 24, "pooled_projection_dim": 16, "axes_dims_rope": (2, 2, 4)}
    clip = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    t5 = T5Config(d_model=24, d_kv=6, d_ff=48, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu")
    return {
        "transformer": FluxTransformer2DModel(in_channels=16, guidance_embeds=True, **sizes, **inner),
        "text_encoder": CLIPTextModel(clip),
        "text_encoder_2": T5EncoderModel(t5),
    }


@pytest.fixture(scope="module")
def base() -> BaseNames:
    own = networks()
    names = {kind: names_in("transformer", own["transformer"], names) for kind, names in KINDS.items()}
    t5 = [path for path in layers_of(own) if path.startswith("text_encoder_2.")]
    names["kohya"] |= {path: path.replace("text_encoder_2", "text_encoder_3", 1) for path in t5}
    return BaseNames(own, names)


def read(tensors: dict[str, Tensor], base: BaseNames) -> AdapterWeights:
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder, "x.safetensors"))
        return load(Path(folder, "x.safetensors"), base.networks, base.key_names).weights


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_layers_of_any_ranks_come_back_from_kohya_s_format_to_the_bit(base: BaseNames, data: st.DataObject) -> None:
    """Where strengths are equal; of what is one layer there, parts may be missing, and each has a rank of its own."""
    layers = layers_of(base.networks)
    chosen = data.draw(st.lists(st.sampled_from(sorted(layers)), min_size=1, max_size=12, unique=True))
    weights: dict[str, LoraFactors] = {}
    for path in chosen:
        outputs, inputs = layers[path].weight.shape
        rank = data.draw(st.integers(1, 5))
        weights[path] = LoraFactors(torch.randn(rank, inputs), torch.randn(outputs, rank), rank / 2)
    (file,) = KOHYA.write(weights, base)
    back = read(dict(file.tensors), base)
    assert back.keys() == weights.keys()
    for path, own in weights.items():
        state = back[path].state_dict()
        assert torch.equal(state["down"], own.down) and torch.equal(state["up"], own.up), path
        assert back[path].hyperparameters["alpha"] == own.alpha, path


def test_what_kohya_s_trainer_shares_goes_back_as_one(base: BaseNames) -> None:
    name = "lora_unet_single_blocks_1_linear1"
    tensors = {f"{name}.lora_down.weight": torch.randn(4, 16), f"{name}.lora_up.weight": torch.randn(112, 4)}
    tensors[f"{name}.alpha"] = torch.tensor(1.0)
    weights = read(tensors, base)
    assert len(weights) == 4
    (file,) = KOHYA.write(weights, base)
    assert file.tensors.keys() == tensors.keys()
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in tensors.items())


def test_t5_is_the_third_text_encoder_in_kohya_s_files(base: BaseNames) -> None:
    path = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
    (file,) = KOHYA.write({path: LoraFactors(torch.randn(2, 24), torch.randn(24, 2), 2.0)}, base)
    assert {name.partition(".")[0] for name in file.tensors} == {"lora_te3_encoder_block_0_layer_0_SelfAttention_q"}


@pytest.mark.parametrize("root", ["transformer.", "diffusion_model.", "lycoris_", ""])
def test_lokr_of_ai_toolkit_and_simpletuner(root: str, base: BaseNames) -> None:
    path = "transformer_blocks.0.attn.to_q"
    name = f"{root}{path.replace('.', '_') if root.endswith('_') else path}"
    parts = {"lokr_w1": torch.randn(4, 4), "lokr_w2": torch.randn(4, 4)}
    tensors = {f"{name}.{part}": tensor for part, tensor in parts.items()} | {f"{name}.alpha": torch.tensor(9999.0)}
    (own,) = read(tensors, base).values()
    assert isinstance(own, LokrFactors)
    torch.testing.assert_close(own.delta_weight(torch.zeros(16, 16)), torch.kron(parts["lokr_w1"], parts["lokr_w2"]))


def test_lokr_of_a_fused_layer_is_cut_where_it_can_be_and_else_refused_by_name(base: BaseNames) -> None:
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    whole = {f"{name}.lokr_w1": torch.randn(6, 4), f"{name}.lokr_w2": torch.randn(8, 4)}
    weights = read(whole, base)
    deltas = [
        weights[f"transformer.transformer_blocks.0.attn.to_{part}"].delta_weight(torch.zeros(16, 16)) for part in "qkv"
    ]
    torch.testing.assert_close(torch.cat(deltas), torch.kron(*whole.values()))
    with raises_code("adapter.cannot_cut", "LoKr"):
        read({f"{name}.lokr_w1": torch.randn(4, 4), f"{name}.lokr_w2": torch.randn(12, 4)}, base)


WRAPPERS = ["", "base_model.model.", "module.", "_orig_mod.", "model.", "pipe."]
NETWORKS = ["transformer.", "diffusion_model.", "model.diffusion_model.", "dit.", "lora_unet.", "lora_transformer.", ""]
ROOTS = ["lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_", "lora_unet_model_diffusion_model_"]
LAYERS = {
    "double_blocks.1.txt_attn.qkv": ["transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.add_k_proj",
                                     "transformer_blocks.1.attn.add_v_proj"],
    "single_blocks.0.linear1_qkv": [f"single_transformer_blocks.0.attn.to_{part}" for part in "qkv"],
    "double_blocks.0.img_attn.qkv.2": ["transformer_blocks.0.attn.to_v"],
    "transformer_blocks.0.ff.net.0.proj": ["transformer_blocks.0.ff.net.0.proj"],
}  # fmt: skip
ENDINGS = [("lora_A.weight", "lora_B.weight"), ("lora_A.default.weight", "lora_B.default.weight"), ("lora_A", "lora_B"),
           ("lora_down.weight", "lora_up.weight"), ("lora.down.weight", "lora.up.weight")]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*(a + b for a in WRAPPERS for b in NETWORKS), *ROOTS]),
    st.sampled_from(sorted(LAYERS)),
    st.sampled_from(ENDINGS),
)
def test_names_of_any_composition_mean_the_same_layers(
    base: BaseNames, before: str, layer: str, endings: tuple[str, str]
) -> None:
    paths = [f"transformer.{path}" for path in LAYERS[layer]]
    layers = layers_of(base.networks)
    outputs = sum(layers[path].weight.shape[0] for path in paths)
    name = f"{before}{layer.replace('.', '_') if before in ROOTS else layer}"
    own = (torch.randn(2, layers[paths[0]].weight.shape[1]), torch.randn(outputs, 2))
    tensors = {f"{name}.{ending}": tensor for ending, tensor in zip(endings, own, strict=True)}
    weights = read({**tensors, f"{name}.alpha": torch.tensor(2.0)}, base)
    assert set(weights) == set(paths)
    assert torch.equal(torch.cat([weights[path].state_dict()["up"] for path in paths]), own[1])

"""Adapter files cut to a lower rank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from tests.errors import raises_code
from tests.resizing import save_run_of_rank_4
from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.resize import Criterion, resize
from veneer.cli.main import main
from veneer.family.registry import load_family
from veneer.verbs.resize import resize_adapter
from veneer.weights.file import FILE_NAME, AdapterFile, info, load, save


@pytest.fixture(scope="module")
def run(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_of_rank_4(tiny_base, tiny_pictures, tmp_path_factory.mktemp("run") / "shapes")


def test_a_cut_file_does_nearly_the_same(run: Path, tmp_path: Path) -> None:
    out = resize_adapter(run, 2, tmp_path / "two.safetensors").path
    whole, cut = load(run), load(out)
    assert info(out).hyperparameters == {"rank": (2,), "alpha": (2.0,)}
    for name, each in whole.weights.items():
        torch.testing.assert_close(delta_weight(cut.weights[name]), delta_weight(each), rtol=1e-3, atol=1e-5)
    (told,) = json.loads(cut.metadata["veneer.history"])
    source = {"name": FILE_NAME, "sha256": info(run).sha256}
    assert told == {"operation": "resize", "sources": [source], "rank": 2}
    assert whole.metadata.items() <= cut.metadata.items()


def test_the_new_file_lies_beside_the_old_and_replaces_nothing(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / FILE_NAME, tmp_path / "style.safetensors")
    out = resize_adapter(tmp_path / "style.safetensors", 1).path
    assert out == tmp_path / "style-rank1.safetensors" and info(out).hyperparameters["rank"] == (1,)
    with raises_code("output.exists") as caught:
        resize_adapter(tmp_path / "style.safetensors", 1)
    caught.match("is there already")
    with raises_code("adapter.rank_not_lower"):
        resize_adapter(tmp_path / "style.safetensors", 4)


def test_kohyas_layout_needs_the_base(run: Path, tiny_base: Path, tmp_path: Path) -> None:

    tensors = {}
    for name, each in load(run).weights.items():
        key = "lora_unet_" + name.removeprefix("unet.").replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": each.down.contiguous(), f"{key}.lora_up.weight": each.up.contiguous()}
        tensors[f"{key}.alpha"] = torch.tensor(each.alpha)
    save_file(tensors, tmp_path / "kohya.safetensors")
    plain = tmp_path / "diffusers.safetensors"
    out = resize_adapter(tmp_path / "kohya.safetensors", 2, plain, base=str(tiny_base), to="diffusers").path
    ours = load(resize_adapter(run, 2, tmp_path / "ours.safetensors").path).weights
    found = load(out).weights
    assert set(found) == set(ours)
    assert all(np.allclose(found[name].up, ours[name].up) for name in ours)
    same = resize_adapter(tmp_path / "kohya.safetensors", 2, base=str(tiny_base)).path
    assert same == tmp_path / "kohya-rank2.safetensors" and info(same).format == "kohya"
    found = load(same, load_family(str(tiny_base)).networks).weights
    for name, layer in ours.items():
        torch.testing.assert_close(delta_weight(found[name]), delta_weight(layer))


def test_each_layer_may_get_a_rank_of_its_own(run: Path, tmp_path: Path) -> None:
    result = resize_adapter(run, criterion=Criterion("energy", 0.8), out=tmp_path / "small.safetensors")
    *kinds, whole = result.kinds
    weights = load(result.path).weights
    assert whole.kind == "all" and whole.layers == len(weights) == sum(kind.layers for kind in kinds)
    assert [kind.kind for kind in kinds] == [
        f"attn{n}.{name}" for n in (1, 2) for name in ("to_k", "to_out.0", "to_q", "to_v")
    ]
    assert whole.ranks_before == (4, 4) and whole.ranks_after[1] <= 2 and whole.retained**2 >= 0.8
    assert whole.parameters_after == sum(layer.parameter_count for layer in weights.values()) < whole.parameters_before
    assert (result.bytes_before, result.bytes_after) == (info(run).size_bytes, info(result.path).size_bytes)
    (told,) = json.loads(info(result.path).metadata["veneer.history"])
    assert told["keeping"] == "energy 0.8"


@pytest.fixture
def uneven(run: Path, tmp_path: Path) -> Path:
    """An adapter of which half the layers have another rank, so that a cut leaves layers of several ranks."""
    weights = dict(load(run).weights)
    for path in list(weights)[::2]:
        weights[path] = resize({path: weights[path]}, 1)[path]
    save(AdapterFile(weights), tmp_path / "uneven.safetensors")
    return tmp_path / "uneven.safetensors"


def test_ranks_of_layers_are_read_by_diffusers(uneven: Path, tiny_base: Path) -> None:
    """It must find each by ``rank_pattern``, and the same delta W."""
    cut_file = resize_adapter(uneven, criterion=Criterion("energy", 0.9)).path
    cut_weights = load(cut_file).weights
    assert len({each.hyperparameters["rank"] for each in cut_weights.values()}) > 1
    family = load_family(str(tiny_base))
    pipeline: Any = family.pipeline()
    pipeline.load_lora_weights(str(cut_file.parent), weight_name=cut_file.name)
    _check_modules(family.networks["unet"], "default_0", cut_weights)


def test_ranks_of_layers_are_read_by_peft(uneven: Path, tiny_base: Path, tmp_path: Path) -> None:
    folder = resize_adapter(uneven, criterion=Criterion("energy", 0.9), base=str(tiny_base), to="peft").path
    assert folder == tmp_path / "uneven-energy0.9"
    cut_weights = load(resize_adapter(uneven, criterion=Criterion("energy", 0.9)).path).weights
    model: Any = PeftModel.from_pretrained(load_family(str(tiny_base)).networks["unet"], str(folder))
    _check_modules(model.base_model.model, "default", cut_weights)


def _check_modules(network: Any, name: str, weights: AdapterWeights) -> None:
    modules = dict(network.named_modules())
    for path, layer in weights.items():
        module: Any = modules[path.removeprefix("unet.")]
        assert module.r[name] == layer.hyperparameters["rank"]
        torch.testing.assert_close(module.get_delta_weight(name), delta_weight(layer), rtol=1e-5, atol=1e-7)


def test_what_cannot_be_cut_is_refused(run: Path, tmp_path: Path) -> None:
    flat = {"unet.x.to_q": LoraFactors(torch.eye(4, 8), torch.eye(6, 4), 4.0)}
    save(AdapterFile(flat), tmp_path / "flat.safetensors")
    with raises_code("adapter.rank_not_lower", "no layer can be cut and keep energy 0.99"):
        resize_adapter(tmp_path / "flat.safetensors", criterion=Criterion("energy", 0.99))
    with raises_code("adapter.bad_rank"):
        resize_adapter(run)
    assert [path.name for path in tmp_path.iterdir()] == ["flat.safetensors"]


def test_the_command_takes_kohyas_names(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adapter", "resize", str(run), "-o"]
    assert main([*words, str(tmp_path / "a"), "--energy", "0.81", "--max-rank", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "a") and "norm kept" in printed.err and "bytes before" in printed.err
    assert main([*words, str(tmp_path / "b"), "--dynamic", "sv_fro=0.9", "--max-rank", "2"]) == 0
    a, b = (load(tmp_path / name).weights for name in "ab")
    assert all(torch.equal(a[path].state_dict()["up"], b[path].state_dict()["up"]) for path in a)
    capsys.readouterr()
    for wrong, said in (
        (["--energy", "0.9", "--frobenius", "0.1"], "one of --energy, --frobenius and --dynamic is enough"),
        (["--energy", "0.9", "--energy", "0.8"], "--study with several"),
        (["--energy", "0.9", "--rank", "2"], "use --max-rank"),
        (["--rank", "2", "--max-rank", "2"], "means something only with --energy"),
        (["--dynamic", "sv_fro"], "is no number"),
        (["--dynamic", "sv=0.5"], "use energy, frobenius, sv_fro"),
        (["--study", "--frobenius", "0.1"], "means nothing with --study"),
    ):
        assert main([*words, str(tmp_path / "c"), *wrong]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "c").exists()

"""What ships with the project: a base that plain diffusers loads, and the demo pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import veneer.base
from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.preflight import survey

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(veneer.base.path())
    loaded.set_progress_bar_config(disable=True)
    return loaded


def figures() -> dict[str, float]:
    found: dict[str, float] = json.loads((veneer.base.path() / "quality.json").read_text())
    return found


def test_plain_diffusers_loads_it(pipeline: Any) -> None:
    kinds = {name: type(getattr(pipeline, name)).__name__ for name in ("vae", "unet", "text_encoder")}
    assert kinds == {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}


def test_every_level_has_self_and_cross_attention(pipeline: Any) -> None:
    for block in (*pipeline.unet.down_blocks, pipeline.unet.mid_block, *pipeline.unet.up_blocks):
        names = {name.rpartition(".")[2] for name, _ in block.named_modules()}
        assert {"attn1", "attn2"} <= names


def test_it_is_small_and_float16() -> None:
    files = [path for path in veneer.base.path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60 * MEGABYTE
    from safetensors import safe_open

    for path in (path for path in files if path.suffix == ".safetensors"):
        with safe_open(path, "pt") as tensors:
            kinds = {tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118 it is no dict
        assert kinds <= {torch.float16, torch.int64}
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt"}]


@pytest.mark.parametrize("text", ["a turtle emoji", "Zxqv-7 \N{SNOWMAN} \u6f22\u5b57", "", "caf\u00e9 na\u00efve"])
def test_the_tokenizer_takes_any_text(pipeline: Any, text: str) -> None:
    ids = pipeline.tokenizer(text).input_ids
    body = ids[1:-1]
    assert ids[0] == pipeline.tokenizer.bos_token_id and ids[-1] == pipeline.tokenizer.eos_token_id
    assert pipeline.tokenizer.eos_token_id not in body  # which also stands for what is unknown
    spoken = "".join(pipeline.tokenizer.decode(body).split())
    assert spoken == "".join(text.lower().split())


def test_it_paints_a_known_thing_in_its_colour(pipeline: Any) -> None:
    seed = torch.Generator().manual_seed(0)
    picture = pipeline("a red apple emoji", num_inference_steps=10, guidance_scale=4.0, generator=seed).images[0]
    assert picture.size == (64, 64)
    red, green, blue = (channel.resize((1, 1), Image.Resampling.BOX, (16, 16, 48, 48)) for channel in picture.split())
    middle = [int(channel.getpixel((0, 0))) for channel in (red, green, blue)]
    assert middle[0] > 150 and middle[0] > middle[1] + 40 and middle[0] > middle[2] + 40


def test_its_figures_meet_what_it_is_for() -> None:
    found = figures()
    assert found["psnr_noto_held_out"] >= 25 and found["psnr_openmoji"] >= 22
    assert found["concepts"] >= 400
    assert found["retrieval_top1"] >= 0.9 and found["retrieval_top5"] >= 0.97


@pytest.mark.parametrize("name", ["README.md", "quality.json", "concepts.txt", "sheet.png"])
def test_its_card_and_evidence_are_beside_it(name: str) -> None:
    assert (veneer.base.path() / name).is_file()


def test_the_demo_is_two_disjoint_folders_of_known_things() -> None:
    demo = veneer.base.demo_path()
    data = DataConfig(sources=(SourceConfig(path=demo / "train"),), held_out=demo / "held_out")
    pictures = survey(data)
    assert (len(pictures.train.samples), len(pictures.held_out.samples)) == (160, 64)
    assert not pictures.train.rejected and not pictures.held_out.rejected
    shown = {caption for sample in pictures.train.samples for caption in sample.captions}
    unseen = {caption for sample in pictures.held_out.samples for caption in sample.captions}
    assert len(shown) == 160 and len(unseen) == 64 and not shown & unseen
    known = set((veneer.base.path() / "concepts.txt").read_text().splitlines())
    assert {_thing(caption) for caption in shown | unseen} <= known


def _thing(caption: str) -> str:
    """``an ant emoji`` -> ``ant``."""
    return caption.partition(" ")[2].removesuffix(" emoji")


def test_the_demo_has_its_licence_beside_it() -> None:
    assert "CC BY-SA 4.0" in (veneer.base.demo_path() / "LICENSE.txt").read_text()
    assert Path(veneer.base.demo_path() / "subject" / "metadata.jsonl").read_text().count("\n") == 5

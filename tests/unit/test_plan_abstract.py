"""Published architectures against the number of parameters that their published weights have."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from veneer.errors import UserError
from veneer.family.published import PUBLISHED
from veneer.plan.abstract import abstract_base, abstract_published
from veneer.plan.tracer import MemoryTracer

UNET, CLIP_L = "unet", 123_060_480
PARAMETERS = {
    "sd15": {UNET: 859_520_964, "text_encoder": CLIP_L},
    "sd21": {UNET: 865_910_724, "text_encoder": 340_387_840},
    "sdxl": {UNET: 2_567_463_684, "text_encoder": CLIP_L, "text_encoder_2": 694_659_840},
    "flux-dev": {"transformer": 11_901_408_320, "text_encoder": CLIP_L, "text_encoder_2": 4_762_310_656},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_architecture_has_the_parameters_of_its_weights(name: str) -> None:
    tracer = MemoryTracer(torch.device("cpu"))
    family = abstract_published(name, tracer, torch.bfloat16)
    found = {prefix: sum(p.numel() for p in network.parameters()) for prefix, network in family.networks.items()}
    assert found == PARAMETERS[name]
    assert {p.dtype for p in family.networks[family.denoiser].parameters()} == {
        torch.float32 if PUBLISHED[name].is_trainable else torch.bfloat16
    }


def test_its_tensors_have_no_data() -> None:
    tracer = MemoryTracer(torch.device("cpu"))
    family = abstract_published("sd15", tracer, torch.float32)
    kinds = Counter(type(p).__name__ for network in family.networks.values() for p in network.parameters())
    assert kinds.keys() == {"FakeTensor"}
    assert tracer.held == tracer.weight_bytes == pytest.approx(4 * (859_520_964 + CLIP_L + 83_653_863), rel=1e-5)


def test_what_is_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match="nowhere"):
        abstract_base("nowhere", MemoryTracer(torch.device("cpu")), torch.float32)

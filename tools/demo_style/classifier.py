"""A style classifier: whether a picture is nearer to OpenMoji's drawings or to Noto's, fitted on real drawings only.

Half of what it is fitted on has gone through the base's autoencoder, so that softness, which every generated picture
has, tells it nothing; sizes and places are varied, so that OpenMoji's wider margins tell it nothing either.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "classifier.safetensors"
STEPS, BATCH, RATE = 600, 64, 3e-3


def make() -> nn.Sequential:
    """Return a network from pixels in [-1, 1], (N, 3, 64, 64), to OpenMoji's logit (N, 1): local patterns, averaged."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 24), (24, 32)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1))


def fit(noto: Tensor, openmoji: Tensor) -> nn.Sequential:
    """Fit on two stacks of pixels (N, 3, 64, 64) in [-1, 1]; the same numbers give the same classifier."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    random = torch.Generator().manual_seed(0)
    pictures = torch.cat([noto, openmoji])
    is_openmoji = torch.cat([torch.zeros(len(noto)), torch.ones(len(openmoji))])
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        chosen = torch.randint(len(pictures), (BATCH,), generator=random)
        varied = torch.stack([_varied(pictures[i], random) for i in chosen])
        loss = nn.functional.binary_cross_entropy_with_logits(model(varied)[:, 0], is_openmoji[chosen])
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _varied(picture: Tensor, random: torch.Generator) -> Tensor:
    """Return the picture at 60 to 100 % of its size, somewhere on white, maybe mirrored."""
    size, top, left, mirror = torch.rand(4, generator=random).tolist()
    side = picture.shape[-1]
    small = int(side * (0.6 + 0.4 * size))
    scaled = nn.functional.interpolate(picture[None], size=(small, small), mode="area")[0]
    canvas = torch.ones_like(picture)
    y, x = int(top * (side - small + 1)), int(left * (side - small + 1))
    canvas[:, y : y + small, x : x + small] = scaled.flip(-1) if mirror < 0.5 else scaled
    return canvas


@torch.no_grad()
def is_openmoji(model: nn.Sequential, pixels: Tensor) -> Tensor:
    """Check which pictures (N, 3, 64, 64) are nearer to OpenMoji's drawings, bool (N,)."""
    logits: Tensor = model(pixels)[:, 0]
    return logits > 0


def save(model: nn.Sequential, path: Path = WEIGHTS) -> None:
    """Write the weights."""
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


def load(path: Path = WEIGHTS) -> nn.Sequential:
    """Load the committed classifier."""
    model = make()
    model.load_state_dict(load_file(path))
    return model.eval()

"""Drawings as they are seen beside themselves: moved, turned and tinted, on coloured grounds, two side by side.

All of it is done on layers whose colours are multiplied by their opacity, at twice the size, and averaged down: a
drawing that is not varied is then what :func:`drawings.draw` makes of it, and no rim is left around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import concepts
from .concepts import Concept

__all__ = ["Scenes", "VariedRows", "of_autoencoder", "paint", "places", "tints", "varied_rows"]

_LUMA = (0.299, 0.587, 0.114)  # of BT.601
_AWAY = 10.0  # sides of a picture: a layer put there is not in it
_ON_COLOUR, _PAIR = 0.25, 0.25  # shares of rows
_PAIR_ON_COLOUR = 0.3


@dataclass(frozen=True)
class Scenes:
    """What pictures show: layers over a ground, the first lowest.

    Attributes:
        drawing_BL: which drawings.
        place_BL23: where: from coordinates of the picture in [-1, 1] to those of the drawing.
        tint_BL33: what colours are multiplied by.
        ground_B3: colour in [0, 1].
    """

    drawing_BL: Tensor
    place_BL23: Tensor
    tint_BL33: Tensor
    ground_B3: Tensor

    def part(self, chosen: slice, device: torch.device) -> Scenes:
        """Some of the scenes, on a device."""
        tensors = (self.drawing_BL, self.place_BL23, self.tint_BL33, self.ground_B3)
        return Scenes(*(tensor[chosen].to(device) for tensor in tensors))


def places(scale: Tensor, angle: Tensor, mirror: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Matrices (..., 2, 3) that put a drawing, scaled and turned by radians, at (x, y) of a picture from -1 to 1."""
    cosine, sine, sign = angle.cos() / scale, angle.sin() / scale, 1 - 2 * mirror.float()
    turned = torch.stack([sign * cosine, -sign * sine, sine, cosine], -1).unflatten(-1, (2, 2))
    return torch.cat([turned, -turned @ torch.stack([x, y], -1)[..., None]], -1)


def tints(saturation: Tensor, brightness: Tensor) -> Tensor:
    """Matrices (..., 3, 3) that change colours' saturation and brightness; at (1, 1) nothing."""
    own = torch.eye(3, device=saturation.device)
    grey = torch.tensor(_LUMA, device=saturation.device).expand(3, 3)
    mixed = saturation[..., None, None] * own + (1 - saturation[..., None, None]) * grey
    return brightness[..., None, None] * mixed


def paint(layers_NHWC: Tensor, scenes: Scenes) -> Tensor:
    """Paint scenes of drawings (N, 2 size, 2 size, 4), uint8: pictures (B, 3, size, size) in [-1, 1]."""
    count, depth = scenes.drawing_BL.shape
    layers = layers_NHWC[scenes.drawing_BL.flatten()].permute(0, 3, 1, 2).float() / 255
    grid = nn.functional.affine_grid(scenes.place_BL23.flatten(0, 1), list(layers.shape), align_corners=False)
    layers = nn.functional.grid_sample(layers, grid, align_corners=False)
    opacity, colours = layers[:, 3:], layers[:, :3].flatten(2)
    colours = (scenes.tint_BL33.flatten(0, 1) @ colours).unflatten(2, layers.shape[2:])
    colours = torch.minimum(colours.clamp(min=0), opacity)
    picture = scenes.ground_B3[:, :, None, None]
    opacity, colours = opacity.unflatten(0, (count, depth)), colours.unflatten(0, (count, depth))
    for place in range(depth):
        picture = colours[:, place] + (1 - opacity[:, place]) * picture
    return 2 * nn.functional.avg_pool2d(picture, 2) - 1


def of_autoencoder(layers_NHWC: Tensor, size: int, random: torch.Generator) -> Tensor:
    """A batch of the autoencoder: one varied drawing each; two of five on a colour, some with colours exchanged.

    Random numbers are those of the layers' device.
    """
    device = layers_NHWC.device
    chosen = torch.randint(len(layers_NHWC), (size, 1), generator=random, device=device)
    u = torch.rand((size, 10), generator=random, device=device)
    order = torch.rand((size, 3), generator=random, device=device).argsort(1)
    order = torch.where(u[:, 5:6] < 0.3, order, torch.arange(3, device=device))
    ground = torch.where(u[:, 6:7] < 0.4, u[:, 7:10], torch.ones(3, device=device))
    scene = Scenes(
        drawing_BL=chosen,
        place_BL23=_varied_places(u[:, :5], scale=(0.85, 1.1), angle=0.2, shift=0.12)[:, None],
        tint_BL33=nn.functional.one_hot(order, 3).float()[:, None],
        ground_B3=ground,
    )
    return paint(layers_NHWC, scene)


def _varied_places(u_B5: Tensor, scale: tuple[float, float], angle: float, shift: float) -> Tensor:
    """Places from uniform numbers: scale within bounds, angle, mirrored or not, x and y up to so much either way."""
    low, high = scale
    x, y = (shift * (2 * u - 1) for u in (u_B5[:, 3], u_B5[:, 4]))
    return places(low + (high - low) * u_B5[:, 0], angle * (2 * u_B5[:, 1] - 1), u_B5[:, 2] < 0.5, x, y)


@dataclass(frozen=True)
class VariedRows:
    """Pictures that are made of drawings, and what is said of each.

    Attributes:
        scenes: the pictures.
        captions: of each, weighted.
    """

    scenes: Scenes
    captions: list[list[tuple[float, str]]]


def varied_rows(
    shown: Sequence[tuple[Concept, str]], weights: Tensor, suffixes: dict[str, str], count: int, seed: int
) -> VariedRows:
    """Choose pictures: half of them one thing on white, a quarter on a colour, a quarter two things side by side.

    Args:
        shown: concepts by style; those of a style follow one another.
        weights: how often each is chosen.
        suffixes: what a caption says of a style.
        count: of pictures.
        seed: of all that is chosen; drawn on the CPU, so that it is the same on every device.
    """
    random = torch.Generator().manual_seed(seed)
    first = torch.multinomial(weights, count, replacement=True, generator=random)
    u = torch.rand((count, 16), generator=random, dtype=torch.float64).float()
    second = _another_of_the_style(shown, first, u[:, 0])
    kind = u[:, 1]
    is_pair = kind >= 1 - _PAIR
    is_on_colour = torch.where(is_pair, u[:, 2] < _PAIR_ON_COLOUR, kind >= 1 - _PAIR - _ON_COLOUR)
    colour = (u[:, 3] * len(concepts.GROUNDS)).long()
    scenes = Scenes(
        drawing_BL=torch.stack([first, second], 1),
        place_BL23=torch.where(is_pair[:, None, None, None], _side_by_side(u[:, 4:10]), _alone(u[:, 4:9])),
        tint_BL33=tints(0.85 + 0.3 * u[:, 10:12], 0.9 + 0.15 * u[:, 12:14]),
        ground_B3=torch.where(is_on_colour[:, None], _ground_colours()[colour], torch.ones(3)),
    )
    is_on_colour &= ~_is_black(shown)[first]
    names = list(concepts.GROUNDS)
    grounds = [names[int(c)] if on else None for c, on in zip(colour, is_on_colour, strict=True)]
    rows = zip(first.tolist(), second.tolist(), is_pair.tolist(), grounds, strict=True)
    captions = [_captions(shown, suffixes, [a, b] if pair else [a], ground) for a, b, pair, ground in rows]
    return VariedRows(scenes, captions)


def _is_black(shown: Sequence[tuple[Concept, str]]) -> Tensor:
    """Whether a drawing is of ink alone, which a dark ground would swallow; (N,)."""
    return torch.tensor([style in concepts.BLACK for _, style in shown])


def _another_of_the_style(shown: Sequence[tuple[Concept, str]], first: Tensor, u: Tensor) -> Tensor:
    """Another drawing of the same style as each; the same where the style has no other."""
    styles = [style for _, style in shown]
    begin = torch.tensor([styles.index(style) for style in styles])[first]
    count = torch.tensor([styles.count(style) for style in dict.fromkeys(styles)])
    number = torch.tensor([list(dict.fromkeys(styles)).index(style) for style in styles])[first]
    of_style = count[number]
    further = 1 + (u * (of_style - 1)).long()
    return begin + (first - begin + further) % of_style


def _alone(u_B5: Tensor) -> Tensor:
    own = _varied_places(u_B5, scale=(0.8, 1.0), angle=0.12, shift=0.08)
    away = places(*(torch.full((len(u_B5),), value) for value in (1.0, 0.0, 0.0, _AWAY, _AWAY)))
    return torch.stack([own, away], 1)


def _side_by_side(u_B6: Tensor) -> Tensor:
    """Two places of half a picture each, left and right, a little up or down."""
    sides = [
        places(
            0.46 + 0.04 * u[:, 0],
            0.1 * (2 * u[:, 1] - 1),
            u[:, 1] < 0.5,
            torch.full_like(u[:, 0], x),
            0.6 * (u[:, 2] - 0.5),
        )
        for x, u in ((-0.5, u_B6[:, :3]), (0.5, u_B6[:, 3:]))
    ]
    return torch.stack(sides, 1)


def _ground_colours() -> Tensor:
    return torch.tensor(list(concepts.GROUNDS.values())) / 255


def _captions(
    shown: Sequence[tuple[Concept, str]], suffixes: dict[str, str], chosen: list[int], ground: str | None
) -> list[tuple[float, str]]:
    on = "" if ground is None else f" on {concepts.article(ground)} {ground} background"
    return concepts.captions([shown[place][0] for place in chosen], on + suffixes[shown[chosen[0]][1]])


def mirrored(scenes: Scenes) -> Scenes:
    """The same scenes, each from the other side."""
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    return Scenes(scenes.drawing_BL, scenes.place_BL23 @ flip, scenes.tint_BL33, scenes.ground_B3)


def as_drawn(drawings: Tensor) -> Scenes:
    """Scenes of one drawing each, as it is, on white."""
    count = len(drawings)
    one, none = torch.ones(count, 1), torch.zeros(count, 1)
    return Scenes(drawings[:, None], places(one, none, none, none, none), tints(one, one), torch.ones(count, 3))

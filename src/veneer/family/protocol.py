"""What a family of diffusion models offers; everything that differs between models lives behind this door.

Outside a family, time is a number t from 0 (clean) to 1 (noise), a text is a ``Conditioning`` that nobody looks into,
and latents have any rank: the first axis is the batch, the rest is the family's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from veneer.config.adapter_config import TargetPreset
from veneer.config.objective_config import Density, TimestepShift
from veneer.data.transform import Geometry
from veneer.family.unread import Unread
from veneer.weights.formats.protocol import KeyNames
from veneer.weights.metadata import BaseLabels

__all__ = [
    "NO_REFERENCES",
    "Conditioning",
    "Family",
    "LatentDistribution",
    "NoiseProcess",
    "Prediction",
    "device_of",
]

_REFERENCE = "reference."

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a denoiser answers: the noise, v (Salimans and Ho 2022), the clean latent, or noise less clean latent."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a denoiser is told beside the noisy latents: named tensors whose first axis is the batch.

    What they mean is the family's business: hidden states of a text, a pooled vector, sizes. Texts of different lengths
    are joined by zeros behind the shorter ones, so a family whose texts have different lengths keeps a mask among the
    tensors: 1 where a token is.

    Attributes:
        tensors: by name, each (B, ...); also the form in which they are stored.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Join the rows of several, in order.

        Raises:
            ValueError: they have different names, or differ in another axis than the second.
        """
        names = parts[0].tensors.keys()
        if any(part.tensors.keys() != names for part in parts):
            raise ValueError(f"conditionings with {[sorted(part.tensors) for part in parts]} cannot be joined")
        return cls({name: torch.cat(_as_long([part.tensors[name] for part in parts])) for name in names})

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.tensors.values())))

    @classmethod
    def of_references(cls, tensors: Sequence[Tensor]) -> Conditioning:
        """Return encoded references, each (B, ...), under the names that :attr:`references` finds them by."""
        return cls({f"{_REFERENCE}{number}": tensor for number, tensor in enumerate(tensors)})

    @property
    def references(self) -> tuple[Tensor, ...]:
        """The encoded references, each (B, ...), in order; empty where there are none."""
        count = sum(name.startswith(_REFERENCE) for name in self.tensors)
        return tuple(self.tensors[f"{_REFERENCE}{number}"] for number in range(count))

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor by its name; for the family alone."""
        return self.tensors[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def rows(self, index: slice | Sequence[int]) -> Conditioning:
        """Take some rows, in the order of ``index``."""
        where = index if isinstance(index, slice) else list(index)
        return Conditioning({name: tensor[where] for name, tensor in self.tensors.items()})

    def expand(self, count: int) -> Conditioning:
        """Repeat the only row ``count`` times, without a copy."""
        return Conditioning({name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    def joined_to(self, tensors: Mapping[str, Tensor]) -> Conditioning:
        """Add further tensors of as many rows."""
        return Conditioning({**self.tensors, **tensors})

    def to(self, device: torch.device | str) -> Conditioning:
        """Move all tensors to a device."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()})


def _as_long(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Fill the second axis of each with zeros up to the longest one's length."""
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return list(tensors)
    if len({(tensor.ndim, *tensor.shape[2:]) for tensor in tensors}) != 1:
        raise ValueError(f"tensors of shapes {[tuple(tensor.shape) for tensor in tensors]} cannot be joined")
    longest = max(tensor.shape[1] for tensor in tensors)
    fill = [torch.Size((len(t), longest - t.shape[1], *t.shape[2:])) for t in tensors]
    return [torch.cat([tensor, tensor.new_zeros(shape)], dim=1) for tensor, shape in zip(tensors, fill, strict=True)]


NO_REFERENCES = Conditioning({})
"""The encoded references of pictures that have none."""


class NoiseProcess(Protocol):
    """The way from clean latents to noise that a base was trained with: z_t = alpha_t x + sigma_t eps.

    Times t_B are float64 (B,) in [0, 1]; latents and noise are (B, ...). What is computed lies on the times' device.
    """

    @property
    def prediction(self) -> Prediction:
        """What the denoiser answers."""

    def coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t, each float32 (B,)."""

    def signal_share(self, t_B: Tensor) -> Tensor:
        """Return alpha_t^2 / (alpha_t^2 + sigma_t^2), float32 (B,): the signal-to-noise ratio where nothing is 1/0."""

    def snr(self, t_B: Tensor) -> Tensor:
        """Return the signal-to-noise ratio alpha_t^2 / sigma_t^2 (B,) (Kingma et al. 2021, eq. 2)."""

    def add_noise(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """Return z_t (B, ...)."""

    def target(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """Return what the denoiser should answer (B, ...)."""


@dataclass(frozen=True)
class LatentDistribution:
    """The autoencoder's posterior in the latents that the denoiser sees, i.e. scaled: mean and deviation, (B, ...)."""

    mean: Tensor
    std: Tensor


class Family(Protocol):
    """A base model: its networks and their conventions."""

    name: str
    networks: Mapping[str, nn.Module]
    """The networks that an adapter may change, by their prefix in adapter files: the denoiser, and those text encoders
    that programs read an adapter for."""
    denoiser: str
    """The denoiser's name among ``networks``; all others are text encoders."""
    text_encoders: tuple[str, ...]
    """The names of all text encoders, of those too that no adapter changes, and of networks that read what they say."""
    default_targets: Mapping[str, tuple[str, ...]]
    """Of each network, the layers that an adapter changes where a config names none."""
    default_blocks: Mapping[str, tuple[str, ...]]
    """Of networks whose adapters are confined to some blocks by default, these."""
    default_density: Density
    """The density that timesteps are drawn from where a config names none."""
    default_logit_mean: float
    """Mean of logit(t) where a logit-normal density is asked for without one."""
    default_logit_std: float
    """Its standard deviation, likewise."""
    resolution: int
    """Side of the square the base was trained on, in pixels."""
    multiple: int
    """Sides of pictures must be multiples of this many pixels."""
    frame_stride: int | None
    """A clip has one frame more than a multiple of this many; None: the base takes pictures only."""
    frame_rate: float | None
    """Frames a second of the clips that it was trained on; None: the base takes pictures only."""
    max_token_windows: int
    """How many windows of its text encoders' length a text may take at most."""
    token_windows: int
    """How many it takes, whatever its own length: 1, unless :meth:`use_token_windows` says more."""
    guides: tuple[str, ...]
    """The names of networks beside the denoiser that its pipeline guides by, or paints what else it paints. No step of
    training calls them: they are read when the pipeline is asked for, and leave memory with the parts that are
    offloaded."""
    on_demand: Mapping[str, nn.Module]
    """Text encoders and denoiser by name, if they are so large that a run has one or the other in memory: each is read
    when it is first called. Empty where a run has both."""
    trained_times: tuple[float, float]
    """The range of times in which its denoiser removes noise: all of them, unless another one has the rest."""
    guided_batch: bool
    """Whether the pipeline guides by one batch of all rows twice, without and with their texts; else it has none, or
    guides by two passes."""
    reference_counts: range
    """How many references, pictures that a text is to be applied to, it takes with a text: none, unless it edits."""
    usual_references: int
    """How many there are where nobody says it: one of a base that is made to edit; it may also paint from nothing."""
    text_reads_references: bool
    """Whether what a text encoder makes of a text depends on the references too."""

    folded_layers: tuple[str, ...]
    """Beginnings of the paths of layers, networks first, that get the tokens of each picture's text as rows."""

    def expand_targets(
        self, network: str, wanted: TargetPreset | None, blocks: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the layers' names and the blocks that a preset means, or the default, within some blocks.

        Args:
            network: a key of ``networks``.
            wanted: the preset; None: ``default_targets``.
            blocks: as of ``adapter.blocks``; none: all.

        Raises:
            UserError: a block is not there, or nothing in the blocks is meant.
        """

    @property
    def distilled(self) -> str | None:
        """What plain training does to a base that was distilled to paint in few steps, and what to do; None: nothing
        of its files says that it was.
        """

    @property
    def inference_batch_size(self) -> int | None:
        """How many rows are painted or scored at once, where they would not fit into memory together; None: any."""

    @property
    def longest_side(self) -> int | None:
        """Pixels that a side of a picture may have, where its places are in a grid of so many; None: any."""

    @property
    def fewest_steps(self) -> int:
        """The fewest denoising steps that its scheduler paints in."""

    @property
    def default_shift(self) -> TimestepShift:
        """The shift of timesteps where a config names none: a number, or ``resolution``."""

    def resolution_shift(self, height: int, width: int, frames: int = 1) -> float:
        """Return the base's own shift of timesteps for a picture, or a clip, of a height and a width in pixels.

        Raises:
            UserError: it has none that depends on the size.
        """

    @property
    def text_length(self) -> int:
        """Tokens of a caption that every text encoder reads, not counting those that mark beginnings and ends."""

    @property
    def key_names(self) -> KeyNames:
        """What adapter files call its layers, by format, where it is not what they are called in memory."""

    @property
    def labels(self) -> BaseLabels:
        """What programs and sites call bases of its kind, for the metadata of adapter files."""

    @property
    def noise(self) -> NoiseProcess:
        """The way to noise that the base was trained with."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What its numbers depend on and its weights do not tell, each with a short text: scheduler, scaling, ..."""

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Turn captions into what the denoiser is told; gradients flow if a text encoder has an adapter in training."""

    def encode_instructions(self, captions: Sequence[str], references: Sequence[Sequence[Tensor]]) -> Conditioning:
        """Turn captions into what the denoiser is told, where ``text_reads_references``.

        Args:
            captions: the texts.
            references: those of each text, pixels (3, H, W) in [-1, 1] as training has cut them.
        """

    def encode_references(self, references: Sequence[Tensor]) -> Conditioning:
        """Turn the references of one sample, (3, H, W) in [-1, 1], into a row of ``Conditioning.of_references``.

        Nothing is random about it, and there is no gradient.
        """

    def use_expert(self, expert: str | None) -> None:
        """Train one of two denoisers from now on, each of which has a range of times; None: there is one.

        Raises:
            UserError: there is one, or there are two and none is named.
        """

    def use_token_windows(self, count: int) -> None:
        """Read texts in so many windows from now on, in training and painting alike.

        Raises:
            UserError: these text encoders read a text in fewer.
        """

    def pipeline_prompts(self, prompts: Sequence[str]) -> Mapping[str, object]:
        """Return how :meth:`pipeline` is told of prompts: its arguments."""

    def pipeline_guidance(self, scale: float) -> Mapping[str, object]:
        """Return how :meth:`pipeline` is told of a scale of guidance (Ho and Salimans 2022), of which 1 is none."""

    def pipeline_frames(self, count: int) -> Mapping[str, object]:
        """Return how :meth:`pipeline` is told of the frames of a clip: nothing, where it paints pictures only."""

    def frames_of(self, painted: object) -> Sequence[Sequence[Image.Image]]:
        """Return the frames of the clip of each prompt in what :meth:`pipeline` returned; a picture is one frame."""

    def pipeline_references(self, references: Sequence[Image.Image]) -> Mapping[str, object]:
        """Return how :meth:`pipeline` is told of a prompt's references, squares of the base's resolution."""

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Join to texts what the denoiser is told of each picture's size and crop, on the texts' device."""

    def unread(self, texts: Sequence[str]) -> Mapping[str, Unread]:
        """Return, by text, what a text encoder does not see of it; texts that are seen whole are left out."""

    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Turn pixels in [-1, 1], (B, 3, H, W), into the posterior over latents; no gradient."""

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the denoiser's output for noisy latents (B, ...), in their shape, as ``noise.prediction`` says."""

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents into pixels in [-1, 1], (B, 3, H, W); no gradient."""

    def pipeline(self, *, texts: bool = True) -> object:
        """Return a diffusers pipeline over these very networks: what is injected or merged here is seen there.

        Args:
            texts: whether its text encoders are in it; else they stay out of memory where they are, and it cannot
                encode prompts.
        """

    def offload(self, parts: Sequence[str]) -> None:
        """Take exactly these parts out of memory, as far as that can be done, and bring all others back.

        ``autoencoder``, the text encoders and the denoiser can be named. A call of an offloaded part restores it, to
        the same bits.
        """

    def to(self, device: torch.device, dtype: torch.dtype) -> Family:
        """Move and cast the frozen networks in place."""


def device_of(family: Family) -> torch.device:
    """Return where a base's networks are; they are all in one place."""
    return next(parameter.device for network in family.networks.values() for parameter in network.parameters())

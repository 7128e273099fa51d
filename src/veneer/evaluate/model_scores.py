"""Painted pictures judged by models that the user has: CLIP, DINO, an aesthetic head; Frechet and kernel distances.

Base and adapter paint the same captions from the same seeds, so each score is a paired difference. What is judged one
picture at a time has the interval of ``mean_interval``; a distance between sets of pictures has the jackknife's, over
captions (Efron and Tibshirani 1993, chapter 11).
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from veneer.errors import UserError
from veneer.evaluate.interval import LEVEL, mean_interval, t_quantile
from veneer.evaluate.results import PictureScore
from veneer.weights.safetensors import decode

__all__ = [
    "AestheticHead",
    "FeatureExtractor",
    "Judges",
    "Models",
    "frechet",
    "kernel",
    "load_judges",
    "score_pictures",
]

_BATCH = 8
_FEWEST = 8
"""Captions from which on a distance between sets of pictures is asked for."""
_NO_METRICS = "FID and KID need torchmetrics: pip install 'veneer[scores]'"

Values = npt.NDArray[np.float64]
Distance = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Models:
    """What the user has.

    Attributes:
        clip: folder or hub id of a CLIP model (Radford et al. 2021), with its tokenizer and preprocessor.
        dino: folder or hub id of a DINO or DINOv2 model (Caron et al. 2021, Oquab et al. 2023), with its preprocessor.
        aesthetic: a ``.safetensors`` file with linear layers over that CLIP's picture embeddings (LAION's predictor).
    """

    clip: str | None = None
    dino: str | None = None
    aesthetic: Path | None = None


class FeatureExtractor:
    """A model that sees: pictures to directions of unit length, and, a CLIP, captions to the same.

    Args:
        model: CLIP's or DINO's.
        processor: of pictures.
        tokenizer: of captions; None: it knows no captions.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any | None = None) -> None:
        self._model, self._processor, self._tokenizer = model.eval(), processor, tokenizer

    @torch.no_grad()
    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures to (N, D), float32."""
        parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        return torch.cat([_unit(self._features(list(part))) for part in parts])

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> Tensor:
        """Captions to (N, D), float32; cut at the model's length."""
        assert self._tokenizer is not None
        given = self._tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
        return _unit(_embedding(self._model.get_text_features(**given)))

    def _features(self, images: list[Image.Image]) -> Tensor:
        given = self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        if self._tokenizer is not None:
            return _embedding(self._model.get_image_features(pixel_values=given["pixel_values"]))
        # DINO's own features are its class token's, after the last norm
        return cast(Tensor, self._model(pixel_values=given["pixel_values"]).last_hidden_state[:, 0])


class AestheticHead:
    """Linear layers, one after the other, from a picture's CLIP direction to a number; LAION's predictor has no more.

    Args:
        layers: weight (out, in) and bias (out) of each, in their order.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._layers = layers

    @property
    def width(self) -> int:
        """Numbers that it takes."""
        return self._layers[0][0].shape[1]

    def judge(self, seen_ND: Tensor) -> Tensor:
        """(N, D) to (N,)."""
        for weight, bias in self._layers:
            seen_ND = nn.functional.linear(seen_ND, weight, bias)
        return seen_ND[:, 0]


@dataclass(frozen=True)
class Judges:
    """The user's models, loaded; false if there are none."""

    clip: FeatureExtractor | None = None
    dino: FeatureExtractor | None = None
    aesthetic: AestheticHead | None = None

    def __bool__(self) -> bool:
        return self.clip is not None or self.dino is not None


def load_judges(models: Models) -> Judges:
    """Load what the user has.

    Raises:
        UserError: one of them is not there or not what it should be, in one line.
    """
    clip = None if models.clip is None else _load_clip(models.clip)
    dino = None if models.dino is None else _load_dino(models.dino)
    if models.aesthetic is None:
        return Judges(clip, dino)
    if clip is None:
        raise UserError(
            "an aesthetic head judges a CLIP's embeddings", where=models.aesthetic, remedy="name that with --clip"
        )
    return Judges(clip, dino, _load_head(models.aesthetic, clip))


def score_pictures(
    judges: Judges,
    captions: Sequence[str],
    real: Sequence[Image.Image],
    base: Sequence[Image.Image],
    adapter: Sequence[Image.Image],
    seed: int = 0,
) -> tuple[tuple[PictureScore, ...], list[str]]:
    """Score what base and adapter painted.

    Args:
        judges: the models.
        captions: what was painted.
        real: a real picture of each caption.
        base: a painted picture of each.
        adapter: the same with the adapter.
        seed: of the resampling.

    Returns:
        The scores, and a sentence for each that could not be had.
    """
    scores, notes = [], []
    seen: list[Tensor] = []
    for name, seer in (("clip", judges.clip), ("dino", judges.dino)):
        if seer is not None:
            seen = [seer.see(images) for images in (real, base, adapter)]
            scores += _one_by_one(judges, name, seer, captions, seen, seed)
    if seen:
        try:  # by DINO's features where there are some, which were seen last
            scores += _set_by_set("dino" if judges.dino else "clip", [each.double() for each in seen])
        except UserError as fault:
            notes.append(str(fault))
    return tuple(scores), notes


def _one_by_one(
    judges: Judges, name: str, seer: FeatureExtractor, captions: Sequence[str], seen: Sequence[Tensor], seed: int
) -> list[PictureScore]:
    """Scores of single pictures: likeness to the caption, to the real picture, and beauty."""
    real_ND, *painted = seen
    scores = [_paired(f"{name}_image", [(real_ND * one).sum(1) for one in painted], seed)]
    if name == "clip":
        said_ND = seer.read(captions)
        scores.append(_paired("clip_text", [(said_ND * one).sum(1) for one in painted], seed))
        if judges.aesthetic is not None:
            scores.append(_paired("aesthetic", [judges.aesthetic.judge(one) for one in painted], seed))
    return scores


def _paired(name: str, values: Sequence[Tensor], seed: int) -> PictureScore:
    base, adapter = (each.double().numpy() for each in values)
    low, high = mean_interval(adapter - base, seed)
    means = float(base.mean()), float(adapter.mean())
    return PictureScore(name, *means, means[1] - means[0], low, high, len(base), higher_is_better=True)


def _set_by_set(name: str, seen: Sequence[Tensor]) -> list[PictureScore]:
    """Frechet and kernel distances of the painted sets to the real one, by torchmetrics."""
    count = len(seen[0])
    if count < _FEWEST:
        raise UserError(f"FID and KID of {count} pictures would say nothing; {_FEWEST} captions are the least")
    kinds: tuple[tuple[str, Distance, Sequence[Tensor]], ...] = (
        ("fid", frechet, _in_their_span(seen)),
        ("kid", kernel, seen),
    )
    return [_jackknifed(f"{kind}_{name}", distance, given) for kind, distance, given in kinds]


def _jackknifed(name: str, distance: Distance, seen: Sequence[Tensor]) -> PictureScore:
    """Both distances and their difference; each caption left out once, with all three pictures of it."""
    real_ND, base_ND, adapter_ND = seen
    base, adapter = distance(real_ND, base_ND), distance(real_ND, adapter_ND)
    count = len(real_ND)
    without = [torch.arange(count) != place for place in range(count)]
    kept = [(real_ND[rest], base_ND[rest], adapter_ND[rest]) for rest in without]
    differences = np.array([distance(real, two) - distance(real, one) for real, one, two in kept])
    # Efron and Tibshirani 1993, eq. 11.5
    error = math.sqrt((count - 1) / count * float(np.square(differences - differences.mean()).sum()))
    reach, mean = t_quantile(count - 1, LEVEL) * error, adapter - base
    return PictureScore(name, base, adapter, mean, mean - reach, mean + reach, count, higher_is_better=False)


def frechet(real_ND: Tensor, painted_MD: Tensor) -> float:
    """Frechet distance of two Gaussians (Heusel et al. 2017, eq. 6) with the sets' means and covariances."""
    from_image = _torchmetrics("fid")
    make = partial(from_image.FrechetInceptionDistance, feature=_AsGiven(real_ND.shape[1]))
    return _compared(make, real_ND, painted_MD)


def kernel(real_ND: Tensor, painted_MD: Tensor) -> float:
    """Squared maximum mean discrepancy with a cubic kernel, without bias (Binkowski et al. 2018, section 4)."""
    from_image = _torchmetrics("kid")
    size = min(len(real_ND), len(painted_MD))
    features = _AsGiven(real_ND.shape[1])
    make = partial(from_image.KernelInceptionDistance, feature=features, subsets=1, subset_size=size)
    return _compared(make, real_ND, painted_MD)


def _compared(make: Callable[[], Any], real_ND: Tensor, painted_MD: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that features are kept in memory, which is what they are for
        metric = make()
    metric.set_dtype(torch.float64)
    metric.update(real_ND, real=True)
    metric.update(painted_MD, real=False)
    with torch.random.fork_rng(devices=[]):
        # KID draws its subsets from PyTorch's own generator: of one subset with all in it the order, so the last bits
        torch.default_generator.manual_seed(0)
        found = metric.compute()
    return float(found[0] if isinstance(found, tuple) else found)


def _torchmetrics(module: str) -> Any:
    try:
        return import_module(f"torchmetrics.image.{module}")
    except ImportError:
        raise UserError(_NO_METRICS) from None


class _AsGiven(nn.Module):
    """A feature extractor for torchmetrics that is given features."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features_ND: Tensor) -> Tensor:
        """Them."""
        return features_ND


def _in_their_span(seen: Sequence[Tensor]) -> list[Tensor]:
    """The same points in coordinates of the space that they span: no distance changes, and covariances are small."""
    middle_D = torch.cat(list(seen)).mean(dim=0)
    basis_KD = torch.linalg.svd(torch.cat(list(seen)) - middle_D, full_matrices=False).Vh
    return [(each - middle_D) @ basis_KD.T for each in seen]


def _unit(features_ND: Tensor) -> Tensor:
    return nn.functional.normalize(features_ND.float(), dim=-1)


def _embedding(found: Any) -> Tensor:
    """The projected embedding; newer releases of transformers wrap it."""
    return found if isinstance(found, Tensor) else cast(Tensor, found.pooler_output)


def _load_clip(where: str) -> FeatureExtractor:
    from transformers import AutoTokenizer, CLIPModel

    model, processor = _from_pretrained(CLIPModel, where, "CLIP", "--clip")
    tokenizer, _ = _from_pretrained(AutoTokenizer, where, "CLIP", "--clip", alone=True)
    return _tried(FeatureExtractor(model, processor, tokenizer), where, "CLIP", "--clip")


def _load_dino(where: str) -> FeatureExtractor:
    from transformers import AutoModel

    return _tried(FeatureExtractor(*_from_pretrained(AutoModel, where, "DINO", "--dino")), where, "DINO", "--dino")


def _tried(seer: FeatureExtractor, where: str, name: str, option: str) -> FeatureExtractor:
    """It, once it has seen a picture: another model may load and fail only when all is painted."""
    try:
        seer.see([_blank()])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        remedy = f"{option} takes a folder or a hub id of such a model"
        raise UserError(f"is no {name}: it sees no picture ({_reason(error)})", where=where, remedy=remedy) from error
    return seer


def _blank() -> Image.Image:
    return Image.new("RGB", (64, 64))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _from_pretrained(kind: Any, where: str, name: str, option: str, alone: bool = False) -> tuple[Any, Any]:
    """A model and its preprocessor of pictures, or a tokenizer alone; a pickle is never opened."""
    from transformers import AutoImageProcessor

    try:
        if alone:
            return kind.from_pretrained(where), None
        model, told = kind.from_pretrained(where, use_safetensors=True, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(where, backend="pil")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        remedy = f"{option} takes a folder or a hub id of such a model in safetensors"
        raise UserError(f"{name}'s weights are not there ({_reason(error)})", where=where, remedy=remedy) from error
    if told["missing_keys"]:
        first = sorted(told["missing_keys"])[0]
        raise UserError(f"is no {name}: it has no {first}", where=where, remedy=f"{option} takes such a model whole")
    return model, processor


def _load_head(path: Path, clip: FeatureExtractor) -> AestheticHead:
    tensors, _ = decode(path)
    names = sorted((name for name in tensors if name.endswith("weight")), key=_place)
    layers = [
        (tensors[name].float(), tensors[f"{name[:-6]}bias"].float()) for name in names if f"{name[:-6]}bias" in tensors
    ]
    if not layers or not _are_in_line(layers):
        raise UserError("is no aesthetic head: linear layers that end in one number", where=path)
    widths = [weight.shape for weight, _ in layers]
    seen = clip.see([_blank()]).shape[1]
    if widths[0][1] != seen:
        raise UserError(
            f"takes {widths[0][1]} numbers, and this CLIP gives {seen}", where=path, remedy="use the CLIP it is of"
        )
    return AestheticHead(layers)


def _are_in_line(layers: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether each is linear, takes what the one before gives, and the last gives one number."""
    if any(weight.ndim != 2 or bias.shape != weight.shape[:1] for weight, bias in layers):
        return False
    pairs = itertools.pairwise(weight.shape for weight, _ in layers)
    return all(first[0] == second[1] for first, second in pairs) and layers[-1][0].shape[0] == 1


def _place(name: str) -> tuple[int, ...]:
    """By the numbers in a name, so that layer 10 comes after layer 9."""
    return tuple(int(part) for part in name.split(".") if part.isdigit())

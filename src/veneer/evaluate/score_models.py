"""The user's models that score pictures: CLIP, DINO, and an aesthetic head."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from veneer.errors import UserError
from veneer.family.unread import Unread, find_unread, unread_notes
from veneer.files import open_home, opens_paths
from veneer.weights.safetensors import decode

__all__ = ["AestheticHead", "FeatureExtractor", "ScoreModelPaths", "ScoreModels", "load_score_models"]

_BATCH = 8


@opens_paths
@dataclass(frozen=True)
class ScoreModelPaths:
    """Where the user's models are.

    Attributes:
        clip: folder or hub id of a CLIP model (Radford et al. 2021), with its tokenizer and preprocessor.
        dino: folder or hub id of a DINO or DINOv2 model (Caron et al. 2021, Oquab et al. 2023), with its preprocessor.
        aesthetic: a ``.safetensors`` file with linear layers over that CLIP's picture embeddings (LAION's predictor).
    """

    clip: str | None = None
    dino: str | None = None
    aesthetic: Path | None = None


class FeatureExtractor:
    """Turns pictures into features of unit length, and with a CLIP captions as well.

    Args:
        model: CLIP's or DINO's.
        processor: of pictures.
        tokenizer: of captions; None for a model without a text encoder.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any | None = None) -> None:
        self._model, self._processor, self._tokenizer = model.eval(), processor, tokenizer

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the features of pictures, (N, D), float32."""
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        return torch.cat([_normalise(self._features(list(batch))) for batch in batches])

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Return the features of captions, (N, D), float32; captions are cut at the model's length."""
        assert self._tokenizer is not None
        length = self._model.config.text_config.max_position_embeddings
        cut = {"truncation": True, "max_length": length}
        tokens = self._tokenizer(list(captions), padding=True, **cut, return_tensors="pt")
        return _normalise(_embedding(self._model.get_text_features(**tokens)))

    def unread(self, captions: Sequence[str]) -> dict[str, Unread]:
        """Return what the model does not see of captions; whole ones are left out."""
        assert self._tokenizer is not None
        length = self._model.config.text_config.max_position_embeddings
        return find_unread(self._tokenizer, captions, length - self._tokenizer.num_special_tokens_to_add())

    def _features(self, images: list[Image.Image]) -> Tensor:
        inputs = self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        if self._tokenizer is not None:
            return _embedding(self._model.get_image_features(pixel_values=inputs["pixel_values"]))
        # DINO's own features are its class token's, after the last norm
        return cast(Tensor, self._model(pixel_values=inputs["pixel_values"]).last_hidden_state[:, 0])


class AestheticHead:
    """Linear layers, one after the other, from a picture's CLIP features to a number; LAION's predictor has no more.

    Args:
        layers: weight (out, in) and bias (out) of each, in their order.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._layers = layers

    def score(self, features_ND: Tensor) -> Tensor:
        """Return the scores (N,) of features (N, D)."""
        for weight, bias in self._layers:
            features_ND = nn.functional.linear(features_ND, weight, bias)
        return features_ND[:, 0]


@dataclass(frozen=True)
class ScoreModels:
    """The user's models, loaded; false if there are none."""

    clip: FeatureExtractor | None = None
    dino: FeatureExtractor | None = None
    aesthetic: AestheticHead | None = None

    def __bool__(self) -> bool:
        return self.clip is not None or self.dino is not None

    def unread(self, captions: Sequence[str]) -> list[str]:
        """Return notes on what CLIP does not see of captions that it scores pictures by."""
        if self.clip is None:
            return []
        places = {caption: f"caption {number}" for number, caption in enumerate(dict.fromkeys(captions), 1)}
        return [f"clip_text: {note}" for note in unread_notes(self.clip.unread, places)]


def load_score_models(paths: ScoreModelPaths) -> ScoreModels:
    """Load the user's models.

    Raises:
        UserError: one of them is missing, or not what it should be.
    """
    clip = None if paths.clip is None else _load_clip(open_home(paths.clip))
    dino = None if paths.dino is None else _load_dino(open_home(paths.dino))
    if paths.aesthetic is None:
        return ScoreModels(clip, dino)
    if clip is None:
        what, remedy = "an aesthetic head scores a CLIP's embeddings", "name that with --clip"
        raise UserError(what, code="evaluate.aesthetic_without_clip", where=paths.aesthetic, remedy=remedy)
    return ScoreModels(clip, dino, _load_head(paths.aesthetic, clip))


def _normalise(features_ND: Tensor) -> Tensor:
    return nn.functional.normalize(features_ND.float(), dim=-1)


def _embedding(output: Any) -> Tensor:
    """Return the projected embedding, which newer releases of transformers wrap."""
    return output if isinstance(output, Tensor) else cast(Tensor, output.pooler_output)


def _load_clip(path: str) -> FeatureExtractor:
    from transformers import AutoTokenizer, CLIPModel

    model, processor = _load_pretrained(CLIPModel, path, "CLIP", "--clip")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except _LOADING_ERRORS as error:
        raise _not_loaded(error, path, "CLIP", "--clip") from error
    return _checked(FeatureExtractor(model, processor, tokenizer), path, "CLIP", "--clip")


def _load_dino(path: str) -> FeatureExtractor:
    from transformers import AutoModel

    model, processor = _load_pretrained(AutoModel, path, "DINO", "--dino")
    return _checked(FeatureExtractor(model, processor), path, "DINO", "--dino")


_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def _load_pretrained(kind: Any, path: str, name: str, option: str) -> tuple[Any, Any]:
    """Load a model and its preprocessor of pictures; a pickle is never opened."""
    from transformers import AutoImageProcessor

    try:
        model, report = kind.from_pretrained(path, use_safetensors=True, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    except _LOADING_ERRORS as error:
        raise _not_loaded(error, path, name, option) from error
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        what, remedy = f"is no {name}: it has no {first}", f"{option} takes such a model whole"
        raise UserError(what, code="evaluate.wrong_model", where=path, remedy=remedy)
    return model, processor


def _not_loaded(error: Exception, path: str, name: str, option: str) -> UserError:
    what = f"{name}'s weights are not there ({_reason(error)})"
    remedy = f"{option} takes a folder or a hub id of such a model in safetensors"
    return UserError(what, code="evaluate.model_missing", where=path, remedy=remedy)


def _checked(extractor: FeatureExtractor, path: str, name: str, option: str) -> FeatureExtractor:
    """Return an extractor that has taken a picture: another kind of model may load, and fail only after sampling."""
    try:
        extractor.image_features([_blank()])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        what = f"is no {name}: it takes no picture ({_reason(error)})"
        remedy = f"{option} takes a folder or a hub id of such a model"
        raise UserError(what, code="evaluate.wrong_model", where=path, remedy=remedy) from error
    return extractor


def _blank() -> Image.Image:
    return Image.new("RGB", (64, 64))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _load_head(path: Path, clip: FeatureExtractor) -> AestheticHead:
    """Load the linear layers of an aesthetic head, and check that they fit the CLIP."""
    tensors, _ = decode(path)
    names = sorted((name.removesuffix("weight") for name in tensors if name.endswith("weight")), key=_layer_numbers)
    pairs = [(tensors[f"{name}weight"], tensors[f"{name}bias"]) for name in names if f"{name}bias" in tensors]
    layers = [(weight.float(), bias.float()) for weight, bias in pairs]
    if not layers or not _are_chained(layers):
        what = "is no aesthetic head: linear layers that end in one number"
        raise UserError(what, code="evaluate.wrong_model", where=path)
    wanted, given = layers[0][0].shape[1], clip.image_features([_blank()]).shape[1]
    if wanted != given:
        what = f"takes {wanted} numbers, and this CLIP gives {given}"
        raise UserError(what, code="evaluate.wrong_model", where=path, remedy="use the CLIP it is made for")
    return AestheticHead(layers)


def _are_chained(layers: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Return whether each is linear and takes what the one before gives, and the last gives one number."""
    if any(weight.ndim != 2 or bias.shape != weight.shape[:1] for weight, bias in layers):
        return False
    pairs = itertools.pairwise(weight.shape for weight, _ in layers)
    return all(first[0] == second[1] for first, second in pairs) and layers[-1][0].shape[0] == 1


def _layer_numbers(name: str) -> tuple[int, ...]:
    """Return the numbers in a name, so that layer 10 comes after layer 9."""
    return tuple(int(part) for part in name.split(".") if part.isdigit())

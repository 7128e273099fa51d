"""Caption pictures with an image-to-text model of transformers that the user has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from veneer.errors import UserError
from veneer.family.libraries import in_one_line, silence_libraries
from veneer.files import open_home

__all__ = ["Captioner", "load_captioner"]

_ASK = "Describe this picture in one or two sentences."
"""What a model that talks is asked where the user asks nothing."""
_PROMPTS: Mapping[str, str] = {"florence2": "<DETAILED_CAPTION>", "paligemma": "caption en"}
"""What models of a kind need to be told, by transformers' name of the kind, where the user says nothing."""
_REMEDY = "--model takes a folder or a hub id of an image-to-text model of transformers in safetensors"


@dataclass(frozen=True)
class Captioner:
    """A model that captions pictures.

    Attributes:
        model: of transformers, which generates.
        processor: of its pictures and texts.
        prompt: what it is asked, or what its captions begin with, as the model has it; None: its kind's own.
        max_tokens: of a caption, at most.
    """

    model: Any
    processor: Any
    prompt: str | None = None
    max_tokens: int = 120

    @torch.inference_mode()
    def caption(self, image: Image.Image) -> str:
        """Return the caption of a picture, in one line; the same each time, for nothing is drawn at random.

        Raises:
            UserError: the model cannot take the picture, or says nothing of it.
        """
        try:
            with silence_libraries():
                text = self._generate(image)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"the model fails on it ({in_one_line(error)})", code="caption.model_fails") from error
        if not text:
            raise UserError("the model says nothing of it", code="caption.empty")
        return text

    def _generate(self, image: Image.Image) -> str:
        text, is_chat = self._text()
        given = {} if text is None else {"text": [text]}
        inputs = self.processor(images=[image], **given, return_tensors="pt")
        parameter = next(self.model.parameters())
        inputs = {name: _moved(value, parameter) for name, value in inputs.items()}
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False, num_beams=1)
        if is_chat:  # what was asked stands before what is answered
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        (said,) = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return " ".join(said.split())

    def _text(self) -> tuple[str | None, bool]:
        """Return what the model is told beside a picture, and whether it talks."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": self.prompt or _ASK}]
            asked = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(asked, add_generation_prompt=True), True
        return self.prompt or _PROMPTS.get(self.model.config.model_type), False


def load_captioner(path: str, prompt: str | None = None, max_tokens: int = 120) -> Captioner:
    """Load a model that captions; on a GPU if there is one. No code of the model's is run, and no pickle is opened.

    Args:
        path: folder or hub id.
        prompt: as of :class:`Captioner`.
        max_tokens: as there.

    Raises:
        UserError: it is missing, incomplete, or of another kind.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path, device = open_home(path), "cuda" if torch.cuda.is_available() else "cpu"
    # a CPU is slow in 16 bits
    options = {"dtype": torch.float32 if device == "cpu" else "auto", "use_safetensors": True}
    try:
        with silence_libraries():
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            model, report = AutoModelForImageTextToText.from_pretrained(
                path, trust_remote_code=False, output_loading_info=True, **options
            )
    except Exception as error:  # loaders raise whatever they stumble on
        what = f"the model cannot be loaded ({in_one_line(error)})"
        raise UserError(what, code="caption.model_missing", where=path, remedy=_REMEDY) from error
    if missing := sorted(report["missing_keys"]):
        what = f"the model's weights are not whole: {missing[0]} and {len(missing) - 1} more are missing"
        raise UserError(what, code="caption.model_incomplete", where=path, remedy=_REMEDY)
    return Captioner(model.eval().to(device), processor, prompt, max_tokens)


def _moved(value: Any, parameter: torch.Tensor) -> Any:
    """Move an input to a model's device, and to its type where it is of fractions."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)

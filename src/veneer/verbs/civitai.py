"""Make a folder of what Civitai asks for, and A1111 and Forge show: file, previews with their settings, texts."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from veneer.errors import UserError
from veneer.evaluate.results import read_evaluation
from veneer.files import check_free, opens_paths, public_name, sync_folder
from veneer.run.folder import GALLERY
from veneer.sample.files import write_picture
from veneer.sample.gallery import gallery_files, gallery_names, read_picture_note, thumbnail
from veneer.sample.infotext import PARAMETERS, infotext
from veneer.verbs.derived_file import OpenedAdapter, open_adapters
from veneer.verbs.publication import adapter_files
from veneer.weights.file import AdapterFile
from veneer.weights.metadata import BaseLabels, derived
from veneer.weights.summary import AdapterInfo, info

__all__ = ["CivitaiFolder", "make_civitai_folder"]

FORM = "civitai.txt"
"""Name of the text with the fields of Civitai's form."""
_THUMBNAIL, _TITLE, _ALIAS = "modelspec.thumbnail", "modelspec.title", "ss_output_name"
_WEBUI_KINDS = ("SD1", "SD2", "SDXL", "Flux", "Unknown")  # that A1111's or Forge's list offers
_PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class CivitaiFolder:
    """The folder that was made.

    Attributes:
        path: of it.
        files: in it, by name.
        notes: sentences on what its owner should know.
    """

    path: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]


@opens_paths
def make_civitai_folder(
    place: Path, out: Path, *, name: str | None = None, base: str | None = None, pictures: Sequence[Path] = ()
) -> CivitaiFolder:
    """Make a folder with an adapter as Civitai, A1111 and Forge want it.

    It has the adapter in kohya's format, a preview of the same name, the card of A1111's lists as JSON, pictures with
    the settings that Civitai reads, and a text with the fields of Civitai's form.

    Args:
        place: the adapter's file, or the folder of its run.
        out: the new folder.
        name: of the adapter; default: that of the folder, or of the file.
        base: the adapter's, where neither a config beside it nor its layers' sizes tell it.
        pictures: previews; default: the gallery of the run.

    Raises:
        UserError: the adapter or a picture cannot be read, its base is not known, or the folder is there already.
    """
    check_free(out)
    called = _plain_name(name or _name_of(place))
    previews = list(pictures) or gallery_files(place / GALLERY)
    (opened,) = open_adapters([_source(place)], base, to="kohya")
    labels = None if opened.names is None else opened.names.labels
    with _made_whole(out) as folder:
        file = folder / f"{called}.safetensors"
        _write_adapter(opened, file, previews)
        written = info(file)
        notes = _write_previews(folder, called, previews, written)
        (folder / f"{called}.json").write_text(_webui_card(written, labels), "utf-8")
        (folder / FORM).write_text(_form(called, written, labels, _score_sentence(place)), "utf-8")
        made = tuple(sorted(path.name for path in folder.iterdir()))
    return CivitaiFolder(out, made, (*notes, *_notes(written, labels)))


def _source(place: Path) -> Path:
    """Return the adapter's file in kohya's format, which says most of itself, else the first."""
    files = adapter_files(place)
    return next((path for path, each in files.items() if each.format == "kohya"), next(iter(files)))


def _name_of(place: Path) -> str:
    return public_name(place.resolve().name if place.is_dir() else place.stem, "adapter")


def _plain_name(name: str) -> str:
    """Return a name that Civitai finds in a prompt: of letters, digits, ``_``, ``-`` and ``.``."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-") or "adapter"


@contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """Give a folder to fill beside its place, which it takes when it is full; after an error nothing is left of it."""
    beside = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        os.rename(beside, out)
        sync_folder(out.parent)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise UserError(what, code="files.unwritable", where=out) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_adapter(opened: OpenedAdapter, file: Path, previews: Sequence[Path]) -> None:
    """Write the adapter in kohya's format, with its name and its first picture in the metadata."""
    operation = "edit" if opened.format == "kohya" else "convert"
    metadata = derived(opened.adapter.metadata, operation, [opened.source], to="kohya")
    metadata |= {_TITLE: file.stem, _ALIAS: file.stem}
    if previews:
        with _picture(previews[0]) as picture:
            metadata[_THUMBNAIL] = thumbnail(picture)
    opened.save(AdapterFile(opened.adapter.weights, metadata), file, "kohya")


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture.

    Raises:
        UserError: it is none.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no picture that can be read"
        raise UserError(f"cannot be read: {reason}", code="publish.bad_picture", where=path) from error


def _write_previews(folder: Path, called: str, previews: Sequence[Path], about: AdapterInfo) -> tuple[str, ...]:
    """Write each picture with its settings as A1111 has them, the first as the preview of A1111's list too."""
    notes: list[str] = []
    read = [read_picture_note(path) for path in previews]
    words = gallery_names([each.prompt if each else path.stem for path, each in zip(previews, read, strict=True)])
    for number, (path, note, name) in enumerate(zip(previews, read, words, strict=True)):
        with _picture(path) as picture:
            own = picture.info.get(PARAMETERS)
            texts = {PARAMETERS: own} if isinstance(own, str) else {}
            if note is not None:
                texts = {PARAMETERS: infotext(note, picture.size, adapter=called, **_hashes(about))}
            if not texts:
                notes.append(f"{path.name} does not say how it was made, so Civitai shows no prompt with it")
            plain = picture.convert("RGB")
        for place in (folder / f"{called}-{name}", *([folder / f"{called}.png"] if number == 0 else [])):
            write_picture(plain, place, texts)
    if not previews:
        notes.append("there are no previews: paint some with veneer sample, and name them with --picture")
    return tuple(notes)


def _hashes(about: AdapterInfo) -> dict[str, str]:
    said = about.metadata
    base = said.get("ss_sd_model_name", "unknown").rpartition("/")[2].removesuffix(".safetensors")
    texts = {"adapter_hash": about.hashes.by_name["AutoV3"], "base": base}
    return texts | ({"base_hash": said["ss_new_sd_model_hash"][:10]} if "ss_new_sd_model_hash" in said else {})


def _webui_card(about: AdapterInfo, labels: BaseLabels | None) -> str:
    """Return what A1111 and Forge keep beside an adapter (``ui_edit_user_metadata.py`` of their Lora extensions)."""
    kind = labels.webui if labels is not None and labels.webui in _WEBUI_KINDS else "Unknown"
    card = {
        "description": about.metadata.get("modelspec.description", _making(about)),
        "sd version": kind,
        "activation text": ", ".join(about.training.triggers),
        "preferred weight": 1.0,
        "negative text": "",
        "notes": f"SHA256 {about.sha256}",
    }
    return json.dumps(card, indent=4, ensure_ascii=False)


def _kind_of(about: AdapterInfo) -> str:
    """Return what Civitai calls a method: LORA, DoRA, and LoCon for what changes convolutions too, or is LyCORIS'."""
    if about.methods == ("LoRA",) and "conv_dim" not in about.metadata.get("ss_network_args", ""):
        return "LORA"
    return "DoRA" if about.methods == ("DoRA",) else "LoCon"


def _form(called: str, about: AdapterInfo, labels: BaseLabels | None, score: str | None) -> str:
    """Return the fields of Civitai's form, in its words and its order."""
    facts, said = about.training.facts, about.metadata
    fields: list[tuple[str, object]] = [
        ("Name", called),
        ("Type", _kind_of(about)),
        ("Description", _html(about, score)),
        ("Version: Name", "v1.0"),
        ("Base Model", labels.civitai if labels else "Other"),
        ("Trigger Words", ", ".join(about.training.triggers) or "none: tick that it does not require any"),
        ("Epochs", facts.get("epochs")),
        ("Steps", facts.get("steps")),
        ("Clip Skip", said.get("ss_clip_skip")),
        ("Strength", "1, what it was trained at"),
        ("File", f"{called}.safetensors, Model, SafeTensor, {_precision(about)}, {about.size_bytes / 1e6:,.1f} MB"),
        *((f"Hash {name}", value) for name, value in about.hashes.by_name.items() if name != "AutoV1"),
    ]
    lines = [f"{name}: {value}" for name, value in fields if value is not None]
    return "\n".join([*lines, "", *_YOURS]) + "\n"


_YOURS = (
    "Yours to answer: the category, what others may do with it, whether it depicts an actual person, is intended for",
    "mature themes, or depicts a minor character. If the base is a fine-tune that Civitai lists by itself, such as",
    "Pony or Illustrious, choose that as the base model.",
)


def _precision(about: AdapterInfo) -> str:
    most = max(about.dtypes, key=lambda name: about.dtypes[name])
    return _PRECISIONS.get(most, most.lower())


def _making(about: AdapterInfo) -> str:
    """Return what it is and what made it, in a sentence."""
    facts = about.training.facts
    what = f"A {', '.join(about.methods)} for {facts.get('base', 'an unknown base')}"
    ours = {"veneer.version", "veneer.steps"} <= about.metadata.keys()
    return f"{what}, trained with Veneer in {about.metadata['veneer.steps']} steps." if ours else f"{what}."


def _html(about: AdapterInfo, score: str | None) -> str:
    """Return a description of the tags that Civitai allows."""
    trigger = " ".join(f"Trigger: <code>{html.escape(word)}</code>." for word in about.training.triggers)
    return "".join(f"<p>{text}</p>" for text in (html.escape(_making(about)), trigger, score) if text)


def _score_sentence(place: Path) -> str | None:
    """Return the held-out score in a sentence; None where none was measured."""
    evaluation = read_evaluation(place) if place.is_dir() else None
    score = None if evaluation is None else evaluation.held_out
    if score is None:
        return None
    losses = f"{score.base:.4f} to {score.adapter:.4f}"
    return f"On {score.pictures} pictures that it never saw, the denoising loss went from {losses}."


def _notes(about: AdapterInfo, labels: BaseLabels | None) -> tuple[str, ...]:
    if labels is not None and labels.version is not None:
        return ()
    return ("its base is of no kind that Civitai, A1111 or Forge knows: none of them can load it",)

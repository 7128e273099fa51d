"""The model card: the README.md beside an adapter, as the Hugging Face hub reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from veneer.printable import printable
from veneer.weights.licenses import License
from veneer.weights.metadata import LABELLED, BaseLabels

__all__ = ["CardFacts", "CardFile", "ScoreFacts", "model_card"]

_BUNDLED = "bundled"
_TAGS = ("text-to-image", "diffusers", "lora", "template:sd-lora", "veneer")


class ScoreFacts(Protocol):
    """The held-out score: the paired difference of denoising loss, adapter less base, and its 95 % interval."""

    @property
    def mean(self) -> float:
        """The difference; below zero the adapter is better."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""

    @property
    def high(self) -> float:
        """Upper end of the interval."""

    @property
    def base(self) -> float:
        """Mean loss of the base."""

    @property
    def adapter(self) -> float:
        """Mean loss with the adapter."""

    @property
    def pictures(self) -> int:
        """Held-out pictures that were measured."""


@dataclass(frozen=True)
class CardFile:
    """One of the adapter's files.

    Attributes:
        name: beside the card.
        format: whose names its tensors have: ``diffusers``, ``kohya``, ``comfy``, ``peft``.
        sha256: of the file; None: it is not told.
    """

    name: str
    format: str
    sha256: str | None = None


@dataclass(frozen=True)
class CardFacts:
    """The content of a card.

    Attributes:
        title: the heading.
        base: what loads the base: ``bundled``, a hub id, or the name of a folder or file.
        prompt: a prompt that shows the adapter.
        files: the adapter's, at least one.
        method: title of the adapter's method.
        config: settings by dotted key; none where they are not known.
        license: of the base; None: it is not known.
        trigger: words that call the adapter.
        base_id: the base's hub id, where it has one; the hub links to it and accepts nothing else there.
        pipeline: diffusers' class that loads the base, if that is a single file.
        references: pictures that a prompt is applied to.
        names_prompt: whether the pipeline takes something else than a prompt first.
        labels: what programs call the base's kind; None: it is not known.
        gallery: the adapter's pictures beside the card by name, with the prompt of each.
        sheet: a picture of base and adapter side by side.
        version: of Veneer, which trained it; None: another program did.
    """

    title: str
    base: str
    prompt: str
    files: tuple[CardFile, ...]
    method: str
    config: Mapping[str, object]
    license: License | None = None
    trigger: str | None = None
    base_id: str | None = None
    pipeline: str | None = None
    references: int = 0
    names_prompt: bool = False
    labels: BaseLabels | None = None
    gallery: Mapping[str, str] = field(default_factory=dict)
    sheet: str | None = None
    version: str | None = None

    def file_for(self, *formats: str) -> CardFile | None:
        """Return the file of the first of these formats that there is one of."""
        found = {file.format: file for file in reversed(self.files)}
        return next((found[name] for name in formats if name in found), None)


def model_card(facts: CardFacts, score: ScoreFacts | None) -> str:
    """Return the text of a README.md: front matter, how to load it, what it did to pictures it never saw, its making.

    Args:
        facts: of the adapter.
        score: None where no picture was held out, which the card then says.
    """
    sections = [_front_matter(facts), f"# {_escaped(facts.title)}\n", _gallery(facts), _summary(facts), _sheet(facts)]
    sections += [_files(facts), _usage(facts), _score(score), _license(facts), _training(facts)]
    return printable("\n".join(section for section in sections if section))


def _front_matter(facts: CardFacts) -> str:
    base = {"base_model": facts.base_id, "base_model_relation": "adapter"} if facts.base_id else {}
    license = {"license": "other"} if facts.license is None else facts.license.card_fields
    tags = dict.fromkeys((*_TAGS, *(facts.labels.tags if facts.labels else ()), facts.method.lower()))
    fields: dict[str, Any] = {**base, "library_name": "diffusers", "pipeline_tag": _task(facts), **license}
    fields |= {"tags": list(tags), "instance_prompt": facts.trigger or facts.prompt}
    fields["widget"] = [{"text": text, "output": {"url": name}} for name, text in facts.gallery.items()] or [
        {"text": facts.prompt}
    ]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _task(facts: CardFacts) -> str:
    return "image-to-image" if facts.references else "text-to-image"


def _gallery(facts: CardFacts) -> str:
    """Return the hub's own gallery, which shows the pictures of ``widget``; elsewhere it is nothing."""
    return "<Gallery />\n" if facts.gallery else ""


def _summary(facts: CardFacts) -> str:
    maker = f", trained with Veneer {facts.version}" if facts.version else ""
    trigger = f" Its trigger is {_code(facts.trigger)}: put it into the prompt." if facts.trigger else ""
    base = "the base that comes with Veneer" if facts.base == _BUNDLED else _code(facts.base)
    return f"A {facts.method} adapter for {base}{maker}.{trigger}\n"


def _sheet(facts: CardFacts) -> str:
    return f"![The same prompts and seeds by the base and by the adapter](<{facts.sheet}>)\n" if facts.sheet else ""


_PROGRAMS = {
    "diffusers": "diffusers",
    "kohya": "A1111, Forge, ComfyUI, SwarmUI, kohya's scripts",
    "comfy": "ComfyUI",
    "peft": "peft",
}
"""The programs that each format is for."""


def _files(facts: CardFacts) -> str:
    rows = []
    for file in facts.files:
        digest = _code(file.sha256) if file.sha256 else ""
        rows.append(f"| {_code(file.name)} | {_programs(facts, file)} | {digest} |")
    return "\n".join(["## Files", "", "| file | for | SHA-256 |", "| --- | --- | --- |", *rows, ""])


def _programs(facts: CardFacts, file: CardFile) -> str:
    """Return the programs that a file is for, as far as they load the base."""
    if file.format in LABELLED and facts.labels is not None and facts.labels.version is None:
        return "none: no program that reads it loads this base"
    return _PROGRAMS.get(file.format, file.format)


_WINDOWS = """
It was trained with texts in {windows} windows of the text encoder. This call reads the first alone, `veneer sample`
all of them.
"""
_STRENGTH = """
Strength 1, which is what programs take if nobody names another, is what it was trained at.
"""


def _usage(facts: CardFacts) -> str:
    windows = facts.config.get("data.token_windows", 1)
    texts = "" if windows == 1 else _WINDOWS.format(windows=windows)
    return f"## Use\n\n{_with_diffusers(facts)}{texts}{_with_programs(facts)}{_STRENGTH}"


def _arguments(facts: CardFacts) -> str:
    """Return the arguments of the pipeline's call."""
    if not facts.references:
        return f"{'prompt=' if facts.names_prompt else ''}{facts.prompt!r}"
    files = [f'load_image("{number}.png")' for number in range(1, facts.references + 1)]
    image = files[0] if len(files) == 1 else f"[{', '.join(files)}]"
    return f"image={image}, prompt={facts.prompt!r}"


def _with_diffusers(facts: CardFacts) -> str:
    file = facts.file_for("diffusers", "kohya", "comfy") or facts.files[0]
    bundled = facts.base == _BUNDLED
    imports, base = ("import veneer.base\n", "veneer.base.path()") if bundled else ("", repr(facts.base))
    kind, load = (facts.pipeline, "from_single_file") if facts.pipeline else ("DiffusionPipeline", "from_pretrained")
    imports += "from diffusers.utils import load_image\n" if facts.references else ""
    note = "" if bundled or facts.base_id else "  # where the base is"
    is_modular = facts.labels is not None and facts.labels.is_modular
    if is_modular:
        kind, load = "ModularPipeline", "from_pretrained"
    made = f"pipeline = {kind}.{load}({base}){note}" + ("\npipeline.load_components()" if is_modular else "")
    paint = f"image = pipeline({_arguments(facts)}).images[0]"
    if facts.labels is not None and not facts.labels.diffusers_reads:
        return _with_peft(facts, f"from diffusers import {kind}", made, paint)
    return f"""With diffusers:

```python
{imports}from diffusers import {kind}

{made}
pipeline.load_lora_weights(".", weight_name={file.name!r})  # the folder of this file
{paint}
```
"""


def _with_peft(facts: CardFacts, imported: str, made: str, paint: str) -> str:
    """Return how an adapter is used that diffusers has no reader for."""
    convert = "" if facts.file_for("peft") else f" First `veneer adapter convert {facts.files[0].name} peft --to peft`."
    return f"""With diffusers and peft, for diffusers has no reader of its own for adapters of this base.{convert}

```python
{imported}
from peft import PeftModel

{made}
pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, "peft")  # the folder of adapter_config.json
{paint}
```
"""


def _with_programs(facts: CardFacts) -> str:
    """Return how programs with a folder of adapters use it, if they can load the base and there is a file for them."""
    file = facts.file_for("kohya", "comfy")
    if facts.labels is None or facts.labels.version is None or file is None:
        return ""
    words = f" {facts.trigger}" if facts.trigger else ""
    comfy = f"""
In ComfyUI: put {_code(file.name)} into `models/loras`, and a node *Load LoRA* behind the checkpoint, with strength 1.
"""
    if file.format != "kohya":
        return comfy
    call = _code(f"<lora:{file.name.removesuffix('.safetensors')}:1>{words}")
    return f"""{comfy}
In A1111 or Forge: put {_code(file.name)} into `models/Lora`, and {call} into the prompt.
"""


def _license(facts: CardFacts) -> str:
    if facts.license is None:
        told = f"The licence of {_code(facts.base)} is not known to Veneer; its terms may hold for adapters of it."
    else:
        told = (
            f"The base is under [{facts.license.title}]({facts.license.link}), whose terms may hold for adapters of it."
        )
    return f"## Licence\n\n{told} The pictures that it learned from may have terms of their own.\n"


def _score(score: ScoreFacts | None) -> str:
    if score is None:
        return "## Score\n\nNo picture was held out, so nothing was measured.\n"
    verdict = "better than" if score.high < 0 else "worse than" if score.low > 0 else "not told apart from"
    return f"""## Score

Denoising loss on {score.pictures} held-out pictures, with the same noise and timesteps for both:

| base | adapter | difference | 95 % interval |
| --- | --- | --- | --- |
| {score.base:.4f} | {score.adapter:.4f} | {score.mean:+.4f} | [{score.low:+.4f}, {score.high:+.4f}] |

The interval is a bootstrap over pictures. On these pictures the adapter is {verdict} the base.
"""


def _training(facts: CardFacts) -> str:
    if not facts.config:
        return ""
    rows = [f"| {_code(key)} | {_code(str(value))} |" for key, value in facts.config.items()]
    return "\n".join(["## Training", "", "| setting | value |", "| --- | --- |", *rows, ""])


def _line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no link, no HTML."""
    return re.sub(r"([\\`*\[\]])", r"\\\1", _line(text)).replace("&", "&amp;").replace("<", "&lt;")


def _code(text: str) -> str:
    """Return text in a code span that survives a table: backticks fence it in, a bar in a table must be escaped."""
    flat = _line(text).replace("|", "\\|")
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in flat).split()), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest or not flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}"

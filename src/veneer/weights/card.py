"""The model card: the README.md beside an adapter, as the Hugging Face hub reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from veneer.printable import printable

__all__ = ["CardFacts", "ScoreFacts", "model_card"]

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
class CardFacts:
    """The content of a card.

    Attributes:
        title: the heading.
        base: what ``from_pretrained`` takes to load the base, or ``bundled``.
        license: the hub's name of the adapter's licence, e.g. ``cc-by-sa-4.0``; it must suit pictures and base.
        prompt: a prompt that shows the adapter.
        weights: name of the adapter's file beside the card.
        sha256: of that file.
        method: title of the adapter's method.
        config: settings by dotted key.
        trigger: words that call the adapter.
        base_id: the base's hub id, where it has one; the hub links to it and accepts nothing else there.
        pictures: pictures beside the card by name, with the prompt of each.
        version: of Veneer.
    """

    title: str
    base: str
    license: str
    prompt: str
    weights: str
    sha256: str
    method: str
    config: Mapping[str, object]
    trigger: str | None = None
    base_id: str | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None


def model_card(facts: CardFacts, score: ScoreFacts | None) -> str:
    """Return the text of a README.md: front matter, how to load it, what it did to pictures it never saw, its making.

    Args:
        facts: of the adapter.
        score: None where no picture was held out, which the card then says.
    """
    sections = [_front_matter(facts), f"# {_escaped(facts.title)}\n", _summary(facts), _pictures(facts.pictures)]
    sections += [_usage(facts), _score(score), _training(facts)]
    return printable("\n".join(section for section in sections if section))


def _front_matter(facts: CardFacts) -> str:
    fields: dict[str, Any] = {"base_model": facts.base_id} if facts.base_id else {}
    fields |= {"library_name": "diffusers", "pipeline_tag": "text-to-image", "license": facts.license}
    fields |= {"tags": list(_TAGS), "instance_prompt": facts.trigger or facts.prompt}
    fields["widget"] = [{"text": text, "output": {"url": name}} for name, text in facts.pictures.items()] or [
        {"text": facts.prompt}
    ]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _summary(facts: CardFacts) -> str:
    maker = f"Veneer {facts.version}" if facts.version else "Veneer"
    trigger = f" Its trigger is {_code(facts.trigger)}." if facts.trigger else ""
    return f"A {facts.method} adapter for {_code(facts.base)}, trained with {maker}.{trigger}\n"


def _pictures(pictures: Mapping[str, str]) -> str:
    shown = [f"![{_escaped(text.replace('[', '').replace(']', ''))}](<{name}>)" for name, text in pictures.items()]
    return "\n".join(shown) + "\n" if shown else ""


_WINDOWS = """
It was trained with texts in {windows} windows of the text encoder. This call reads the first alone, `veneer sample`
all of them.
"""


def _usage(facts: CardFacts) -> str:
    bundled = facts.base == "bundled"
    imports, base = ("import veneer.base\n", "veneer.base.path()") if bundled else ("", repr(facts.base))
    windows = facts.config.get("data.token_windows", 1)
    texts = "" if windows == 1 else _WINDOWS.format(windows=windows)
    return f"""## Use

```python
{imports}from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({base})
pipeline.load_lora_weights(".", weight_name={facts.weights!r})  # the folder of this file
image = pipeline({facts.prompt!r}).images[0]
```

The strength alpha/r is folded into the tensors, and the metadata says alpha = r: a reader finds the same strength with
the metadata or without. SHA-256 of `{facts.weights}`: `{facts.sha256}`
{texts}"""


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

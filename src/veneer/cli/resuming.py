"""``--resume`` on the command line: with a name or without, and as a stopped run tells it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veneer.run.signals import Interrupted

__all__ = ["how_to_go_on", "with_resume"]

_RESUME, _OVERWRITE = "--resume", "--overwrite"
_STUDY = "study"  # the same command goes on with it
_OVERRIDE = re.compile(r"[\w.]+=")
_CHECKPOINT = re.compile(r"(.*[/\\])?step-\d+[/\\]?")


def with_resume(arguments: Sequence[str]) -> list[str]:
    """A command line in which ``--resume`` always has a value, as typer wants it: empty where no checkpoint is named.

    What follows it is its value unless it is an option, an override such as ``train.max_steps=200``, or the folder or
    configuration to train from, which has not come yet and does not look like a checkpoint.
    """
    told: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*told, argument, *rest]
        if argument == _RESUME:
            argument += "=" + (rest.pop(0) if rest and _is_named(rest[0], told) else "")
        told.append(argument)
    return told


def _is_named(following: str, before: Sequence[str]) -> bool:
    if following.startswith("-") or _OVERRIDE.match(following):
        return False
    return bool(_CHECKPOINT.fullmatch(following)) or _has_source(before)


def _has_source(arguments: Sequence[str]) -> bool:
    """Whether ``train SOURCE`` stands there already: a word after the verb that is no option's value."""
    verb_and_source = [word for word, ahead in zip(arguments, ("", *arguments), strict=False) if _is_word(word, ahead)]
    return len(verb_and_source) > 1


def _is_word(word: str, ahead: str) -> bool:
    takes_value = ahead.startswith("--") and "=" not in ahead and ahead != _OVERWRITE
    return not word.startswith("-") and not takes_value


def how_to_go_on(stop: Interrupted, arguments: Sequence[str]) -> str:
    """One line for what was stopped: of a run or a study, what is kept, and the command that goes on with it."""
    if arguments and arguments[0] == _STUDY:
        return f"{stop}; what is done is kept; go on with: {shlex.join(['veneer', *arguments])}"
    if stop.step is None:
        return str(stop)
    if stop.checkpoint is None:
        return f"{stop}; no checkpoint could be written"
    again = [word for word in with_resume(arguments) if word != _OVERWRITE and not word.startswith(f"{_RESUME}=")]
    return f"{stop}; the last checkpoint is {stop.checkpoint}; go on with: {shlex.join(['veneer', *again, _RESUME])}"

"""``--resume`` on a command line: with a checkpoint or without, and in the advice after a stop."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veneer.run.signals import Interrupted

__all__ = ["resume_advice", "with_resume_value"]

_RESUME, _OVERWRITE = "--resume", "--overwrite"
_STUDY = "study"  # the same command goes on with it
_OVERRIDE = re.compile(r"[\w.]+=")
_CHECKPOINT = re.compile(r"(.*[/\\])?step-\d+[/\\]?")


def with_resume_value(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which ``--resume`` has a value, as typer needs it: empty for the newest checkpoint.

    What follows it is its value unless it is an option, an override such as ``train.max_steps=200``, or the folder or
    configuration to train from, which has not come yet and does not look like a checkpoint.
    """
    complete: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*complete, argument, *rest]
        if argument == _RESUME:
            argument += "=" + (rest.pop(0) if rest and _names_checkpoint(rest[0], complete) else "")
        complete.append(argument)
    return complete


def _names_checkpoint(following: str, before: Sequence[str]) -> bool:
    if following.startswith("-") or _OVERRIDE.match(following):
        return False
    return bool(_CHECKPOINT.fullmatch(following)) or _has_source(before)


def _has_source(arguments: Sequence[str]) -> bool:
    """Check whether ``train SOURCE`` is complete: a word after the verb that is no option's value."""
    verb_and_source = [word for word, ahead in zip(arguments, ("", *arguments), strict=False) if _is_word(word, ahead)]
    return len(verb_and_source) > 1


def _is_word(word: str, ahead: str) -> bool:
    takes_value = ahead.startswith("--") and "=" not in ahead and ahead != _OVERWRITE
    return not word.startswith("-") and not takes_value


def resume_advice(stop: Interrupted, arguments: Sequence[str]) -> str:
    """Return one line on a stopped run or study: what is kept, and the command that goes on with it."""
    if arguments and arguments[0] == _STUDY:
        return f"{stop}; what is done is kept; go on with: {shlex.join(['veneer', *arguments])}"
    if stop.step is None:
        return str(stop)
    if stop.checkpoint is None:
        return f"{stop}; no checkpoint could be written"
    again = [word for word in with_resume_value(arguments) if word != _OVERWRITE and not word.startswith(f"{_RESUME}=")]
    return f"{stop}; the last checkpoint is {stop.checkpoint}; go on with: {shlex.join(['veneer', *again, _RESUME])}"

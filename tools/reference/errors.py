"""Write ``docs/errors.md`` from the places in the code that refuse something."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = ["PAGE", "Refusal", "page", "refusals"]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
_SOURCE = ROOT / "src" / "veneer"
_ANY = "…"
_HEAD = """\
# What is refused

<!-- written by `python -m tools.reference`; a test says when it is out of date -->

A mistake in what Veneer is given is one line: where, what, and what to do about it. The command line prints it and
exits with 2. From Python it is a `veneer.UserError` with `where`, `what`, `remedy`, and a `code` that says what kind of
mistake it is. Programs should look at the code; the words may change. `…` stands for what differs between cases.

| code | what it says | where |
| --- | --- | --- |
"""

Function: TypeAlias = ast.FunctionDef
Call: TypeAlias = ast.Call


@dataclass(frozen=True, order=True)
class Refusal:
    """A place that refuses something: the code, the pattern of its words, and the file."""

    code: str
    what: str
    file: str


def page() -> str:
    """Return the whole page."""
    rows: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for refusal in sorted(refusals()):
        whats, files = rows.setdefault(refusal.code, ({}, {}))
        whats[refusal.what.replace("|", "\\|")] = files[f"`{refusal.file}`"] = None
    lines = [f"| `{code}` | {'<br>'.join(whats)} | {', '.join(files)} |" for code, (whats, files) in rows.items()]
    return _HEAD + "\n".join(lines) + "\n"


def refusals() -> Iterator[Refusal]:
    """Yield every code that a ``UserError`` is made with, with the pattern of its words."""
    for path in sorted(_SOURCE.rglob("*.py")):
        yield from _Module(path).refusals()


class _Module:
    """One file of the package, as far as errors are made in it."""

    def __init__(self, path: Path) -> None:
        self.name = path.relative_to(_SOURCE).as_posix()
        self.tree = ast.parse(path.read_text("utf-8"))
        self.errors = {"UserError"}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in self.errors for base in node.bases):
                self.errors.add("super().__init__")

    def refusals(self) -> Iterator[Refusal]:
        """Yield the refusals of the file."""
        for function, call in self._calls():
            codes = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            # error.code and report["code"] hand another error's code on
            if codes and not ast.unparse(codes[0]).endswith((".code", "['code']")):
                for code, what in self._resolve(function, codes[0], call.args[0]):
                    yield Refusal(code, what, self.name)

    def _calls(self) -> Iterator[tuple[Function, Call]]:
        """Yield the calls that make an error, each with the function around it."""
        for function in ast.walk(self.tree):
            if isinstance(function, ast.FunctionDef):
                for call in _own_calls(function):
                    if ast.unparse(call.func) in self.errors and (call.args or call.keywords):
                        yield function, call

    def _resolve(self, function: Function, code: ast.expr, what: ast.expr) -> Iterator[tuple[str, str]]:
        """Yield the codes and words of a call, from where its function is called if they are its arguments."""
        parameters = [argument.arg for argument in function.args.args]
        if not (isinstance(code, ast.Name) and code.id in parameters):
            yield from self._pairs(code, what, function)
            return
        shift = parameters[0] in ("self", "cls")
        for caller, call in self._callers(function.name):
            given = dict(zip(parameters[shift:], call.args, strict=False))
            given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
            words = given.get(what.id, what) if isinstance(what, ast.Name) else what
            yield from self._resolve(caller, given[code.id], words)

    def _pairs(self, code: ast.expr, what: ast.expr, function: Function) -> Iterator[tuple[str, str]]:
        """Yield codes with their words: side by side where there are as many, else the last words before the call."""
        codes, whats = self._texts(code, function), self._texts(what, function)
        if len(codes) == len(whats):
            yield from zip(codes, whats, strict=True)
        elif isinstance(what, ast.Name) and (values := list(_assigned(what.id, function))):
            before = [value for value in values if value.lineno <= what.lineno]
            yield from itertools.product(codes, self._texts(max(before, key=lambda value: value.lineno), function))
        else:
            yield from itertools.product(codes, whats)

    def _callers(self, name: str) -> Iterator[tuple[Function, Call]]:
        for function in ast.walk(self.tree):
            if isinstance(function, ast.FunctionDef):
                for call in _own_calls(function):
                    if ast.unparse(call.func).rpartition(".")[2] == name:
                        yield function, call

    def _texts(self, expression: ast.expr, function: Function) -> list[str]:
        """Return the texts that an expression may stand for."""
        if isinstance(expression, ast.Constant):
            return [str(expression.value)]
        if isinstance(expression, ast.IfExp):
            return self._texts(expression.body, function) + self._texts(expression.orelse, function)
        if isinstance(expression, ast.JoinedStr):
            parts = [self._texts(part, function) for part in expression.values]
            return ["".join(chosen) for chosen in itertools.product(*parts)]
        if isinstance(expression, ast.BinOp):
            sides = (self._texts(expression.left, function), self._texts(expression.right, function))
            return ["".join(chosen) for chosen in itertools.product(*sides)]
        if isinstance(expression, ast.FormattedValue):
            # only names that stand for one of a few words are worth spelling out
            return self._texts(expression.value, function) if isinstance(expression.value, ast.Attribute) else [_ANY]
        if isinstance(expression, (ast.Name, ast.Attribute)):
            values = list(_assigned(ast.unparse(expression), function)) or list(
                _assigned(ast.unparse(expression), self.tree)
            )
            return [text for value in values for text in self._texts(value, function)] or [_ANY]
        if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Attribute):
            return self._looked_up(expression, function)
        return [_ANY]

    def _looked_up(self, call: Call, function: Function) -> list[str]:
        """Return the values of ``table.get(key, default)``."""
        tables = list(_assigned(ast.unparse(call.func).removesuffix(".get"), self.tree))
        if not tables or not isinstance(tables[0], ast.Dict):
            return [_ANY]
        return [text for value in (*tables[0].values, *call.args[1:]) for text in self._texts(value, function)]


def _own_calls(function: Function) -> Iterator[Call]:
    """Yield the calls of a function, less those of the functions in it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Call):
            yield node
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)


def _assigned(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    """Yield what is assigned to a name in a scope, alone or in a tuple."""
    for node in ast.walk(scope):
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == name:
            yield node.value
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if ast.unparse(target) == name:
                yield node.value  # type: ignore[attr-defined]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):  # type: ignore[attr-defined]
                pairs = zip(target.elts, node.value.elts, strict=True)  # type: ignore[attr-defined]
                yield from (value for part, value in pairs if ast.unparse(part) == name)

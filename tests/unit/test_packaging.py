"""What an installed Veneer is: its public names, what they cost, its pins, and what the wheel carries."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import veneer

ROOT = Path(__file__).parents[2]
SLOW = {"torch", "diffusers", "transformers", "peft", "pydantic", "typer", "rich", "numpy", "scipy", "PIL", "yaml"}


def _modules_after(statement: str) -> set[str]:
    """Top-level modules that are loaded after ``statement`` in a Python of its own."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("name", veneer.__all__)
def test_each_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(veneer, name)
    assert isinstance(value, str) or value.__doc__


def test_no_public_name_is_hidden_by_a_subpackage() -> None:
    packages = {path.stem for path in (ROOT / "src/veneer").iterdir() if path.suffix in ("", ".py")}
    assert {"train", "plan", "errors", "base"} <= packages
    assert not packages & set(veneer.__all__)


def test_type_checkers_see_what_runs() -> None:
    tree = ast.parse((ROOT / "src/veneer/__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        str(alias.asname): f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == veneer._HOMES
    assert {"__version__", *seen} == set(veneer.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        veneer.tarin  # noqa: B018


def test_importing_veneer_loads_nothing_slow() -> None:
    assert "torch" in _modules_after("import torch")  # the probe sees what there is to see
    assert not _modules_after("import veneer, veneer.errors, veneer.rng, veneer.__main__") & SLOW


def test_a_config_is_read_and_refused_without_torch() -> None:
    modules = "veneer.config.load, veneer.data.manifest, veneer.data.preflight, veneer.cli.main, veneer.cli.inputs"
    assert not _modules_after(f"import {modules}") & {"torch", "diffusers", "transformers", "peft"}


def test_version_is_the_installed_one() -> None:
    assert metadata.version("veneer") == veneer.__version__


def _pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _needed(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Names of all that ``name`` needs here, whatever needs it."""
    found: set[str] = set()
    todo = [(canonicalize_name(name), extras)]
    while todo:
        current, wanted = todo.pop()
        found.add(current)
        for requirement in map(Requirement, metadata.requires(current) or ()):
            applies = [requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in (*wanted, "")]
            if any(applies) and canonicalize_name(requirement.name) not in found:
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def test_every_dependency_is_pinned() -> None:
    here = {canonicalize_name(pin.name) for pin in _pins() if pin.marker is None or pin.marker.evaluate()}
    cuda = re.compile(r"nvidia-|cuda-|triton$")  # pinned by PyTorch itself
    needed = {name for name in _needed("veneer", frozenset({"test"})) if not cuda.match(name)}
    assert {"torch", "pytest", "tokenizers"} <= needed
    assert needed - here == {"veneer"}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_a_pin_is_one_release_for_each_python(python: str) -> None:
    environment = {"python_version": python, "sys_platform": "linux"}
    pins = [pin for pin in _pins() if pin.marker is None or pin.marker.evaluate(environment)]
    names = [pin.name for pin in pins]
    assert sorted(set(names)) == sorted(names)
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)


def test_the_wheel_carries_base_pictures_and_licences(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "src/veneer").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT / "src").as_posix() for path in files} <= packed
    assert {"veneer/py.typed", "veneer/cli/help.txt", "veneer/base/model/model_index.json"} <= packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)


@pytest.mark.parametrize("name", ["example", "tests"])
def test_readme_has_the_commands_that_ci_runs(name: str) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(rf"^<!-- command: {name} -->\n\n?```\w*\n(.+?)\n```$", readme, re.MULTILINE | re.DOTALL)
    assert f"command_of_readme {name}" in (ROOT / ".ci/run").read_text("utf-8")
    assert "-c constraints.txt" in command
    assert "\n" not in command
    assert ("pytest" if name == "tests" else "lora_complete_example.py") in command


def test_modules_say_what_they_offer() -> None:
    without = []
    for path in sorted((ROOT / "src/veneer").rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        if path.name == "__init__.py" and len(parts) > 2 and "import" not in path.read_text("utf-8"):
            continue  # a bare package marker
        module = import_module(".".join(part for part in parts if part != "__init__"))
        names = getattr(module, "__all__", None)
        if names is None or any(not hasattr(module, name) for name in names):
            without.append(module.__name__)
    assert without == []

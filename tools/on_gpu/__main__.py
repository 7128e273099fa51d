"""Prepare, and then run, what is to be known of Veneer on a GPU.

python -m tools.on_gpu pack                    what travels, into .wheels: packages, and weights or drawings
python -m tools.on_gpu run --out FOLDER        on the machine: unpack them, then check and bench, within a time
python -m tools.on_gpu check --out FOLDER      the tests of tests/gpu
python -m tools.on_gpu bench --out FOLDER      seconds and memory of steps
python -m tools.on_gpu base --out FOLDER       train a better base to bundle
python -m tools.on_gpu judge FOLDER            here: hold the base that came back against what it should reach
python -m tools.on_gpu adopt FOLDER            here: put it in the bundled base's place, if it reaches all of it
python -m tools.on_gpu publish FILE            write a bench's figures into benchmarks/results and docs/benchmarks.md

``--device cpu`` does all of it on the CPU with tiny sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.on_gpu.run import PARTS, run

__all__ = ["main"]

_USUAL = "check,bench"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit status."""
    given = _parser().parse_args(arguments)
    if given.command == "pack":
        from tools.on_gpu.pack import pack

        pack(given.python, given.parts.split(","))
        return 0
    if given.command == "publish":
        from tools.on_gpu.table import publish_results

        publish_results(given.file)
        return 0
    if given.command == "judge":
        from tools.on_gpu.judge import judge

        return judge(given.folder)
    if given.command == "adopt":
        from tools.on_gpu.adopt import adopt

        adopt(given.folder)
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    if given.command == "run":
        return run(given.parts.split(","), given.out, given.device, given.seconds)
    seconds = given.seconds or PARTS[given.command]
    if given.command == "check":
        from tools.on_gpu.check import check

        return check(given.out, given.device, seconds, given.select)
    if given.command == "base":
        from tools.on_gpu.base import base

        return base(given.out, given.device, seconds, given.work)
    from tools.on_gpu.bench import bench

    return bench(given.out, given.device, seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.on_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack")
    pack.add_argument("--python", help="an interpreter like the machine's, which tries the packages")
    pack.add_argument("--parts", default=_USUAL, help="what it will be for; base alone needs no weights")
    publish = commands.add_parser("publish")
    publish.add_argument("file", type=Path)
    for name in ("judge", "adopt"):
        commands.add_parser(name).add_argument("folder", type=Path, help="what came back")
    for name in ("run", *PARTS):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, required=True, help="the folder for results")
        command.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        command.add_argument("--seconds", type=float, help="how long it may take")
        if name == "check":
            command.add_argument("--select", default="", help="which tests, as pytest's -k has it")
        if name == "base":
            command.add_argument("--work", type=Path, help="folder of states, from which it goes on")
        if name == "run":
            command.add_argument("--parts", default=_USUAL, help="which, in their order")
    return parser


if __name__ == "__main__":
    sys.exit(main())

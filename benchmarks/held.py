"""`redheart` in processes that may take no more of a card than a budget.

Usage: python benchmarks/held.py 8GiB COMMAND [OPTIONS of `redheart COMMAND`]

The trials of a sweep, processes of their own, are held too; without a card nothing is. At its end every process appends
its peaks to the file that HELD_PEAKS names, one JSON object a line.
"""

import json
import os
import sys
from collections.abc import Sequence
from subprocess import Popen

import msgspec
import probe
import vram

from redheart.cli import main, set_environment


def held(cap: str, arguments: Sequence[str]) -> None:
    """Run a command of `redheart` to its end; exits as it does."""
    set_environment()
    from redheart.study import sweep
    from redheart.study.outlook.planning import parse_bytes

    # The command is PYTHON [-P] -m redheart trial ...
    sweep.start = lambda command: Popen([sys.executable, __file__, cap, *command[command.index("trial") :]])  # type: ignore
    cap_bytes, overhead = parse_bytes(cap), None
    if arguments[0] != "sweep":
        # Which computes nothing, and would hold a context of the card beside its trials'.
        overhead = vram.hold(cap_bytes)
    try:
        main(arguments)
    finally:
        if path := os.environ.get("HELD_PEAKS"):
            found = {"command": arguments[0], "cap_bytes": cap_bytes if overhead else None, "overhead": overhead}
            with open(path, "a") as file:
                file.write(json.dumps(found | msgspec.to_builtins(probe.measure())) + "\n")


if __name__ == "__main__":
    # What a run notes of its command is `redheart`'s.
    budget, *sys.argv[1:] = sys.argv[1:]
    held(budget, sys.argv[1:])

"""`watch`: a run that goes on, or has ended, in the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from redheart.cli.options import Flag, RunPath, parse, print_json
from redheart.core.errors import BadInput


@dataclass(frozen=True)
class WatchOptions:
    """Show where a run stands: curves, throughput, memory, time left, last events. Only reads its files."""

    run: RunPath
    """Folder of the run."""
    once: Flag = False
    """Print one frame and end."""
    every_s: float = 2.0
    """Seconds between frames."""
    json: Flag = False
    """Print what is known as JSON and end."""


def watch(arguments: Sequence[str]) -> None:
    import msgspec

    from redheart.study import run_folder
    from redheart.study.status import read_status
    from redheart.study.watch import print_once
    from redheart.study.watch import watch as show

    options = parse(WatchOptions, arguments, "watch")
    if not 0.1 <= options.every_s <= 3600:
        raise BadInput("number out of range", where="--every-s", got=options.every_s, expected="0.1 to 3600 seconds")
    folder, config = run_folder.load(options.run)
    name = options.run.resolve().name
    if options.json:
        # The loss of every step stands in the event log.
        print_json(msgspec.structs.replace(read_status(folder, config), step_loss=[]), True)
    elif options.once:
        print_once(read_status(folder, config), name=name)
    else:
        try:
            show(lambda: read_status(folder, config), name=name, every_s=options.every_s)
        except KeyboardInterrupt:
            return

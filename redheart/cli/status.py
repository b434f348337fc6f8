"""`status`: where a run stands that goes on, or has ended."""

from collections.abc import Sequence

from redheart.cli.options import RunOptions, parse, print_json


def status(arguments: Sequence[str]) -> None:
    from redheart.study import run_folder
    from redheart.study.outlook.status import read_status, status_lines

    options = parse(RunOptions, arguments, "status")
    found = read_status(*run_folder.load(options.run))
    if options.json:
        print_json(found, True)
    else:
        print("\n".join(status_lines(found)))

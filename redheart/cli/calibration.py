"""`calibrate`: does the confidence of a run's model mean what it says, and can it be mended."""

from collections.abc import Sequence

from redheart.cli.options import RunOptions, display_of, parse, print_json


def calibrate(arguments: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from redheart.study import phases, run_folder
    from redheart.study.calibrating import run_calibration

    options = parse(RunOptions, arguments, "calibrate")
    with run_folder.opened(options.run) as (folder, config):
        data = phases.load_data(config, folder, display=display_of(options))
        with display_of(options).working("calibrate"):
            result = run_calibration(config, folder, data)
    if options.json:
        print_json(result, True)
        return
    table = Table(box=None, header_style="bold", caption_justify="left")
    for index, name in enumerate(("method", "select", "confirm", "KL", "Brier", "ECE", "noise floor")):
        table.add_column(name, justify="left" if index == 0 else "right")
    for name, found in result.methods.items():
        scores = found.confirm
        figures = (scores.cross_entropy, scores.kl, scores.brier, scores.ece, scores.ece_noise_floor)
        table.add_row(name, *[f"{value:.4f}" for value in (found.select_cross_entropy, *figures)])
    console = Console()
    console.print(table)
    print(f"select, confirm: cross-entropy in nats on {result.num_select} and {result.num_confirm} records")
    print(result.verdict)
    print(folder.calibration / "reliability.png")

"""`snapshots list|verify|consolidate|compress|prune|import`: what a run has kept, and what can be done with it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from redheart.cli import help_text, model_files
from redheart.cli.options import Flag, RunOptions, answer, display_of, parse, print_json
from redheart.core.errors import BadInput
from redheart.core.units import MB


@dataclass(frozen=True)
class PruneOptions(RunOptions):
    """Say which snapshots no rule keeps, and with --yes remove them; resume states are never touched.

    The newest stays always, and so do those that the run's sweet spot was chosen from.
    """

    keep_every: int = 0
    """Keep those whose epoch is a multiple of this."""
    keep_best: int = 0
    """Keep this many with the lowest validation loss."""
    keep_last: int = 0
    """Keep this many of the newest."""
    keep_epochs: tuple[int, ...] = ()
    """Keep these."""
    yes: Flag = False
    """Remove, instead of saying what would be removed."""


def snapshots(arguments: Sequence[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(help_text("redheart snapshots", {name: summary for name, (_, summary) in SUBCOMMANDS.items()}))
        sys.exit()
    if name not in SUBCOMMANDS:
        raise BadInput("unknown command", got=f"snapshots {name}", expected=", ".join(SUBCOMMANDS))
    SUBCOMMANDS[name][0](arguments[1:])


def _list(arguments: Sequence[str]) -> None:
    about = "List the snapshots and resume states of a run."
    options = parse(RunOptions, arguments, "snapshots list", about=about)

    from redheart.snapshots.survey import list_run

    listing = list_run(*_folders(options.run))
    lines = [f"{'epoch':>6}{'step':>8}{'val loss':>10}{'cycle':>7}{'on disk':>12}{'whole':>12}"]
    for row in listing.snapshots:
        sizes = f"{row.bytes_on_disk / MB:>9.2f} MB{row.bytes_uncompressed / MB:>9.2f} MB"
        kind = "  differences" if row.is_delta else ""
        lines.append(f"{row.epoch:>6}{row.step:>8}{row.val_loss:>10.5f}{row.cycle_position:>7.2f}{sizes}{kind}")
    for state in listing.states:
        size = f"{state.bytes_on_disk / MB:.2f} MB of {state.ranks} rank(s)"
        lines.append(f"resume state of step {state.step}, epoch {state.epoch}: {size}")
    lines.append(f"{listing.bytes_on_disk / MB:.2f} MB in all")
    answer(listing, "\n".join(lines), as_json=options.json)


def _verify(arguments: Sequence[str]) -> None:
    about = "Hold every file of a run's snapshots and resume states against its SHA-256; all bad ones are named."
    options = parse(RunOptions, arguments, "snapshots verify", about=about)

    import msgspec

    from redheart.snapshots.survey import bytes_to_verify, verify_run

    folders = _folders(options.run)
    with display_of(options.json).track("verify", bytes_to_verify(*folders), unit="bytes") as advance:
        found = verify_run(*folders, on_bytes=advance)
    if options.json:
        print_json({**msgspec.to_builtins(found), "megabytes_per_s": round(found.megabytes_per_s, 1)})
    else:
        print(f"{found.files} files, {found.bytes / MB:.2f} MB, {found.megabytes_per_s:.0f} MB/s, {len(found.bad)} bad")
        for line in found.bad:
            print(f"bad: {line}", file=sys.stderr)
    if found.bad:
        sys.exit(BadInput.exit_code)


def _compress(arguments: Sequence[str]) -> None:
    about = "Keep all snapshots but the newest and every sixteenth as differences to earlier ones; no bit is lost."
    options = parse(RunOptions, arguments, "snapshots compress", about=about)

    from redheart.snapshots.compress import compress_snapshots
    from redheart.snapshots.module_snapshots import list_snapshots
    from redheart.snapshots.prune import disk_bytes

    folder, _ = _folders(options.run)
    before = disk_bytes(folder)
    size = sum(entry.content_bytes for item in list_snapshots(folder) for entry in item.manifest.modules.values())
    with display_of(options.json).track("compress", size, unit="bytes") as advance:
        done = compress_snapshots(folder, on_bytes=advance)
    after = disk_bytes(folder)
    share = f", {after / before:.0%} of it" if before else ""
    text = f"{len(done)} snapshots rewritten: {before / MB:.2f} MB are now {after / MB:.2f} MB{share}"
    answer({"rewritten": done, "bytes_before": before, "bytes_after": after}, text, as_json=options.json)


def _prune(arguments: Sequence[str]) -> None:
    options = parse(PruneOptions, arguments, "snapshots prune")

    from redheart.core.files import read_if_there
    from redheart.select.sweet_spot import SweetSpot
    from redheart.snapshots.prune import Keep, prune
    from redheart.study import run_folder

    folder, _ = run_folder.load(options.run)

    def chosen() -> set[int]:
        spot = read_if_there(folder.select / "sweet_spot.json", SweetSpot)
        if spot is None:
            return set()
        return {spot.best_epoch, *(epoch for blend in spot.modules.values() for epoch in blend.epochs)}

    keep = Keep(options.keep_every, options.keep_best, options.keep_last, options.keep_epochs)
    found = prune(folder.snapshots, keep, needed=chosen, remove=options.yes)
    lines = [f"kept     {', '.join(map(str, found.kept))}"]
    lines.append(f"{'removed' if found.is_done else 'to go':<9}{', '.join(map(str, found.removed)) or 'none'}")
    if found.rewritten:
        made = "are whole now; `redheart snapshots compress` makes them small again"
        what = made if found.is_done else "would be made whole first"
        lines.append(f"whole    {', '.join(map(str, found.rewritten))} held differences to those and {what}")
    if not found.removed:
        lines.append("nothing was changed")
    elif found.bytes_after is None:
        lines.append("nothing was changed: --yes removes them")
    else:
        lines.append(f"{found.bytes_before / MB:.2f} MB are now {found.bytes_after / MB:.2f} MB")
    answer(found, "\n".join(lines), as_json=options.json)


def _folders(run: Path) -> tuple[Path, Path]:
    """A run's snapshots and its resume states."""
    from redheart.study import run_folder

    folder, _ = run_folder.load(run)
    return folder.snapshots, folder.states


SUBCOMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "list": (_list, "snapshots and resume states with their losses and sizes"),
    "verify": (_verify, "hold every file against its digest; exit code 2 if one is bad"),
    "consolidate": (model_files.consolidate, "one safetensors file from a snapshot or from the newest resume state"),
    "compress": (_compress, "keep all snapshots but the newest as lossless differences"),
    "prune": (_prune, "remove snapshots that no rule keeps"),
    "import": (model_files.import_model, "a model of DeepSpeed, accelerate or a .pt file as safetensors"),
}
"""Function and summary by name."""

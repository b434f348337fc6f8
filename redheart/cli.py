"""The command line: one sub-command per phase; errors end in one message and their exit code."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from redheart.core.config import Preset
from redheart.core.errors import RedHeartError


@dataclass(frozen=True)
class Model:
    """Print the parameter ledger of a preset and, for `full`, hold it against the design's table."""

    preset: Preset = "full"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False

    def run(self) -> None:
        from redheart.model.ledger import ledger_text

        print(ledger_text(self.preset, as_json=self.json))


Command = Annotated[Model, tyro.conf.subcommand("model")] | Annotated[None, tyro.conf.subcommand("version")]


def main() -> None:
    """Entry point of `redheart`."""
    command = tyro.cli(Command, prog="redheart", description="Train 730 million parameters on an 8 GB card.")
    try:
        if command is None:
            from redheart import __version__

            print(__version__)
        else:
            command.run()
    except RedHeartError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

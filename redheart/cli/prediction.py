"""`predict`, `demo`, `export`: what a finished model says of texts, and the model as a folder of its own."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from redheart.cli.options import DeviceChoice, EncoderPath, Flag, RunOptions, RunPath, answer, parse, refuse_own_input
from redheart.core.config import Device
from redheart.core.errors import BadInput

if TYPE_CHECKING:
    from redheart.predict import Predictor


@dataclass(frozen=True)
class PredictOptions:
    """Predict a text, or a file of texts, with the model that a run recommends or an exported one."""

    run: RunPath
    """Folder of a run, or of an exported model."""
    text: str | None = None
    """What happened."""
    title: str = ""
    action: str = ""
    input: Path | None = None
    """Texts: .txt (one a line), .json, .jsonl or .tsv, plain or .gz; labels are left aside."""
    output: Path | None = None
    """File for the predictions, one JSON object a line; it appears when it is whole."""
    batch: int = 32
    """Texts that the model reads at once."""
    encoder: EncoderPath = None
    device: DeviceChoice = "auto"
    json: Flag = False
    """Print JSON lines instead of cards."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    """Write the model that a run recommends into a folder of its own, with a model card and digests."""

    out: Path
    """Folder to write; new, or empty."""
    encoder: EncoderPath = None


@dataclass(frozen=True)
class DemoOptions:
    """Serve a page on this machine, 127.0.0.1 alone: text in, bars out. Ctrl-C ends it."""

    run: RunPath
    """Folder of a run, or of an exported model."""
    port: int = 8765
    """Port to listen on; 0 takes a free one."""
    encoder: EncoderPath = None
    device: DeviceChoice = "auto"


def demo(arguments: Sequence[str]) -> None:
    options = parse(DemoOptions, arguments, "demo")

    from redheart.core.files import shown
    from redheart.predict.server import HOST, make_server

    predictor = open_predictor(options.run, encoder=options.encoder, device=options.device)
    name = f"Red Heart: {shown(options.run.resolve().name)}"
    with make_server(predictor, name=name, port=options.port) as server:
        print(f"http://{HOST}:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        # To be ended is how a server ends.
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def export(arguments: Sequence[str]) -> None:
    options = parse(ExportOptions, arguments, "export")

    from redheart.study.final import run_export

    manifest = run_export(options.run, options.out, encoder=options.encoder)
    answer(manifest, f"{options.out}: {', '.join(manifest.files)}", as_json=options.json)


def predict(arguments: Sequence[str]) -> None:
    options = parse(PredictOptions, arguments, "predict")

    from rich.console import Console

    from redheart.core.files import is_stream, new_file, open_output
    from redheart.data.records import Record
    from redheart.data.scripts import counted, warn_unread
    from redheart.predict.cards import json_line, print_card
    from redheart.predict.texts import read_texts

    if (options.text is None) == (options.input is None):
        raise BadInput("one of --text and --input is needed", got="neither" if options.text is None else "both")
    if options.input and (options.title or options.action):
        raise BadInput("--title and --action belong to --text", hint="a file's records bring their own")
    if options.input and options.output:
        refuse_own_input(options.output, [options.input])
    own = Record("text", options.text or "", options.title, options.action)
    records = read_texts(options.input) if options.input else [own]
    predictor = open_predictor(options.run, encoder=options.encoder, device=options.device)
    predictions = predictor.stream(records, batch=options.batch)
    if options.output:
        with new_file(options.output) as temporary, open_output(temporary) as file:
            for prediction in predictions:
                file.write(json_line(prediction).encode() + b"\n")
        # Standard output may be the stream itself, or is read by a program.
        on_stderr = options.json or is_stream(options.output)
        print(f"{len(records)} predictions in {options.output}", file=sys.stderr if on_stderr else None)
    elif options.json:
        for prediction in predictions:
            print(json_line(prediction, ascii_only=True), flush=True)
    else:
        console = Console()
        for prediction, record in zip(predictions, records, strict=True):
            print_card(console, prediction, text=record.text)
    warn_unread(counted(predictor.unread(records)), len(records), encoder=predictor.features.encoder)


def open_predictor(folder: Path, *, encoder: str | None, device: Device) -> "Predictor":
    """The model of a run's folder, or of an exported one; `encoder` is where its encoder lies now."""
    from redheart.predict.exported import is_export, load
    from redheart.study.final import open_run

    opened = load if is_export(folder) else open_run
    return opened(folder, encoder=encoder, device=device)

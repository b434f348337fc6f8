"""`ratings`, `eeg`: the model's predictions beside what people say and show."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from redheart.cli.options import DeviceChoice, EncoderPath, Flag, RunOptions, answer, parse, refuse_own_input
from redheart.core.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class RatingsOptions(RunOptions):
    """Correlate predictions with people's ratings: Spearman subject by subject, then combined."""

    csv: Path
    """Table with the columns id, subject and valence, arousal, faa or the names of targets."""
    texts: Path | None = None
    """The texts that the ids mean; without it they are validation records of the run."""
    encoder: EncoderPath = None
    device: DeviceChoice = "auto"


@dataclass(frozen=True)
class EegOptions:
    """Frontal alpha asymmetry of recordings, ln P(F4) - ln P(F3) over 8-13 Hz; needs MNE-Python (redheart[eeg])."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Recordings in any format that MNE reads (.fif, .edf, .bdf, .vhdr, .set, ...); the id is the file's name."""
    subject: str | None = None
    """Who was recorded; empty takes what the recording says."""
    reference: Literal["average", "none"] = "average"
    """Average reference, or as recorded."""
    out: Path | None = None
    """CSV to write, in the form that `redheart ratings --csv` reads."""
    json: Flag = False


def ratings(arguments: Sequence[str]) -> None:
    options = parse(RatingsOptions, arguments, "ratings")

    from redheart.study.ratings import rate

    result = rate(options.run, options.csv, texts=options.texts, encoder=options.encoder, device=options.device)
    lines = [f"{result.num_rows} rows on {result.num_texts} texts; {result.num_rows_left_out} rows left out"]
    for name, found in result.measures.items():
        if found is None:
            lines.append(f"{name}: too little to correlate")
            continue
        left_out = f", {found.num_left_out} left out" if found.num_left_out else ""
        lines += [
            f"{name}: rho {found.rho:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p {found.p_value:.3g}, "
            f"{found.design}, {found.num_subjects} subjects{left_out}, {found.num_pairs} pairs",
            f"  so many subjects and texts show |rho| of {found.detectable_rho:.2f} or more with 80 % power",
        ]
    answer(result, "\n".join(lines), as_json=options.json)


def eeg(arguments: Sequence[str]) -> None:
    options = parse(EegOptions, arguments, "eeg")

    from redheart.core.files import write_bytes
    from redheart.data.eeg import asymmetry_table, measure_files

    if not options.files:
        raise BadInput("no recording is given", expected="one file or more", hint="give the recordings' names")
    if options.out:
        refuse_own_input(options.out, options.files)
    found = measure_files(options.files, subject=options.subject, reference=options.reference)
    if options.out:
        write_bytes(options.out, asymmetry_table(found).encode())
    lines = []
    for item in found:
        error = "unknown" if item.standard_error is None else f"{item.standard_error:.4f}"
        lines.append(f"{item.id}: {item.faa:+.4f} (standard error {error}, {item.num_epochs} epochs)")
    answer(found, "\n".join(lines), as_json=options.json)

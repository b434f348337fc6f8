"""Frontal alpha asymmetry, ln P(F4) - ln P(F3) over 8-13 Hz by epochs, of recordings that MNE-Python reads.

MNE is the optional extra `eeg`; this is written against its version 1.13. Shape suffixes: E epochs, S samples, F
frequencies.
"""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from redheart.core.errors import BadInput, extra
from redheart.core.text import csv_table

ALPHA_HZ = (8.0, 13.0)
EPOCH_S, OVERLAP_S = 2.0, 1.0
Reference = Literal["average", "none"]
_PASS_HZ = (1.0, 45.0)
_LEFT, _RIGHT = "F3", "F4"
_MAX_COMPONENTS = 15
_LEAST_CHANNELS = 8
"""For an average reference. Of channels alike, that of two takes all of a planted +0.81 away, of eight a tenth."""
# MNE's readers do not check what they read: a damaged file ends in whatever the parsing came upon.
_READ_ERRORS = (ValueError, OSError, RuntimeError, LookupError, AttributeError, TypeError, EOFError, struct.error)


class Asymmetry(msgspec.Struct, frozen=True):
    """The asymmetry of one recording."""

    id: str
    subject: str
    faa: float
    """Mean over epochs of ln P(F4) - ln P(F3): above zero, alpha is stronger on the right."""
    standard_error: float | None
    """Of that mean; epochs overlap by half, so every second one is counted. None of fewer than two."""
    num_epochs: int


def log_ratio(left_E: np.ndarray, right_E: np.ndarray, *, name: str, subject: str) -> Asymmetry:
    """The asymmetry from the band power of every epoch at F3 (left) and F4 (right), in any common unit.

    Raises:
        BadInput: no epoch, or a power that is not a positive number, as of a flat channel.
    """
    if len(left_E) == 0:
        raise _too_short(name)
    for channel, power_E in ((_LEFT, left_E), (_RIGHT, right_E)):
        if not (np.isfinite(power_E) & (power_E > 0)).all():
            raise _flat(name, channel)
    ratio_E = np.log(right_E) - np.log(left_E)
    independent = len(ratio_E) // 2
    error = float(ratio_E.std(ddof=1)) / math.sqrt(independent) if independent > 1 else None
    return Asymmetry(name, subject, float(ratio_E.mean()), error, len(ratio_E))


def measure_files(paths: Sequence[Path], *, subject: str | None, reference: Reference) -> list[Asymmetry]:
    """The asymmetries of recordings, as `measure_file` finds them.

    Raises:
        BadInput: two have one id and one subject, so that nobody could tell their rows apart.
    """
    found: dict[tuple[str, str], tuple[Asymmetry, Path]] = {}
    for path in paths:
        item = measure_file(path, subject=subject, reference=reference)
        key = (item.id, item.subject)
        if key in found:
            raise BadInput(
                "two recordings have the same id and subject",
                where=f"{found[key][1]} and {path}",
                got=f"id {item.id}, subject {item.subject}",
                expected="each pair once",
                hint="an id is a file's name up to the first dot; rename one of them",
            )
        found[key] = (item, path)
    return [item for item, _ in found.values()]


def measure_file(path: Path, *, subject: str | None, reference: Reference) -> Asymmetry:
    """The frontal alpha asymmetry of one recording.

    Filtered to 1-45 Hz, eye movements taken out by ICA where the recording has an EOG channel, referenced, cut into
    epochs of 2 s every second, band power by Welch.

    Raises:
        BadInput: MNE is not installed, the file cannot be read, or as `measure`.
    """
    mne = _mne()
    if not path.exists():
        raise BadInput("recording not found", where=path, hint="check the path")
    try:
        raw = mne.io.read_raw(path, preload=True, verbose="error")
    except _READ_ERRORS as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise BadInput("MNE cannot read the recording", where=path, got=lines[0], hint="check the file") from error
    return measure(raw, name=path.name.partition(".")[0], subject=subject or _subject(raw, path), reference=reference)


def measure(raw: Any, *, name: str, subject: str, reference: Reference) -> Asymmetry:
    """The frontal alpha asymmetry of an `mne.io.Raw` that is loaded; it is left as it is.

    Raises:
        BadInput: there is no F3 or F4, one is marked as bad or flat over an epoch; there are too few channels for the
            reference; or no epoch is without artefacts.
    """
    mne = _mne()
    missing = [channel for channel in (_LEFT, _RIGHT) if channel not in raw.ch_names]
    if missing:
        raise BadInput(
            "the recording has no " + " and no ".join(missing),
            where=name,
            got=", ".join(raw.ch_names[:40]),
            hint="rename the channels to the names of the 10-20 system",
        )
    eeg_names = {raw.ch_names[index] for index in mne.pick_types(raw.info, eeg=True, exclude=())}
    if not {_LEFT, _RIGHT} <= eeg_names:
        raise BadInput(
            "F3 and F4 are not marked as channels of EEG",
            where=name,
            got=", ".join(raw.get_channel_types([_LEFT, _RIGHT])),
            hint="set their types with `raw.set_channel_types` and save the recording again",
        )
    if bad := [channel for channel in (_LEFT, _RIGHT) if channel in raw.info["bads"]]:
        raise BadInput("a channel is marked as bad", where=f"{name}: {bad[0]}", hint="leave the recording out")
    half_rate_hz = raw.info["sfreq"] / 2
    if half_rate_hz <= ALPHA_HZ[1]:
        expected = f"more than {2 * ALPHA_HZ[1]:g} Hz"
        raise BadInput(
            "the recording is sampled too slowly", where=name, got=f"{2 * half_rate_hz:g} Hz", expected=expected
        )
    if raw.n_times < EPOCH_S * raw.info["sfreq"]:
        raise _too_short(name)
    raw = raw.copy().drop_channels(raw.info["bads"])
    _refuse_flat(mne, raw, name)
    num_eeg = len(mne.pick_types(raw.info, eeg=True))
    if reference == "average" and num_eeg < _LEAST_CHANNELS:
        raise BadInput(
            "too few channels for an average reference",
            where=name,
            got=num_eeg,
            expected=f"{_LEAST_CHANNELS} or more",
            hint="use --reference none",
        )
    # What lies above half the rate is not in it.
    raw.filter(_PASS_HZ[0], _PASS_HZ[1] if _PASS_HZ[1] < half_rate_hz else None, verbose="error")
    raw = _without_eyes(mne, raw)
    if reference == "average":
        raw.set_eeg_reference("average", verbose="error")
    epochs = mne.make_fixed_length_epochs(raw, duration=EPOCH_S, overlap=OVERLAP_S, preload=True, verbose="error")
    spectrum = epochs.compute_psd(
        method="welch",
        fmin=ALPHA_HZ[0],
        fmax=ALPHA_HZ[1],
        picks=[_LEFT, _RIGHT],
        n_fft=round(EPOCH_S * raw.info["sfreq"]),
        verbose="error",
    )
    power_ECF = spectrum.get_data(picks=[_LEFT, _RIGHT])
    left_E, right_E = np.asarray(power_ECF).mean(-1).T
    return log_ratio(left_E, right_E, name=name, subject=subject)


def asymmetry_table(found: Sequence[Asymmetry]) -> str:
    """The asymmetries as the CSV that `redheart ratings` reads."""
    return csv_table(("id", "subject", "faa"), ((item.id, item.subject, item.faa) for item in found))


def _flat(name: str, channel: str) -> BadInput:
    return BadInput("a channel is flat or not a number", where=f"{name}: {channel}", hint="leave the recording out")


def _too_short(name: str) -> BadInput:
    return BadInput("the recording is too short", where=name, expected=f"{EPOCH_S:g} s or more without artefacts")


def _refuse_flat(mne: Any, raw: Any, name: str) -> None:
    """Look for a flat F3 or F4 before filters and references make something else of it."""
    epochs = mne.make_fixed_length_epochs(raw, duration=EPOCH_S, overlap=OVERLAP_S, preload=True, verbose="error")
    if not len(epochs):
        raise _too_short(name)
    for channel in (_LEFT, _RIGHT):
        spread_E = np.ptp(epochs.get_data(picks=channel), axis=-1)
        if not (np.isfinite(spread_E) & (spread_E > 0)).all():
            raise _flat(name, channel)


def _without_eyes(mne: Any, raw: Any) -> Any:
    """The recording without the components that follow its EOG channel; as it is where there is none."""
    num_eeg = len(mne.pick_types(raw.info, eeg=True))
    if len(mne.pick_types(raw.info, eog=True)) == 0 or num_eeg < 3:
        return raw
    ica = mne.preprocessing.ICA(n_components=min(_MAX_COMPONENTS, num_eeg - 1), random_state=0, max_iter="auto")
    ica.fit(raw, verbose="error")
    ica.exclude, _ = ica.find_bads_eog(raw, verbose="error")
    return ica.apply(raw, verbose="error")


def _subject(raw: Any, path: Path) -> str:
    info = raw.info.get("subject_info") or {}
    return str(info.get("his_id") or info.get("id") or path.name.partition(".")[0])


def _mne() -> Any:
    with extra("eeg", library="mne", purpose="reading recordings of EEG"):
        import mne
    return mne

"""Alpha asymmetry on synthetic recordings with a planted ratio; through MNE where it is installed."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import welch

from redheart.cli import main
from redheart.core.errors import BadInput, RedHeartError
from redheart.data import eeg
from redheart.data.eeg import ALPHA_HZ, EPOCH_S, OVERLAP_S, Asymmetry, asymmetry_table, log_ratio, measure, measure_file
from redheart.data.rating_table import read_ratings

RATE_HZ = 250.0
PLANTED = 0.81


def alpha(seconds: float, power: float, seed: int) -> np.ndarray:
    """White noise and a 10 Hz rhythm whose phase wanders; `power` scales both."""
    random = np.random.default_rng(seed)
    time_S = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase_S = np.cumsum(random.normal(0, 0.05, len(time_S)))
    signal_S = np.sqrt(2) * np.sin(2 * np.pi * 10 * time_S + phase_S) + random.normal(0, 0.3, len(time_S))
    return np.sqrt(power) * signal_S


def alpha_power(signal_S: np.ndarray, *, rate_hz: float) -> np.ndarray:
    """Power in the alpha band of every epoch of a channel by Welch (1967), (E,), in squared units per Hz."""
    length, step = round(EPOCH_S * rate_hz), round((EPOCH_S - OVERLAP_S) * rate_hz)
    if len(signal_S) < length:
        return np.empty(0)
    starts = np.arange(0, len(signal_S) - length + 1, step)
    epochs_ES = np.stack([signal_S[start : start + length] for start in starts])
    frequencies_F, power_EF = welch(epochs_ES, fs=rate_hz, nperseg=length, axis=-1)
    band = (frequencies_F >= ALPHA_HZ[0]) & (frequencies_F <= ALPHA_HZ[1])
    return np.asarray(power_EF[:, band].mean(1))


def test_a_planted_ratio_comes_back() -> None:
    left, right = alpha(120, 1.0, 0), alpha(120, np.exp(PLANTED), 1)
    found = log_ratio(alpha_power(left, rate_hz=RATE_HZ), alpha_power(right, rate_hz=RATE_HZ), name="a", subject="s")
    assert found.num_epochs == 119 and found.standard_error is not None
    assert abs(found.faa - PLANTED) < 4 * found.standard_error < 0.2
    swapped = log_ratio(alpha_power(right, rate_hz=RATE_HZ), alpha_power(left, rate_hz=RATE_HZ), name="a", subject="s")
    assert swapped.faa == -found.faa


def test_the_same_signal_at_another_gain_is_exact_and_other_bands_do_not_count() -> None:
    signal = alpha(30, 1.0, 0)
    power_E = alpha_power(signal, rate_hz=RATE_HZ)
    doubled = log_ratio(power_E, alpha_power(2 * signal, rate_hz=RATE_HZ), name="a", subject="s")
    assert doubled.faa == pytest.approx(np.log(4), rel=1e-12) and doubled.standard_error == pytest.approx(0, abs=1e-12)
    beta = np.sin(2 * np.pi * 25 * np.arange(len(signal)) / RATE_HZ)
    # The Hann window's side lobes at 12 Hz distance are below a millionth.
    np.testing.assert_allclose(alpha_power(signal + beta, rate_hz=RATE_HZ), power_E, rtol=0.02)


def test_flat_and_short_recordings_are_refused() -> None:
    good = alpha_power(alpha(10, 1.0, 0), rate_hz=RATE_HZ)
    with pytest.raises(BadInput, match=r"flat.*\n.*F4"):
        log_ratio(good, np.zeros_like(good), name="a", subject="s")
    short = alpha_power(alpha(1.9, 1.0, 0), rate_hz=RATE_HZ)
    with pytest.raises(BadInput, match="too short"):
        log_ratio(short, short, name="a", subject="s")


def test_one_epoch_is_no_certainty() -> None:
    power_E = alpha_power(alpha(10, 1.0, 0), rate_hz=RATE_HZ)
    errors = [
        log_ratio(power_E[:num], 2 * power_E[:num] ** 1.1, name="a", subject="s").standard_error for num in (1, 3)
    ]
    assert errors == [None, None]
    assert log_ratio(power_E[:4], 2 * power_E[:4] ** 1.1, name="a", subject="s").standard_error


def test_the_table_is_what_ratings_reads(tmp_path: Path) -> None:
    found = [Asymmetry("a,b", "s1", 0.125, 0.1, 9), Asymmetry("c", "s2", -1e-17, 0.1, 9)]
    (tmp_path / "faa.csv").write_text(asymmetry_table(found))
    table = read_ratings(tmp_path / "faa.csv")
    assert table.ids == ["a,b", "c"] and table.values == {"faa": [0.125, -1e-17]}


def test_without_mne_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "mne":
            raise ModuleNotFoundError("No module named 'mne'", name="mne")
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RedHeartError, match=r"redheart\[eeg\]"):
        measure_file(tmp_path / "a.fif", subject=None, reference="average")


def test_no_two_recordings_have_one_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found(path: Path, *, subject: str | None, reference: str) -> Asymmetry:
        return Asymmetry(path.name.partition(".")[0], subject or path.parent.name, 0.125, 0.1, 9)

    monkeypatch.setattr(eeg, "measure_file", found)
    paths = [tmp_path / "a" / "sub-01.edf", tmp_path / "b" / "sub-01.edf"]
    assert [item.subject for item in eeg.measure_files(paths, subject=None, reference="none")] == ["a", "b"]
    with pytest.raises(BadInput, match="same id and subject") as caught:
        eeg.measure_files(paths, subject="s", reference="none")
    assert all(str(path) in str(caught.value) for path in paths)


def test_without_a_recording_a_table_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "faa.csv"
    table.write_text("only copy")
    for files in ([], [str(table)]):
        with pytest.raises(SystemExit) as ended:
            main(["eeg", *files, "--out", str(table)])
        assert ended.value.code == 2 and table.read_text() == "only copy"
        assert ("the output is the input" if files else "no recording is given") in capsys.readouterr().err


# The 10-20 system's nineteen.
CHANNELS = [
    "Fp1",
    "Fp2",
    "F7",
    "F3",
    "Fz",
    "F4",
    "F8",
    "T7",
    "C3",
    "Cz",
    "C4",
    "T8",
    "P7",
    "P3",
    "Pz",
    "P4",
    "P8",
    "O1",
    "O2",
]


def recording(mne: Any, ratio: float) -> Any:
    signals = [alpha(60, 1.0, index) for index in range(len(CHANNELS))]
    signals[CHANNELS.index("F4")] *= np.sqrt(ratio)
    # Weak elsewhere: what the reference mixes into the two is then little.
    signals = [signal if name in ("F3", "F4") else 0.1 * signal for name, signal in zip(CHANNELS, signals, strict=True)]
    info = mne.create_info(list(CHANNELS), RATE_HZ, "eeg")
    return mne.io.RawArray(np.array(signals) * 1e-5, info, verbose="error")


def test_mne_gives_the_planted_ratio_back(tmp_path: Path) -> None:
    mne = pytest.importorskip("mne")
    raw = recording(mne, np.exp(PLANTED))
    plain = measure(raw, name="a", subject="s", reference="none")
    assert plain.faa == pytest.approx(PLANTED, abs=0.1)
    # The reference mixes a part of each into the other.
    assert measure(raw, name="a", subject="s", reference="average").faa == pytest.approx(PLANTED, abs=0.25)
    raw.save(tmp_path / "one_raw.fif", verbose="error")
    found = measure_file(tmp_path / "one_raw.fif", subject=None, reference="none")
    assert found.id == found.subject == "one_raw" and found.faa == pytest.approx(plain.faa, abs=1e-4)


def test_mne_recordings_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    mne = pytest.importorskip("mne")
    with pytest.raises(BadInput, match="has no F4"):
        measure(recording(mne, 1.0).drop_channels(["F4"]), name="a", subject="s", reference="none")
    two = recording(mne, np.exp(PLANTED)).pick(["F3", "F4"])
    with pytest.raises(BadInput, match=r"too few channels for an average(.*\n)*.*--reference none"):
        measure(two, name="a", subject="s", reference="average")
    assert measure(two, name="a", subject="s", reference="none").faa == pytest.approx(PLANTED, abs=0.1)
    with pytest.raises(BadInput, match="too short"):
        measure(recording(mne, 1.0).crop(tmax=1.9), name="a", subject="s", reference="none")
    (tmp_path / "a_raw.fif").write_bytes(b"no recording")
    with pytest.raises(BadInput, match="cannot read"):
        measure_file(tmp_path / "a_raw.fif", subject=None, reference="none")
    (tmp_path / "a.nonsense").write_bytes(b"no recording")
    with pytest.raises(BadInput, match="cannot read"):
        measure_file(tmp_path / "a.nonsense", subject=None, reference="none")


def test_recordings_at_the_edge_of_what_can_be_measured() -> None:
    mne = pytest.importorskip("mne")
    raw = recording(mne, np.exp(PLANTED))
    # Below twice the filter's upper edge there is nothing above it to take away.
    slow = raw.copy().resample(64, verbose="error")
    assert measure(slow, name="a", subject="s", reference="none").faa == pytest.approx(PLANTED, abs=0.1)
    with pytest.raises(BadInput, match="too slowly"):
        measure(raw.copy().resample(24, verbose="error"), name="a", subject="s", reference="none")
    spoilt = raw.copy().set_annotations(mne.Annotations([0], [60], ["BAD_all"]))
    with pytest.raises(BadInput, match="too short"):
        measure(spoilt, name="a", subject="s", reference="none")
    unmarked = raw.copy().set_channel_types(dict.fromkeys(("F3", "F4"), "misc"), verbose="error")
    with pytest.raises(BadInput, match="not marked"):
        measure(unmarked, name="a", subject="s", reference="none")


@pytest.mark.parametrize("reference", ["average", "none"])
def test_mne_recordings_of_which_a_channel_cannot_be_used(reference: eeg.Reference) -> None:
    mne = pytest.importorskip("mne")
    raw = recording(mne, np.exp(PLANTED))
    for channel in ("F3", "F4"):
        bad = raw.copy()
        bad.info["bads"] = [channel, "O1"]
        with pytest.raises(BadInput, match=rf"marked as bad\n.*{channel}"):
            measure(bad, name="a", subject="s", reference=reference)
        for value, samples in ((0.0, slice(None)), (1e-5, slice(2500, 3500)), (np.nan, slice(2500, 2501))):
            flat = raw.copy()
            flat._data[CHANNELS.index(channel), samples] = value
            with pytest.raises(BadInput, match=rf"flat or not a number\n.*{channel}"):
                measure(flat, name="a", subject="s", reference=reference)
    # What is marked as an artefact need not be a signal, nor what is another channel's.
    spoilt = raw.copy().set_annotations(mne.Annotations([9], [6], ["BAD_cable"]))
    spoilt._data[CHANNELS.index("F3"), 2500:3500] = 0.0
    spoilt._data[CHANNELS.index("O2")] = 1.0
    spoilt.info["bads"] = ["O2"]
    found = measure(spoilt, name="a", subject="s", reference=reference)
    assert found.faa == pytest.approx(PLANTED, abs=0.25)


def test_mne_recordings_without_a_clean_epoch_are_too_short_with_an_eog_channel_too() -> None:
    mne = pytest.importorskip("mne")
    raw = recording(mne, 1.0).rename_channels({"Fp1": "EOG"}).set_channel_types({"EOG": "eog"}, verbose="error")
    raw.set_annotations(mne.Annotations([0], [60], ["BAD_all"]))
    with pytest.raises(BadInput, match="too short"):
        measure(raw, name="a", subject="s", reference="none")


def test_mne_takes_blinks_out(tmp_path: Path) -> None:
    mne = pytest.importorskip("mne")
    raw = recording(mne, np.exp(PLANTED))
    blinks = np.zeros(raw.n_times)
    for start in range(500, raw.n_times - 200, 900):
        blinks[start : start + 75] += 3e-4 * np.hanning(75)
    weights = np.array([1 if name.startswith("Fp") else 0.5 if name.startswith("F") else 0.1 for name in CHANNELS])
    eog = mne.io.RawArray(
        blinks[None] + 1e-6 * np.random.default_rng(9).normal(size=(1, raw.n_times)),
        mne.create_info(["EOG"], RATE_HZ, "eog"),
        verbose="error",
    )
    dirty = mne.io.RawArray(raw.get_data() + weights[:, None] * blinks, raw.info, verbose="error")
    dirty.add_channels([eog], force_update_info=True)
    found = measure(dirty, name="a", subject="s", reference="none")
    assert found.faa == pytest.approx(PLANTED, abs=0.15)

"""The sweep: scores, failures, what is repeated and what is not, the range test."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import events_of, redheart, weights_digest

from redheart.core.config import FeatureConfig, PrepareConfig, StudyConfig, SweepConfig, resolved
from redheart.core.errors import BadInput, Diverged
from redheart.study import phases, range_test, run_folder, sweep
from redheart.study.run_folder import RunFolder
from redheart.study.sweep import finished_trial, score
from redheart.train.log.events import EventLog

TINY = [
    *("--prepare.num-generated", "100", "--features.encoder", "hash", "--train.strategy", "plain"),
    *("--train.effective-batch", "16", "--train.num-threads", "1", "--sweep.epochs", "2"),
]


def test_the_score_is_the_mean_of_the_last_epochs_and_the_gap_only_if_asked_for() -> None:
    val, fit = [9.0, 3.0, 2.0, 1.0], [9.0, 2.0, 4.0, 1.0]
    assert score(SweepConfig(), val, fit) == 2.0
    assert score(SweepConfig(gap_weight=0.1), val, fit) == pytest.approx(2.0 + 0.1 * (1 + 2 + 0) / 3)
    assert score(SweepConfig(score_epochs=1), val, fit) == 1.0
    assert score(SweepConfig(), val[:1], fit[:1]) == 9.0


@pytest.mark.parametrize(
    "sweep",
    [
        SweepConfig(rates=()),
        SweepConfig(rates=(1e-4, 1e-4)),
        SweepConfig(rates=(0.0,)),
        SweepConfig(rates=(math.nan,)),
        SweepConfig(score_epochs=0),
        SweepConfig(gap_weight=math.nan),
        SweepConfig(range_test_steps=-1),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(sweep: SweepConfig) -> None:
    with pytest.raises(BadInput, match="sweep"):
        resolved(StudyConfig(sweep=sweep))


def test_one_diverges_the_other_wins_and_a_second_call_repeats_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # With states at every step, so that the diverged one has left some.
    arguments = ("sweep", *TINY, "--sweep.rates", "1e3", "1.23456789e-4", "--train.state-every-steps", 1, "--out", run)
    done = redheart(*arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "sweep" / "sweep.json").read_text())
    # The rate as it was given, to the last digit.
    assert result["best_rate"] == 1.23456789e-4
    failed, best = result["trials"]
    assert failed["score"] is None and failed["status"].startswith("failed: the loss or its gradient was not finite")
    assert "rate 1000.0: failed: the loss or its gradient was not finite" in done.stdout
    assert best["score"] == pytest.approx(sum(best["val_loss"]) / 2)
    rows = list(csv.DictReader((run / "sweep" / "rate_0.000123456789.csv").open()))
    assert [float(row["val_loss"]) for row in rows] == best["val_loss"]
    assert {item.name for item in (run / "sweep").glob("*.png")} == {"sweep.png"}
    # A trial leaves its log; its states are nobody's.
    assert not list((run / "sweep").rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("events.jsonl")}
    again = redheart(*arguments)
    assert again.returncode == 0 and {path: path.stat().st_mtime_ns for path in before} == before


def test_a_sweep_of_which_every_rate_diverges_has_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StudyConfig(
        out=tmp_path / "run",
        prepare=PrepareConfig(num_generated=60),
        features=FeatureConfig(encoder="hash", seq_len_tokens=8),
        sweep=SweepConfig(rates=(1e3,)),
    )
    study = phases.open_study(resolved(config), run_folder.start(resolved(config)))
    # As a trial that has diverged leaves its folder.
    monkeypatch.setattr(sweep, "_run_process", lambda folder, arguments: None)
    with pytest.raises(Diverged, match="every learning rate of the sweep failed"):
        sweep.run_sweep(study)


def test_a_trial_whose_log_is_torn_is_not_finished_and_ends_no_sweep(tmp_path: Path) -> None:
    config, path = SweepConfig(epochs=2), tmp_path / "events.jsonl"
    with EventLog(path, length_bytes=0) as log:
        log.write("start", key="k")
        for epoch in (1, 2):
            log.write("epoch", epoch=epoch, val_loss=1.0, train_loss=1.0)
    found = finished_trial(config, 1e-4, tmp_path, key="k")
    assert found and found.score == 1.0 and not finished_trial(config, 1e-4, tmp_path, key="other")
    content = path.read_bytes()
    # As a power failure leaves it: no state is there that made sure of the log.
    path.write_bytes(content[:-300] + b"\0" * 299 + b"\n")
    assert finished_trial(config, 1e-4, tmp_path, key="k") is None


def test_the_main_run_is_the_same_with_and_without_a_range_test_and_a_sweep_before_it(tmp_path: Path) -> None:
    rate, epochs = "1e-3", ("--epochs", 2)
    sweep = (*TINY, "--sweep.rates", rate, "--sweep.range-test-steps", "25")
    swept, direct = tmp_path / "swept", tmp_path / "direct"
    done = redheart("sweep", *sweep, "--out", swept)
    assert done.returncode == 0 and "range test: steepest at" in done.stdout, done.stderr
    found = json.loads((swept / "sweep" / "range_test.json").read_text())
    assert found["rates"][0] == pytest.approx(1e-4) and found["rates"][-1] == pytest.approx(1e-1)
    assert len(found["rates"]) == 25 == len((swept / "sweep" / "range_test.csv").read_text().splitlines()) - 1
    assert (swept / "sweep" / "range_test.png").is_file()
    assert redheart("train", *sweep, *epochs, "--out", swept).returncode == 0
    assert redheart("train", *TINY, "--train.learning-rate", rate, *epochs, "--out", direct).returncode == 0
    assert weights_digest(swept) == weights_digest(direct)
    # And the trial was the beginning of it.
    trial = events_of(swept / "sweep" / "rate_0.001" / "events.jsonl")
    main = events_of(swept / "train" / "events.jsonl")
    assert [event for event in trial if event["event"] == "step"] == [e for e in main if e["event"] == "step"]


RATES = [10.0 ** (step / 20 - 6) for step in range(100)]


def test_a_range_test_finds_the_slope_the_bottom_and_the_rise() -> None:
    losses: list[float | None] = [
        1.0 if rate < 1e-4 else 0.5 if rate < 1e-3 else 0.6 if rate < 1e-2 else 5.0 for rate in RATES
    ]
    found = range_test.judge("key", RATES, losses, candidates=[1e-4, 5e-2])
    assert 8e-5 <= found.steepest < 3e-4 and 3e-4 < found.lowest <= 3e-3
    assert found.diverges is not None and 1e-2 <= found.diverges < 2e-2
    assert found.beyond == [5e-2] and "candidates beyond: 0.05" in str(found)


def test_a_range_test_that_ends_in_no_number_diverges_there() -> None:
    losses: list[float | None] = [*[1.0 - step / 200 for step in range(60)], None, None]
    found = range_test.judge("key", RATES[:62], losses, candidates=[])
    assert found.diverges == RATES[60] and found.lowest == RATES[59]


@given(st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=40))
def test_any_curve_is_judged(losses: list[float | None]) -> None:
    found = range_test.judge("key", RATES[: len(losses)], losses, candidates=[1e-5])
    assert found.steepest <= found.lowest <= (found.diverges or math.inf)


@pytest.mark.parametrize("is_here", [True, False])
def test_a_trial_finds_modules_in_the_current_folder_only_if_its_sweep_does(
    is_here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def start(command: list[str]) -> subprocess.Popen[bytes]:
        how = command[: command.index("-m")]
        return subprocess.Popen([*how, "-c", "import statistics; print(statistics.__file__)"])

    (tmp_path / "statistics.py").touch()
    monkeypatch.chdir(tmp_path)
    others = [item for item in sys.path if item]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *others] if is_here else others)
    monkeypatch.setattr(sweep, "start", start)
    sweep._run_process(RunFolder(tmp_path), [])
    assert (Path(capfd.readouterr().out.strip()).parent == tmp_path) == is_here

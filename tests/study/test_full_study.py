"""The whole study in calls: what a call runs, how it ends, what it leaves; and really cut, to the same end."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import PLAIN, ROOT, SMALL, assert_same_end, environment, launch

from redheart.core.errors import BadInput
from redheart.study import sweep
from redheart.study.run_folder import load

sys.path.append(str(ROOT / "benchmarks"))
import full_study
import held
import vram
from study import found_by

SCRIPT = ["bash", "benchmarks/full_study.sh"]
STUB = """#!/bin/bash
# In place of Python: notes what it is called with, and does what a variable of the command's name says.
shift $([ "${1##*/}" = held.py ] && echo 2 || echo 1)
echo "$*" >> "$CALLS"
[ "$1" != plan ] || echo --train.micro-batch 8
[ "$1" = plan ] || [ "$1" = results ] || [ -n "$STUCK" ] || mktemp "$RUN/made.XXXX" > /dev/null
what=DO_${1//-/_}
eval "${!what}"
"""
ALL = ["plan", "sweep", "train", "sweet-spot", "crossover", "calibrate", "evaluate", "report", "results"]


def call(folder: Path, *arguments: str, **variables: str) -> tuple[int, list[list[str]]]:
    """A call of the script with the stub: its exit code, and every command of Python's."""
    stub, calls, run = folder / "python", folder / "calls", folder / "run"
    stub.write_text(STUB)
    stub.chmod(0o755)
    calls.unlink(missing_ok=True)
    given = {"PYTHON": str(stub), "CALLS": str(calls), "RUN": str(run), "RESULTS": str(folder / "results")}
    done = subprocess.run(
        [*SCRIPT, "records.json", str(run), *arguments],
        cwd=ROOT,
        env=os.environ | given | {"STUCK": ""} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, [line.split() for line in calls.read_text().splitlines()] if calls.exists() else []


def test_all_parts_run_in_turn_and_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    code, calls = call(tmp_path, "--", "--seed", "3", EPOCHS="1", DO_calibrate="exit 2")
    assert code == 0 and [words[0] for words in calls] == ALL
    options = ["--preset", "full", "--epochs", "1", "--train.state-every-minutes", "3", "--seed", "3"]
    assert calls[0][-len(options) :] == options
    chosen = ["--data", "records.json", "--out", str(tmp_path / "run"), "--train.micro-batch", "8"]
    assert calls[1] == ["sweep", *chosen, *options]
    assert calls[2][1:] == calls[1][1:]
    # A finished run, its choice and its test.
    log = tmp_path / "run" / "train" / "events.jsonl"
    log.parent.mkdir()
    log.write_text('{"event": "epoch"}\n{"event": "end"}\n')
    for name in ("select/sweet_spot.json", "select/maps.json", "select/crossover.json", "evaluation/evaluation.json"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()
        os.utime(tmp_path / "run" / name, ns=(0, len(name) + (10**9 if "evaluation" in name else 0)))
    for number, name in enumerate(("sweet_spot", "maps", "crossover")):
        os.utime(tmp_path / "run" / "select" / f"{name}.json", ns=(0, 10**6 + number))
    code, calls = call(tmp_path, EPOCHS="1")
    assert code == 0 and [words[0] for words in calls] == ["plan", "calibrate", "report", "results"]
    # More epochs are trained, new snapshots chosen from.
    (tmp_path / "run" / "train" / "snapshots").mkdir()
    code, calls = call(tmp_path, EPOCHS="2")
    assert [words[0] for words in calls][:3] == ["plan", "train", "sweet-spot"]


def test_a_part_alone_and_a_rate_that_is_given(tmp_path: Path) -> None:
    assert [words[0] for words in call(tmp_path, "sweep")[1]] == ["plan", "sweep", "results"]
    code, calls = call(tmp_path, "train", RATE="1e-4", PRESET="small")
    assert code == 0 and calls[1][-2:] == ["--train.learning-rate", "1e-4"] and "small" in calls[1]
    assert [words[0] for words in call(tmp_path, RATE="1e-4")[1]] == [name for name in ALL if name != "sweep"]
    assert [words[0] for words in call(tmp_path, "after")[1]] == ALL[3:]
    assert call(tmp_path, "all of it") == (2, []) and call(tmp_path, "train", "--seed", "3") == (2, [])


@pytest.mark.parametrize(
    ("done", "code"),
    [
        ("exit 75", 75),
        ("exit 143", 75),  # stopped before it had anything to save
        ("exit 137", 137),
        ("exit 3", 3),
        ("trap 'kill $!; exit 75' TERM; sleep 20 & wait", 75),
        ("trap '' TERM; exec sleep 20", 137),
    ],
)
def test_a_call_ends_as_its_command_and_never_later_than_its_limit(tmp_path: Path, done: str, code: int) -> None:
    limits = {"LIMIT_S": "4", "SAVE_S": "1", "WRITE_S": "1"} if "sleep" in done else {}
    found, calls = call(tmp_path, DO_train=done, **limits)
    assert found == code and [words[0] for words in calls] == ["plan", "sweep", "train", "results"]


def test_a_call_that_nothing_came_of_is_no_reason_for_another(tmp_path: Path) -> None:
    assert call(tmp_path, DO_sweep="exit 75", STUCK="1")[0] == 1
    assert call(tmp_path, LIMIT_S="100")[0] == 1
    assert call(tmp_path, DO_results="exit 74")[0] == 1


def test_a_new_folder_goes_on_with_the_sweep_of_the_results(tmp_path: Path) -> None:
    kept = tmp_path / "results" / "sweep" / "rate_0.1" / "events.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("whole")
    (tmp_path / "results" / "config.json").write_text("settings")
    assert call(tmp_path, "train")[0] == 0
    assert (tmp_path / "run" / "sweep" / "rate_0.1" / "events.jsonl").read_text() == "whole"
    (tmp_path / "run" / "config.json").write_text("this run's")
    assert call(tmp_path, "train")[0] == 0 and (tmp_path / "run" / "config.json").read_text() == "this run's"


def test_no_file_of_the_results_is_too_large(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    log, noise = b"the same line\n" * 100, os.urandom(1001)
    assert full_study.keep(tmp_path, Path("log"), log, max_bytes=1400) == 1400 and names() == {"log"}
    packed = full_study.keep(tmp_path, Path("log"), log, max_bytes=1399)
    assert names() == {"log.gz"} and packed == (tmp_path / "log.gz").stat().st_size < 100
    assert gzip.decompress((tmp_path / "log.gz").read_bytes()) == log
    assert full_study.keep(tmp_path, Path("log"), noise, max_bytes=1000) is None and names() == set()


def test_results_hold_what_a_run_tells_so_far(run_copy: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    full_study.collect(run_copy, results)
    study, measured = (json.loads((results / f"{name}.json").read_text())["result"] for name in ("study", "measured"))
    evaluation = json.loads((run_copy / "evaluation" / "evaluation.json").read_text())
    assert study["evaluation"]["digests"] == evaluation["digests"] and len(study["epochs"]) == 4
    assert measured["measured"]["num_steps"] > 0 and measured["planned"] is None
    assert (results / "report" / "report.md").read_bytes() == (run_copy / "report" / "report.md").read_bytes()
    assert json.loads((results / "left_out.json").read_text()) == []
    assert not [path for path in results.rglob("*") if path.suffix in (".safetensors", ".f16", ".bin", ".lock")]

    (run_copy / "select" / "crossover.json").unlink()
    assert found_by(load(run_copy)[0], so_far=True)["crossover"] is None
    with pytest.raises(BadInput, match="not finished"):
        found_by(load(run_copy)[0])


def test_what_was_planned_stands_beside_what_was_measured(tmp_path: Path) -> None:
    run, results = tmp_path / "run", tmp_path / "results"
    (run / "train").mkdir(parents=True)
    results.mkdir()
    epoch = {"event": "epoch", "epoch_s": 5.0, "validation_s": 0.5, "host_rss_peak_bytes": 90, "device_peak_bytes": 7}
    steps = [{"event": "step", "step_s": seconds} for seconds in (9.0, 1.0, 4.0)]
    # Another process went on.
    log = [{"event": "start"}, *steps, epoch, {"event": "start"}, {"event": "step", "step_s": 8.0}]
    (run / "train" / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in log))
    peaks = [{"device_process_bytes": None}, {"device_process_bytes": 30}, {"device_process_bytes": 20}]
    (results / "peaks.jsonl").write_text("".join(f"{json.dumps(peak)}\n" for peak in peaks))
    moments = {"step": {"allocated_bytes": 6}, "forward": {"allocated_bytes": 8}}
    plan = {"peak_bytes": 31, "upper_bytes": 35, "host_bytes": 88, "moments": moments, "step_s": None}
    plan["on_card"] = {"card": "H100", "step": {"step_s": 2.0, "low_s": 1.0, "high_s": 3.0}}
    (results / "plan.json").write_text(json.dumps({"device": "H100", "plan": plan}))
    found = full_study.measured(run, results)
    assert found["measured"] == {
        **{"device_process_bytes": 30, "device_allocated_bytes": 7, "host_rss_bytes": 90},
        **{"step_s": 2.5, "num_steps": 2, "epoch_s": 5.0, "validation_s": 0.5},
    }
    assert found["planned"] == {
        **{"device_process_bytes": 31, "device_process_at_most_bytes": 35, "device_allocated_bytes": 8},
        **{"host_rss_bytes": 88, "step_s": (2.0, 1.0, 3.0, "simulated, H100")},
    }


def test_every_process_that_computes_is_held_and_leaves_its_peaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_bytes, fractions, started = [], [], []
    monkeypatch.setattr(sweep, "start", sweep.start)
    monkeypatch.setattr(held, "main", lambda arguments: sweep.start(["PYTHON", "-m", "redheart", "trial", "--run"]))
    monkeypatch.setattr(held, "Popen", started.append)
    monkeypatch.setattr(held.probe, "measure", lambda: {"host_rss_bytes": 5})
    monkeypatch.setenv("HELD_PEAKS", str(tmp_path / "peaks.jsonl"))
    with monkeypatch.context() as patch:
        patch.setattr(vram, "hold", held_bytes.append)
        held.held("8GiB", ["sweep"])
        held.held("8GiB", ["train"])
    assert held_bytes == [8 << 30] and started == 2 * [[sys.executable, held.__file__, "8GiB", "trial", "--run"]]
    lines = [json.loads(line) for line in (tmp_path / "peaks.jsonl").read_text().splitlines()]
    assert [(line["command"], line["host_rss_bytes"]) for line in lines] == [("sweep", 5), ("train", 5)]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    monkeypatch.setattr(vram, "measure_overhead", lambda: (2 << 30, "measured"))
    assert vram.hold(8 << 30) == (2 << 30, "measured") and fractions == [6 / 80]


def test_hours_and_calls_are_those_of_the_planned_step() -> None:
    step = {"step_s": 1.0, "low_s": 0.5, "high_s": 2.0}
    fields = {"on_card": {"card": "H100", "step": step}, "step_s": None}
    text = full_study.estimate_text(fields, 60, 110, call_s=400)
    assert "1.83 hours (0.92 to 3.67)" in text and "17 calls" in text and "simulated, H100" in text
    assert "has not taken such steps" in full_study.estimate_text({"on_card": None, "step_s": None}, 60, 110, call_s=9)


@pytest.mark.long
def test_cut_by_its_limit_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    options = [*SMALL[: SMALL.index("--train.learning-rate")], *SMALL[SMALL.index("--train.effective-batch") :]]
    options += ["--train.strategy", "plain", "--sweep.rates", "1e-3", "--sweep.epochs", "1", "--train.num-threads", "1"]
    given = {"PYTHON": sys.executable, "PRESET": "tiny", "EPOCHS": "60", "SAVE_S": "20", "WRITE_S": "20"}
    run, codes = tmp_path / "run", []
    # Every call has more time than the one before: on any machine the first is cut, and one of them is the last.
    for limit_s in range(60, 600, 40):
        command = [*SCRIPT, "generated", str(run), "--", *options]
        done = launch(command, env=environment() | given | {"LIMIT_S": str(limit_s)})
        codes.append(done.returncode)
        if done.returncode == 0:
            break
    assert codes[-1] == 0 and 75 in codes, (codes, done.stderr)
    results = tmp_path / "run-results"
    study = json.loads((results / "study.json").read_text())["result"]
    assert len(study["epochs"]) == 60 and study["evaluation"] and study["sweep"]["best_rate"] == 1e-3
    commands = [json.loads(line)["command"] for line in (results / "peaks.jsonl").read_text().splitlines()]
    assert "trial" in commands and commands.count("train") + commands.count("sweep") > 2

    # A new machine has nothing but the results: the rate is there, and the run is the same.
    for name, part in (("again", ["train"]), ("direct", [])):
        out = tmp_path / name
        given |= {"LIMIT_S": "600", "RESULTS": str(results)}
        if part:
            done = launch([*SCRIPT, "generated", str(out), *part, "--", *options], env=environment() | given)
        else:
            rate = ["--train.learning-rate", "1e-3"]
            done = launch(PLAIN, *options, *rate, "--epochs", 60, "--out", out)
        assert done.returncode == 0, done.stderr
        if name == "direct":
            assert_same_end(run, out)
            assert_same_end(tmp_path / "again", out)

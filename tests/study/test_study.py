"""The whole study from the command line, its restarts and its errors."""

import json
import resource
import shutil
import time
from pathlib import Path

import pytest
from launching import LAUNCHERS, PYTHON, SMALL, WHOLE_STUDY, environment, launch, redheart, weights_digest

from redheart.cli import main
from redheart.train.log.events import all_events


def test_run_goes_from_records_to_report_and_again_to_the_same(whole_study: Path, tmp_path: Path) -> None:
    assert (whole_study / "stderr").read_text().strip() == ""
    run = shutil.copytree(whole_study / "run", tmp_path / "run")
    report = (run / "report" / "report.md").read_text()
    assert "## Crossover" in report and "This phase has not run" not in report.split("## Training")[1]
    assert {item.name for item in (run / "report" / "figures").iterdir()} >= {"loss.png", "modules.png"}
    before = weights_digest(run)
    again = redheart(*WHOLE_STUDY, "--out", run)
    assert again.returncode == 0 and weights_digest(run) == before
    opened = json.loads((run / "openings.json").read_text())["openings"]
    openings = [item["part"] for item in opened]
    assert openings.count("test") == 1 and openings.count("val_confirm") <= 2
    # A log that is handed on tells nothing about the machine.
    assert all(str(whole_study) not in item["command"] and "--out RUN" in item["command"] for item in opened)

    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert set(evaluation["models"]) == {"crossover", "best_single"} and len(evaluation["baselines"]) == 3
    for command in (("sweet-spot", run, "--strategy", "uniform", "--json"), ("crossover", run, "--json")):
        shown = redheart(*command)
        assert shown.returncode == 0, shown.stderr
        assert set(json.loads(shown.stdout)["modules"]) == set(json.loads(done_modules(run)))

    unseen = tmp_path / "unseen.json"
    unseen.write_text(json.dumps([generated_row(index) for index in range(30)]))
    shown = redheart("evaluate", run, "--data", unseen, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["num_records"] == 30


def done_modules(run: Path) -> str:
    return json.dumps(json.loads((run / "select" / "sweet_spot.json").read_text())["modules"])


def generated_row(index: int) -> dict[str, object]:
    return {"id": f"u{index}", "text": f"I was furious at my boss, {index} days ago.", "label": index % 7}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    done = launch(PYTHON, *SMALL, "--epochs", 2, "--out", run)
    assert done.returncode == 0, done.stderr[-2000:]
    return weights_digest(run)


@pytest.mark.parametrize("name", ["accelerate", "deepspeed"])
def test_launchers_give_the_same_bytes(name: str, unbroken: dict[str, str], tmp_path: Path) -> None:
    done = launch(LAUNCHERS[name], *SMALL, "--epochs", 2, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights_digest(tmp_path / "run") == unbroken


def test_leftovers_of_launchers_change_nothing_and_are_named_once(unbroken: dict[str, str], tmp_path: Path) -> None:
    leftovers = {
        "RANK": "0",
        "MASTER_PORT": "none",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "SLURM_PROCID": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "ACCELERATE_USE_CPU": "true",
    }
    done = launch(PYTHON, *SMALL, "--epochs", 2, "--out", tmp_path / "run", env=environment() | leftovers)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.startswith("note: RANK=0, MASTER_PORT=none without the rest of a launcher's variables")
    assert done.stderr.count("\n") == 1
    assert weights_digest(tmp_path / "run") == unbroken


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "--data", "none.json"), 2, "file not found"),
        (("run", "--preset", "huge"), 2, "preset"),
        (("run", "--no-such-option"), 2, "no-such-option"),
        (("fly",), 2, "unknown command"),
        (
            ("run", "--train.strategy", "zero9", "--train.learning-rate", "1e-3", "--features.encoder", "hash"),
            2,
            "zero9",
        ),
        (("run", "--features.encoder", "/no/such/encoder"), 2, "the encoder cannot be loaded"),
        (("run", "--select.strategy", "coordinat", "--train.learning-rate", "1e-3"), 2, "unknown selection strategy"),
        (("run", "--features.seq-len-tokens", "513"), 2, "features.seq_len_tokens"),
        (("run", "--features.seq-len-tokens", "0"), 2, "features.seq_len_tokens = 0"),
        (("run", "--config", "none.toml"), 2, "configuration file not found"),
        (("run", "--epochs", "0"), 2, "epochs"),
        (("train", "--features.encoder", "hash"), 2, "no learning rate"),
        (("report", "none"), 2, "no run in this folder"),
        (("evaluate", "none"), 2, "no run in this folder"),
        (("prepare", "none.json", "--out", "x"), 2, "file not found"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    done = redheart(*arguments, *out_of(arguments, tmp_path))
    assert done.returncode == code, done.stderr
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def out_of(arguments: tuple[str, ...], tmp_path: Path) -> tuple[str, ...]:
    return ("--out", str(tmp_path / "run")) if arguments[0] in ("run", "train") else ()


def test_a_folder_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    first = redheart("train", *SMALL, "--epochs", 1, "--train.strategy", "plain", "--out", tmp_path / "run")
    assert first.returncode == 0, first.stderr
    other = redheart("train", *SMALL, "--seed", 1, "--train.strategy", "plain", "--out", tmp_path / "run")
    assert other.returncode == 2 and "seed was 0, is 1" in other.stderr


@pytest.mark.parametrize("is_link", [False, True])
def test_the_records_of_a_run_are_not_prepared_anew(
    is_link: bool, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_link:
        (run_copy / "data").rename(run_copy.with_name("disk"))
        (run_copy / "data").symlink_to(run_copy.with_name("disk"))
    before = (run_copy / "data" / "manifest.json").read_bytes()
    (run_copy / "one.json").write_text('[{"id": "a", "text": "b"}]')
    with pytest.raises(SystemExit) as ended:
        main(["prepare", str(run_copy / "one.json"), "--out", str(run_copy / "data")])
    assert ended.value.code == 2 and "the run's own files" in capsys.readouterr().err
    assert (run_copy / "data" / "manifest.json").read_bytes() == before


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        start_s = time.perf_counter()
        assert redheart("--help", real=True).returncode == 0
        seconds.append(time.perf_counter() - start_s)
    assert min(seconds) < 0.5


@pytest.mark.real_data
def test_real_records_load_as_they_are(real_records: Path) -> None:
    from redheart.data.records import read_rows
    from redheart.data.schemas import parse_rows

    kind, rows = read_rows(real_records)
    parsed = parse_rows(real_records, kind, rows)
    assert len(parsed.records) == 8858 and not parsed.problems
    assert parsed.inventory.task("surd").targets == ("selection", "uncertainty", "risk", "decision")


def test_a_full_disk_ends_with_74_and_nothing_half_written(tmp_path: Path) -> None:
    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    run = tmp_path / "run"
    arguments = ("train", *SMALL, "--train.strategy", "plain", "--out", run)
    # The limit is asked for before a run; a disk that fills up in between is not.
    done = redheart(*arguments, "--force", preexec_fn=no_large_files)
    assert done.returncode == 74, done.stderr
    assert "cannot write" in done.stderr and "Traceback" not in done.stderr
    assert str(run / "features") in done.stderr
    left = [item for item in (run / "features").rglob("*") if item.is_file() and not item.name.endswith(".lock")]
    assert not [item for item in left if ".partial" not in str(item)]
    # Once there is room again the same command goes on.
    assert redheart(*arguments, "--epochs", 1).returncode == 0


def test_nothing_but_our_own_lines_reaches_the_terminal(tmp_path: Path) -> None:
    done = redheart("train", *SMALL, "--epochs", 1, "--out", tmp_path / "run", real=True)
    assert done.returncode == 0
    assert done.stderr.strip() == ""
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    words = [line.split()[0] for line in lines]
    # How long it will take is said at once where it is known from runs before.
    assert words[0] == "plan" and words[-2:] == ["epoch", "time"] and set(words) == {"plan", "prepare", "time", "epoch"}


def test_json_lines_are_all_that_machines_get(tmp_path: Path) -> None:
    done = redheart("train", *SMALL, "--epochs", 1, "--train.progress", "json", "--out", tmp_path / "run")
    assert done.returncode == 0 and done.stderr.strip() == ""
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told[0]["event"] == "plan"
    assert told[1:] == all_events(tmp_path / "run" / "train" / "events.jsonl")

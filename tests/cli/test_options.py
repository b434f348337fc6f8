"""Arguments as people write them and as W&B's agent sends them."""

import io
import json
import re
import sys
from pathlib import Path

import pytest

from redheart.cli import main
from redheart.cli.options import print_json, spelled_out
from redheart.cli.study import _study, _typed
from redheart.core.config import StudyConfig, TrainConfig, resolved
from redheart.core.errors import BadInput
from redheart.predict.cards import json_line
from redheart.predict.predictor import Prediction
from redheart.study import phases, run_folder
from redheart.study.run_folder import RunFolder

SIGNS = "감정 é 😀"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--train.checkpointing=True"], ["--train.checkpointing"]),
        (["--train.checkpointing=False"], ["--train.no-checkpointing"]),
        (["--train.checkpointing", "True", "--seed", "1"], ["--train.checkpointing", "--seed", "1"]),
        (["--prepare.skip_invalid=true"], ["--prepare.skip-invalid"]),
        (["--prepare.skip-invalid"], ["--prepare.skip-invalid"]),
        (["--train.learning-rate=1e-05", "--data="], ["--train.learning-rate=1e-05", "--data="]),
        (["--data", "True"], ["--data", "True"]),
        (["--sweep.rates=[0.0003, 0.001]", "--seed=1"], ["--sweep.rates", "0.0003", "0.001", "--seed=1"]),
        (["--data=[a, b]"], ["--data=[a, b]"]),
        (["--train.checkpointing=maybe"], ["--train.checkpointing=maybe"]),
    ],
)
def test_a_flag_with_a_value_is_the_flag(given: list[str], expected: list[str]) -> None:
    assert spelled_out(given, StudyConfig) == expected


def test_the_advice_of_our_own_messages_is_understood() -> None:
    # As `nearest_text` and the out-of-memory error write it.
    arguments = ["--train.micro-batch", "8", "--train.checkpointing", "True", "--train.learning-rate=5e-05"]
    train = _study(arguments, "train").train
    assert (train.micro_batch, train.checkpointing, train.learning_rate) == (8, True, 5e-5)


def test_agent_s_arguments_give_the_configuration_that_people_s_give() -> None:
    by_agent = _study(
        [
            *("--train.learning-rate=1e-05", "--train.checkpointing=False", "--prepare.num-generated=160"),
            *("--sweep.rates=[1e-05, 0.0003]", "--epochs=3"),
        ],
        "t",
    )
    by_hand = _study(
        [
            *("--train.learning-rate", "1e-5", "--prepare.num-generated", "160"),
            *("--sweep.rates", "1e-5", "3e-4", "--epochs", "3"),
        ],
        "t",
    )
    assert by_agent == by_hand


def test_with_a_rate_there_is_nothing_to_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", "--force", "--train.learning-rate", "1e-3", "--out", str(tmp_path / "run")])
    assert "learning rate 0.001 is given" in capsys.readouterr().out
    # The training that comes behind it starts its folder.
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--config", "--recipe"])
def test_a_run_that_is_there_has_its_settings(option: str) -> None:
    for given in ([option, "none"], [f"{option}=none"]):
        with pytest.raises(BadInput, match=f"has its settings\n.*{option}"):
            _study(["--run", "run", *given], "train")


@pytest.mark.parametrize("option", ["--run", "--config", "--recipe", "--preset"])
def test_an_option_with_an_empty_value_is_not_one_that_was_left_out(option: str) -> None:
    for given in ([option, ""], [f"{option}="], [option]):
        with pytest.raises(BadInput, match=f"{option} needs a value"):
            _study(["--seed", "1", *given], "train")


def test_what_stands_in_the_arguments_is_an_option_and_no_value() -> None:
    assert _typed(["--run", "R", "--data", "epochs", "--out", "select", "--features.encoder", "config"]) == []
    assert _typed(["--data", "epochs", "--select.strategy", "window"]) == ["select"]


def test_without_a_rate_the_sweep_that_is_named_can_be_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="`redheart sweep` with the same options"):
        phases.best_rate(RunFolder(tmp_path / "new"))
    folder = run_folder.start(resolved(StudyConfig(out=tmp_path / "run")))
    with pytest.raises(BadInput, match=f"`redheart sweep --run {folder.root}`"):
        phases.best_rate(folder)


@pytest.mark.parametrize("form", ["bar", "json", "off"])
def test_progress_off_is_no_line_at_all(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    phases.say(StudyConfig(train=TrainConfig(progress=form)), "train", "done")  # type: ignore[arg-type]
    expected = {"bar": "train      done\n", "json": '{"event": "train", "text": "done"}\n', "off": ""}
    assert capsys.readouterr().out == expected[form]


def test_a_report_is_answered_for_machines_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("redheart.study.run_folder.load", lambda root: (RunFolder(root), None))
    monkeypatch.setattr("redheart.report.report.make_report", lambda root: root / "report.md")
    main(["report", str(tmp_path), "--json"])
    paths = {"report": str(tmp_path / "report.md"), "html": str(tmp_path / "report.html")}
    assert json.loads(capsys.readouterr().out) == paths
    main(["report", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == list(paths.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranks", "0"], r"where: +--ranks\n"),
        (["--epochs", "0"], "epochs = 0"),
        (["--card-share", "7"], r"train\.card_share = 7\.0"),
        (["--card-share", "nan"], r"train\.card_share = nan"),
        (["--vram", "9" * 400], "not a size of device memory"),
        (["--reserve", "9" * 400 + "GiB"], "not a size of device memory"),
    ],
)
def test_a_plan_of_what_cannot_be_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--preset", "tiny", *arguments])
    assert ended.value.code == 2 and re.search(words, capsys.readouterr().err)


def test_json_for_machines_is_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", file)
    print_json({"name": SIGNS})
    print(json_line(Prediction(SIGNS, {"emotion": {SIGNS: 0.5}}), ascii_only=True))
    file.seek(0)
    shown, predicted = map(json.loads, file.read().splitlines())
    assert shown == {"name": SIGNS} and predicted == {"id": SIGNS, "emotion": {SIGNS: 0.5}}


def test_evaluate_hands_on_where_the_encoder_lies_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*_: object, encoder: str | None, **__: object) -> None:
        raise BadInput(f"opened with {encoder}")

    monkeypatch.setattr("redheart.study.run_folder.opened", opened)
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--encoder", "there"])
    assert "opened with there" in capsys.readouterr().err

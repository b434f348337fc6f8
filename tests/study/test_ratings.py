"""Ratings of people beside a run's predictions, from the command line."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redheart.cli import main
from redheart.core.errors import BadInput
from redheart.data.prepare import load_prepared
from redheart.data.rating_table import read_ratings
from redheart.study.final import open_run
from redheart.study.ratings import predicted_affect, rate


def test_subjects_who_follow_the_prediction_are_found(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = load_prepared(finished_run / "data")
    records = [prepared.records[row] for row in prepared.split["val_select"]]
    values = [predicted_affect(item.tasks)["valence"] for item in open_run(finished_run).predict(records)]
    lines = ["id,subject,valence,sadness"]
    for subject, scale in (("a", 1.0), ("b", 50.0)):
        lines += [
            f"{record.id},{subject},{scale * value},{index}"
            for index, (record, value) in enumerate(zip(records, values, strict=True))
        ]
    trained = prepared.records[prepared.split["train"][0]].id
    lines += [f"{trained},a,0.5,", "unknown,a,0.5,1"]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    main(["ratings", str(finished_run), "--csv", str(tmp_path / "r.csv"), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["num_texts"] == len(records) and shown["num_rows_left_out"] == 2
    valence = shown["measures"]["valence"]
    assert valence["rho"] > 0.99 and valence["num_subjects"] == 2
    main(["ratings", str(finished_run), "--csv", str(tmp_path / "r.csv")])
    assert "80 % power" in capsys.readouterr().out


def test_texts_of_their_own(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [{"id": f"t{index}", "text": f"I was glad {index} times"} for index in range(6)]
    (tmp_path / "t.json").write_text(json.dumps(texts))
    (tmp_path / "r.csv").write_text("id,subject,arousal\n" + "".join(f"t{index},s,{index}\n" for index in range(6)))
    main(
        ["ratings", str(finished_run), "--csv", str(tmp_path / "r.csv"), "--texts", str(tmp_path / "t.json"), "--json"]
    )
    assert json.loads(capsys.readouterr().out)["num_texts"] == 6
    (tmp_path / "t.json").write_text(json.dumps([*texts, texts[0]]))
    with pytest.raises(BadInput, match=r"several texts\n.*\n.*t0"):
        rate(finished_run, tmp_path / "r.csv", texts=tmp_path / "t.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks a column"),
        ("id,subject\na,b\n", "lacks a column"),
        ("id,subject,valence\n", "no row"),
        ("id,subject,valence\na,s\n", "2 cells, expected 3"),
        ("id,subject,valence\na,s,nan\n", "expected a number"),
        ("id,subject,valence\na,s,1\na,s,2\n", "stand already at line 2"),
        ("id,subject,valence\nnobody,s,1\n", "no text of the table"),
    ],
)
def test_faults_of_a_table_are_named(
    text: str, message: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["ratings", str(finished_run), "--csv", str(tmp_path / "r.csv")])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_an_unknown_measure_is_refused_with_the_known_ones(finished_run: Path, tmp_path: Path) -> None:
    name = load_prepared(finished_run / "data")
    identity = name.records[name.split["val_select"][0]].id
    (tmp_path / "r.csv").write_text(f"id,subject,happyness\n{identity},s,1\n")
    with pytest.raises(BadInput, match=r"happyness\n.*valence"):
        rate(finished_run, tmp_path / "r.csv", texts=None)


@given(st.text(max_size=200) | st.text(alphabet='id,subject\n"1.5', max_size=100).map(lambda t: f"id,subject,x\n{t}"))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        table = read_ratings(path)
    except BadInput:
        return
    assert len(table.ids) == len(table.subjects) == len(next(iter(table.values.values())))


@pytest.mark.parametrize("changes", [{}, {"title": "", "action": ""}, {"title": "Of another file"}])
def test_texts_that_were_trained_on_are_left_out_wherever_they_come_from(
    changes: dict[str, str], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = load_prepared(finished_run / "data")
    for row in prepared.split["train"]:
        prepared.records[row] = msgspec.structs.replace(prepared.records[row], title="Why?", action="asking")
    monkeypatch.setattr("redheart.study.ratings.load_prepared", lambda _: prepared)
    trained = [prepared.records[row] for row in prepared.split["train"][:3]]
    rows = [{"text": item.text, "title": item.title, "action": item.action, **changes} for item in trained]
    rows += [{"text": f"I was glad {index} times"} for index in range(5)]
    (tmp_path / "t.json").write_text(json.dumps([{"id": f"t{index}", **row} for index, row in enumerate(rows)]))
    (tmp_path / "r.csv").write_text("id,subject,arousal\n" + "".join(f"t{i},s,{i}\n" for i in range(len(rows))))
    found = rate(finished_run, tmp_path / "r.csv", texts=tmp_path / "t.json")
    assert (found.num_texts, found.num_rows_left_out) == (5, 3)


def test_all_emotions_of_goemotions_that_have_a_sign_make_the_valence() -> None:
    valence = {
        name: predicted_affect({"emotion": {name: 0.8, "neutral": 0.2, "joy": 0.0, "anger": 0.0}})["valence"]
        for name in ("grief", "remorse", "admiration", "relief", "surprise")
    }
    assert valence == {"grief": -0.8, "remorse": -0.8, "admiration": 0.8, "relief": 0.8, "surprise": 0.0}

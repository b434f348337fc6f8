"""What a run predicts: the model's own outputs by name, in any batch, from any accepted file."""

import io
import json
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launching import launch
from rich.console import Console

from redheart.cli import main
from redheart.core.config import FeatureConfig
from redheart.core.errors import BadInput, DoesNotFit
from redheart.data.encoders import HashEncoder, open_encoder
from redheart.data.encoding import encode_texts
from redheart.data.features import make_features, widened
from redheart.data.inventory import trained_targets
from redheart.data.prepare import load_prepared
from redheart.data.records import Record, read_rows
from redheart.data.schemas import parse_rows
from redheart.data.scripts import foreign_script
from redheart.data.summary import load_fit
from redheart.data.words import Labels
from redheart.predict.cards import print_card
from redheart.predict.predictor import Prediction, Predictor
from redheart.predict.texts import read_texts
from redheart.study.final import open_run

KOREAN = "오늘 부엌에서 언니와 있을 때 나는 몹시 화났고 그랬다."


@pytest.fixture(scope="module")
def predictor(finished_run: Path) -> Predictor:
    return open_run(finished_run)


def test_predictions_are_those_of_the_evaluated_model(predictor: Predictor, finished_run: Path) -> None:
    prepared = load_prepared(finished_run / "data")
    records = [prepared.records[row] for row in prepared.split.opened()["test"]]
    outputs = predictor.outputs(records)
    emotion = prepared.values_NT[prepared.split.opened()["test"]][:, prepared.inventory.columns("emotion")]
    cross_entropy = -(emotion * np.log(outputs["emotion"])).sum(1).mean()
    found = json.loads((finished_run / "evaluation" / "evaluation.json").read_text())
    expected = found["models"][found["recommended"]]["tasks"]["emotion"]["cross_entropy"]["value"]
    # Two batches of other sizes are padded otherwise: the last bits of float32 differ.
    assert cross_entropy == pytest.approx(expected, rel=1e-5)


def test_a_batch_changes_nothing_but_the_last_bits(predictor: Predictor) -> None:
    texts = [KOREAN, "I was glad.", "At the office I was furious at my boss, " * 9, "no"]
    together, alone = predictor.predict(texts), [predictor.predict([text])[0] for text in texts]
    assert [item.id for item in together] == ["0", "1", "2", "3"]
    for one, other in zip(together, alone, strict=True):
        assert sum(one.tasks["emotion"].values()) == pytest.approx(1, abs=1e-5)
        for task, values in one.tasks.items():
            assert values == pytest.approx(other.tasks[task], abs=1e-5)


def test_one_text_is_no_list_of_its_letters(predictor: Predictor) -> None:
    with pytest.raises(BadInput, match="a list of texts"):
        predictor.predict("angry")


def test_an_encoder_that_a_device_has_no_room_for_is_refused_by_name(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, texts: list[str]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(predictor.encoder), "encode", full)
    with pytest.raises(DoesNotFit, match="the encoder"):
        predictor.predict(["a text"])


def test_title_and_action_are_read(predictor: Predictor) -> None:
    plain, titled = predictor.predict([Record("a", "I left."), Record("b", "I left.", title="Furious")])
    assert plain.tasks != titled.tasks


def test_targets_that_no_record_had_are_not_shown(finished_run: Path) -> None:
    prepared = load_prepared(finished_run / "data")
    mask_NT = prepared.mask_NT.copy()
    mask_NT[:, prepared.inventory.columns("surd")] = False
    mask_NT[:, prepared.inventory.columns("bentham").start] = False
    shown = trained_targets(mask_NT, prepared.inventory)
    assert "surd" not in shown and "intensity" not in shown["bentham"] and len(shown["bentham"]) == 9


def test_files_of_texts(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "a", "text": KOREAN, "label": 3}, {"text": "I was glad."}]
    (tmp_path / "a.json").write_text(json.dumps([*rows, "only a string"]))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "a.txt").write_text(f"{KOREAN}\n\nI was glad.\n")
    assert [record.id for record in read_texts(tmp_path / "a.json")] == ["a", "record 1", "record 2"]
    assert [record.id for record in read_texts(tmp_path / "a.jsonl")] == ["a", "line 2"]
    assert [record.text for record in read_texts(tmp_path / "a.txt")] == [KOREAN, "I was glad."]
    command = ["predict", str(finished_run), "--input", str(tmp_path / "a.jsonl")]
    main([*command, "--output", str(tmp_path / "out.jsonl")])
    assert capsys.readouterr().out.startswith("2 predictions")
    # Standard output is for a program then.
    main([*command, "--output", str(tmp_path / "out.jsonl"), "--json"])
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("2 predictions")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "line 2"]
    assert set(lines[0]) == {"id", "emotion", "bentham", "regret", "surd"}


def test_texts_that_the_encoder_does_not_read_are_marked_and_said_once(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The run's own encoder has no script that it does not read.
    other = replace(predictor, features=replace(predictor.features, encoder="minilm"))
    monkeypatch.setattr("redheart.cli.prediction.open_predictor", lambda *_, **__: other)
    monkeypatch.setattr(HashEncoder, "unread", lambda _, texts: [foreign_script(text) for text in texts])
    path = tmp_path / "a.txt"
    for number, is_said in ((1, True), (10, False)):
        path.write_text(KOREAN + "\nI was glad." * number)
        main(["predict", "run", "--input", str(path), "--json"])
        told = capsys.readouterr()
        lines = [json.loads(line) for line in told.out.splitlines()]
        assert [line.get("unread_script") for line in lines] == ["Hangul", *[None] * number]
        assert told.err.count("in Hangul") == is_said and ("--features.encoder" in told.err) == is_said


def test_all_faults_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": ""}, {"id": "x"}, 3, {"text": "fine"}, {"text": "a", "text": "b"}, {"text": "\\ud800"}]')
    with pytest.raises(BadInput, match="5 problems") as caught:
        read_texts(path)
    assert all(f"record {index}" in str(caught.value) for index in (0, 1, 2, 4, 5))


@given(st.lists(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))))
def test_any_json_array_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, rows: list[object]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(rows))
    try:
        records = read_texts(path)
    except BadInput:
        return
    assert len(records) == len(rows) and all(record.text.strip() for record in records)


LABELS = st.fixed_dictionaries(
    {"text": st.just("cut")},
    optional={
        "text_full": st.sampled_from([None, "cut and the rest"]),
        "label": st.sampled_from([3, "OTHER"]),
        "emotions": st.sampled_from([{"primary": "joy"}, [1, 0, 0, 0, 0, 0, 0]]),
        "regret_factor": st.just(0.5),
        "bentham_scores": st.sampled_from([[0.5] * 10, {"intensity": 0.5}]),
    },
)


@given(st.lists(LABELS, min_size=1, max_size=4))
def test_what_is_predicted_of_a_record_is_the_text_that_is_trained_on(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "labelled.json"
    path.write_text(json.dumps(rows))
    texts = {f"record {index}": record.text for index, record in enumerate(read_texts(path))}
    if not any(row.keys() - {"text", "text_full"} for row in rows):
        # Nothing to train on, and nothing that says that the whole is not meant.
        assert texts == {f"record {index}": row.get("text_full") or "cut" for index, row in enumerate(rows)}
        return
    parsed = parse_rows(path, *read_rows(path))
    assert {record.id: record.text for record in parsed.records}.items() <= texts.items()


def test_nothing_is_left_of_an_output_that_failed(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine\n")
    with pytest.raises(SystemExit) as ended:
        output = ["--output", str(tmp_path / "out")]
        main(["predict", str(finished_run), "--input", str(tmp_path / "a.txt"), "--batch", "0", *output])
    assert ended.value.code == 2 and [item.name for item in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --text and --input"),
        (["--text", "", "--input", "none.txt"], "got:      both"),
        (["--text", " "], "a text is empty"),
        (["--text", "half of a pair: \ud800"], "a text is not Unicode"),
        (["--input", "none.txt"], "file not found"),
        (["--input", "none.doc"], "unknown kind of file"),
        (["--input", "none.txt", "--title", "x"], "--title and --action belong"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], message: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(finished_run), *arguments])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_card_shows_every_target_and_the_largest_share_first(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", str(finished_run), "--text", KOREAN])
    lines = capsys.readouterr().out.splitlines()
    shares = [float(line.split("%")[0].split()[-1]) for line in lines if "%" in line]
    assert len(shares) == 7 and shares == sorted(shares, reverse=True)
    assert "regret_factor" in "\n".join(lines)


def test_a_terminal_without_utf8_or_width_shows_the_card_too(finished_run: Path, predictor: Predictor) -> None:
    (prediction,) = predictor.predict([KOREAN])
    for encoding, width in (("ascii", 80), ("utf-8", 40)):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
        print_card(Console(file=file, width=width, legacy_windows=False), prediction, text=KOREAN)
        file.seek(0)
        lines = file.read().splitlines()
        # An escaped title is wider than its frame.
        assert all(len(line) <= width for line in lines[1:])
        assert all(any(name in line for line in lines) for name in ("regret_factor", "sadness", "fecundity"))


@pytest.mark.parametrize(
    "name", ["[/red]", "[neutral]", "[bold]very[/bold] sad", "[", ":smile:", "a\nb", "[link=x]", "\\[red]"]
)
def test_a_name_that_looks_like_markup_is_printed_as_it_is(name: str) -> None:
    file = io.StringIO()
    values = {name: 0.75, "other": 0.25}
    prediction = Prediction("x", {"emotion": values, "surd": {name: 0.5}})
    print_card(Console(file=file, width=80), prediction, text=f"{name} is said")
    lines = file.getvalue().splitlines()
    shown = " ".join(name.split())
    assert f"{shown} is said" in lines[0]
    assert sum(shown in line for line in lines[1:]) == 2


@given(st.text(st.characters(categories=["Cc", "Zs", "Ll"]), max_size=20))
def test_a_terminal_is_told_nothing_by_a_text_or_a_name(text: str) -> None:
    file = io.StringIO()
    text = f"\x1b[2J{text}\x9b0m"
    print_card(Console(file=file, width=80), Prediction("x", {"emotion": {text: 1.0}, "surd": {text: 0.5}}), text=text)
    shown = file.getvalue().replace("\n", "")
    assert "[2J" in shown and not any(unicodedata.category(character) == "Cc" for character in shown)


def test_another_encoder_is_refused(run_copy: Path) -> None:
    from redheart.core.files import read_sealed, write_sealed
    from redheart.data.features import FeatureManifest

    (path,) = (run_copy / "features").glob("*/manifest.json")
    manifest = read_sealed(path, FeatureManifest)
    write_sealed(path, msgspec.structs.replace(manifest, encoder="hash:2"))
    with pytest.raises(BadInput, match="not the one that the model was trained on"):
        open_run(run_copy)


def test_the_benchmark_measures_every_way() -> None:
    command = [sys.executable, "benchmarks/predict.py", "--texts", "3", "--rounds", "1", "--presets", "tiny", "--json"]
    done = launch([*command, "--batches", "1", "2"])
    assert done.returncode == 0, done.stderr
    ways = json.loads(done.stdout)["ways"]
    assert {(way["encoder"], way["batch"]) for way in ways} == {(e, b) for e in ("hash", "minilm") for b in (1, 2)}
    assert all(way["texts_per_s"] > 0 for way in ways)


def test_a_narrow_encoder_s_features_are_those_of_its_cache(tmp_path: Path) -> None:
    records = [Record(f"{index}", f"{KOREAN} I was glad {index} times") for index in range(6)]
    config, fit = FeatureConfig(encoder="minilm"), tmp_path / "fit.safetensors"
    labels = Labels(np.arange(5), np.zeros((6, 2)), np.zeros((6, 2), dtype=bool), np.arange(6))
    cache = make_features(records, config=config, root=tmp_path, fit=fit, labels=labels)
    texts = [record.text for record in records]
    encoded = encode_texts(open_encoder("minilm"), texts, seq_len_tokens=config.seq_len_tokens)
    summary = load_fit(fit)
    for index, item in enumerate(encoded):
        # One matrix product of six rows or six of one: the last bit of float16 may differ.
        np.testing.assert_allclose(widened(item, texts[index], summary), cache.row(index), rtol=2e-3, atol=2e-3)

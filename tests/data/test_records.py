"""Every problem of a file at once, each where it is; nothing repaired; never a traceback."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redheart.core.config import PrepareConfig
from redheart.core.errors import BadInput, CorruptFile, RedHeartError
from redheart.data.generator import generate
from redheart.data.inventory import SURD
from redheart.data.prepare import load_prepared, prepare
from redheart.data.records import read_rows
from redheart.data.schemas import parse_rows


def real_row(index: int) -> dict[str, Any]:
    return {
        "id": f"r{index}",
        "text": "cut",
        "text_full": f"the whole post {index} " + "word " * index,
        "title": "t",
        "action": "",
        "label": "OTHER",
        "emotions": [0.1, 0.05, 0.15, 0.05, 0.2, 0.25, 0.2],
        "regret_factor": 0.15,
        "bentham_scores": {"intensity": 0.3, "duration": 0.6, "certainty": 0.8, "propinquity": 0.9},
        "surd_metrics": {"selection": 0.7, "uncertainty": 0.3, "risk": 0.2, "decision": 0.4},
    }


def parse(path: Path) -> Any:
    kind, rows = read_rows(path)
    return parse_rows(path, kind, rows)


def test_real_schema_masks_what_is_absent_and_names_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(real_row(i)) for i in range(3)).encode()))
    parsed = parse(path)
    assert parsed.schema == "distribution" and not parsed.problems
    record = parsed.records[0]
    assert record.text.startswith("the whole post") and record.verdict == "OTHER"
    assert record.targets["emotion"] == (0.1, 0.05, 0.15, 0.05, 0.2, 0.25, 0.2)
    assert record.targets["bentham"] == (0.3, 0.6, 0.8, 0.9, None, None, None, None, None, None)
    assert parsed.inventory.task("surd").targets == ("selection", "uncertainty", "risk", "decision")
    assert record.targets["surd"] == (0.7, 0.3, 0.2, 0.4)


def test_goemotions_rows_with_several_classes_share_the_weight(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("anger\ndisgust\nfear\njoy\nneutral\nsadness\nsurprise\n")
    path = tmp_path / "train.tsv.gz"
    path.write_bytes(gzip.compress(b"hello\t3\ta\nwell\t0,2\tb\n"))
    first, second = parse(path).records
    assert first.targets["emotion"] == (0, 0, 0, 1, 0, 0, 0)
    assert second.targets["emotion"] == (0.5, 0, 0.5, 0, 0, 0, 0)
    assert second.targets["regret"] == (None,)


def test_a_record_without_an_id_is_called_by_its_place(tmp_path: Path) -> None:
    rows = [{"text": "one", "label": 0}, {"id": "b", "text": "two", "label": 1}, {"id": None, "text": "x", "label": 2}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [record.id for record in parse(tmp_path / "a.jsonl").records] == ["line 1", "b", "line 3"]


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"id": ""}, "id"),
    ({"id": 5}, "id"),
    ({"id": "g000000"}, "id"),
    ({"text": ""}, "text"),
    ({"text": None}, "text"),
    ({"text": ["x"]}, "text"),
    ({"title": 3}, "title"),
    ({"action": {}}, "action"),
    ({"label": 7}, "label"),
    ({"label": -1}, "label"),
    ({"label": "joy"}, "label"),
    ({"label": 1.5}, "label"),
    ({"label": True}, "label"),
    ({"emotions": "joy"}, "emotions"),
    ({"emotions": {"primary": "hunger"}}, "emotions.primary"),
    ({"emotions": {"primary": "joy"}, "label": 6}, "emotions.primary"),
    ({"emotions": {"secondary": 4}}, "emotions.secondary"),
    ({"emotions": {"intensity": 1.2}}, "emotions.intensity"),
    ({"regret_factor": 1.01}, "regret_factor"),
    ({"regret_factor": -0.1}, "regret_factor"),
    ({"regret_factor": "0.5"}, "regret_factor"),
    ({"regret_factor": float("nan")}, "regret_factor"),
    ({"regret_factor": float("inf")}, "regret_factor"),
    ({"regret_factor": False}, "regret_factor"),
    ({"regret_factor": []}, "regret_factor"),
    ({"bentham_scores": [0.5] * 9}, "bentham_scores"),
    ({"bentham_scores": [0.5] * 11}, "bentham_scores"),
    ({"bentham_scores": 0.5}, "bentham_scores"),
    ({"bentham_scores": [0.5] * 9 + [2]}, "bentham_scores[9]"),
    ({"bentham_scores": [0.5] * 9 + ["a"]}, "bentham_scores[9]"),
    ({"bentham_scores": [0.5] * 9 + [float("nan")]}, "bentham_scores[9]"),
    ({"surd_metrics": 3}, "surd_metrics"),
    ({"surd_metrics": [0.1] * 4}, "surd_metrics"),
    ({"surd_metrics": {"risk": 0.5}}, "surd_metrics.risk"),
    ({"surd_metrics": {"depth": 1.5}}, "surd_metrics.depth"),
    ({"surd_metrics": {"depth": "deep"}}, "surd_metrics.depth"),
    ({"surd_metrics": {"depth": float("-inf")}}, "surd_metrics.depth"),
    ({"timestamp": "yesterday"}, "timestamp"),
    ({"timestamp": 5}, "timestamp"),
    ({"surd_metrics": {"surprise": {}}}, "surd_metrics.surprise"),
]


def test_forty_planted_faults_are_all_reported_at_once(tmp_path: Path) -> None:
    rows, _ = generate(100, seed=0)
    for index, (fault, _) in enumerate(FAULTS, start=1):
        rows[index] = {**rows[index], "emotions": None, **fault}
    path = tmp_path / "faulty.json"
    path.write_text(json.dumps(rows))
    parsed = parse(path)
    found = {(problem.where, problem.field) for problem in parsed.problems}
    for index, (_, field) in enumerate(FAULTS, start=1):
        assert (f"record {index}", field) in found
    assert parsed.num_invalid == 40 and len(parsed.records) == 60
    with pytest.raises(BadInput, match="in 40 records") as caught:
        prepare(path, out=tmp_path / "out", config=PrepareConfig(), seed=0)
    assert all(f"record {index} " in str(caught.value) for index in range(1, 41))
    assert not (tmp_path / "out").exists()
    manifest = prepare(path, out=tmp_path / "out", config=PrepareConfig(skip_invalid=True), seed=0)
    assert manifest.read == 100 and manifest.invalid == 40
    assert len((tmp_path / "out" / "invalid.jsonl").read_text().splitlines()) == len(parsed.problems)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "empty"),
        ("a.json", b"[]", "no record"),
        ("a.json", b"{}", "not a JSON array"),
        ("a.json", b"[1, 2", "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.json", b'["\xff"]', "not UTF-8"),
        ("a.json", b'[{"name": "x"}]', "no known schema"),
        ("a.json.gz", gzip.compress(b"[]" * 100, mtime=0)[:-9], "cut or damaged"),
        ("a.json.gz", b"[]", "no record"),
        ("a.json", gzip.compress(b"[]" * 100, mtime=0)[:-9], "cut or damaged"),
        ("a.json", b"\xff\xfe[\0]", "not UTF-16-LE"),
        ("a.json", b'[{"id": 1},\n {"id": 2]', "line 2, column 10"),
        ("a.csv", b"id,text", "unknown kind of file"),
        ("a.json/b.json", None, "cannot be read"),
        ("a.tsv", b"x\t1\ta", "class names"),
    ],
)
def test_unreadable_files_say_what_is_wrong(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is None:
        path.parent.write_bytes(b"[]")
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        parse(path)


@pytest.mark.parametrize("classes", [b"", b"\n", b"joy", b"very sad", b"joy\njoy\n", b"joy\n\xff", b"joy\n\nanger"])
def test_class_names_that_are_none_are_refused(tmp_path: Path, classes: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(classes)
    (tmp_path / "a.tsv").write_bytes(b"x\t0\ta")
    with pytest.raises(BadInput, match=r"labels\.txt"):
        parse(tmp_path / "a.tsv")


SURD_MIXTURES: list[tuple[list[dict[str, Any]], tuple[str, ...]]] = [
    ([{"surd_metrics": {"risk": 0.2}}, {}], ("risk", "selection", "uncertainty", "decision")),
    ([{"surd_metrics": None}, {"surd_metrics": {}}, {}], ("selection", "uncertainty", "risk", "decision")),
    ([{}, {"surd_metrics": {"trust": 0.5, "risk": None}}], ("selection", "uncertainty", "risk", "decision", "trust")),
    ([{"surd_metrics": {"b": 0.1}}, {"surd_metrics": {"a": 0.1}}], ("b", "a")),
    ([{"surd_metrics": None}], ("surprise", "uncertainty", "relevance", "depth")),
    # What stands in a malformed record alone is nobody's metric.
    ([{"surd_metrics": {"x": 2}}, {}], ("selection", "uncertainty", "risk", "decision")),
    ([{"surd_metrics": {"x": 0.5}, "text_full": 3}, {}], ("selection", "uncertainty", "risk", "decision")),
    ([{"surd_metrics": {" ": 0.5}}, {}], ("selection", "uncertainty", "risk", "decision")),
]


@pytest.mark.parametrize(("changes", "names"), SURD_MIXTURES)
def test_surd_metrics_are_those_of_all_records_and_masked_where_one_lacks_them(
    changes: list[dict[str, Any]], names: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [{**real_row(index), **change} for index, change in enumerate(changes)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    parsed = parse(path)
    assert parsed.inventory.task("surd").targets == names
    assert len(parsed.records) + parsed.num_invalid == len(rows)
    by_id = {row["id"]: row["surd_metrics"] or {} for row in rows}
    for record in parsed.records:
        assert record.targets["surd"] == tuple(by_id[record.id].get(name) for name in names)


def test_no_record_decides_the_schema_of_the_others(tmp_path: Path) -> None:
    documented, _ = generate(6, seed=0)
    path = tmp_path / "a.json"
    # One record of the other schema, or a malformed one that looks like it, in either place.
    for position in (0, 3, 6):
        rows: list[Any] = [*documented[:position], real_row(0), *documented[position:]]
        path.write_text(json.dumps(rows))
        parsed = parse(path)
        assert not parsed.problems and len(parsed.records) == 7
        assert set(parsed.inventory.task("surd").targets) == {*SURD, *real_row(0)["surd_metrics"]}
        values = [
            dict(zip(parsed.inventory.task("surd").targets, r.targets["surd"], strict=True)) for r in parsed.records
        ]
        assert [value["risk"] for value in values].count(None) == 6 and [v["depth"] for v in values].count(None) == 1
        rows[position] = {**documented[0], "id": "list", "emotions": ["joy"]}
        path.write_text(json.dumps(rows))
        assert {(p.id, p.field) for p in parse(path).problems} == {("list", "emotions")}
    rows = [{**real_row(0), "emotions": {"primary": "joy"}}, *(real_row(index) for index in range(1, 5))]
    path.write_text(json.dumps(rows))
    assert {(p.id, p.field) for p in parse(path).problems} == {("r0", "emotions")}
    # A record that shows no schema goes with most of its file.
    rows = [{"id": "x", "text": "x", "surd_metrics": {"risk": 0.5}}, *(real_row(index) for index in range(1, 5))]
    path.write_text(json.dumps(rows))
    assert len(parse(path).records) == 5


@pytest.mark.parametrize("fault", [{"id": 5}, {"id": " "}, {"surd_metrics": {" ": 0.5}}, {"title": 3}])
def test_no_fault_of_a_record_hides_another(fault: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{**real_row(0), "emotions": [0.5] * 7, **fault}]))
    fields = [problem.field.partition(".")[0] for problem in parse(path).problems]
    assert sorted(fields) == sorted(["emotions", *fault])


def test_a_null_is_an_absent_field(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{**real_row(0), "text_full": None}, {**real_row(1), "emotions": None}]))
    first, second = parse(path).records
    assert first.text == "cut" and second.targets["emotion"] == (None,) * 7


def test_what_json_allows_and_nobody_can_mean_is_a_problem_of_its_record(tmp_path: Path) -> None:
    good = json.dumps(real_row(0))
    rows = [
        good,
        good.replace('"r0"', '"r1"').replace('"title": "t"', '"title": "half \\ud800"'),
        good.replace('"r0"', '"r2\\udfff"'),
        good.replace('"r0"', '"r3"').replace('"title": "t"', '"title": "t", "title": "u"'),
        good.replace('"r0"', '"r4"').replace('"risk"', '"selection": 0.1, "risk"'),
        good.replace('"r0"', '"r5"').replace('"risk"', '"\\ud800"'),
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows))
    found = {(problem.where, problem.field) for problem in parse(path).problems}
    assert found == {
        ("line 2", "title"),
        ("line 3", "id"),
        ("line 4", "record"),
        ("line 5", "surd_metrics"),
        ("line 6", "surd_metrics.\\ud800"),
    }
    # Problems are printed and kept, whatever stands in them.
    (tmp_path / "b.jsonl").write_text(
        "\n".join([*(good.replace("r0", f"s{n}").replace("whole post 0", str(n) * 9) for n in range(60)), *rows])
    )
    prepare(tmp_path / "b.jsonl", out=tmp_path / "out", config=PrepareConfig(skip_invalid=True), seed=0)
    assert len((tmp_path / "out" / "invalid.jsonl").read_text().splitlines()) == 5


def test_a_class_number_of_thousands_of_digits(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("joy\nanger")
    (tmp_path / "a.tsv").write_text(f"x\t0\ta\ny\t{'9' * 5000}\tb")
    assert [problem.field for problem in parse(tmp_path / "a.tsv").problems] == ["class ids"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="file not found"):
        read_rows(tmp_path / "none.json")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 100_000), replacement=st.binary(max_size=3), cut=st.integers(0, 5))
def test_a_mutated_file_is_parsed_or_refused(tmp_path: Path, position: int, replacement: bytes, cut: int) -> None:
    rows, _ = generate(40, seed=0)
    content = json.dumps(rows).encode()
    position %= len(content)
    path = tmp_path / "mutated.json"
    path.write_bytes(content[:position] + replacement + content[position + cut :])
    try:
        parsed = parse(path)
    except RedHeartError:
        return
    assert parsed.num_invalid + len(parsed.records) >= 1
    for record in parsed.records:
        assert record.id and record.text.strip()
        assert all(value is None or 0 <= value <= 1 for target in record.targets.values() for value in target)


def test_prepared_folder_is_verified_reused_and_complete(tmp_path: Path) -> None:
    out = tmp_path / "data"
    manifest = prepare(None, out=out, config=PrepareConfig(num_generated=300), seed=3)
    assert manifest.read == 300 and manifest.invalid == 0 and manifest.duplicates > 0
    parts = (manifest.train, manifest.val_select, manifest.val_confirm, manifest.test)
    assert sum(parts) + manifest.duplicates == 300
    assert manifest.best_reachable is not None and 1 < manifest.best_reachable < 1.946
    written = (out / "manifest.json").stat().st_mtime_ns
    assert prepare(None, out=out, config=PrepareConfig(num_generated=300), seed=3) == manifest
    assert (out / "manifest.json").stat().st_mtime_ns == written
    prepared = load_prepared(out)
    assert list(prepared.split) == ["train", "val_select", "val_confirm"]
    with pytest.raises(AssertionError, match="closed"):
        prepared.split["test"]
    rows = sorted(row for part in prepared.split.opened().values() for row in part.tolist())
    assert rows == list(range(len(prepared.records)))
    content = bytearray((out / "targets.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "targets.safetensors").write_bytes(bytes(content))
    with pytest.raises(CorruptFile, match=r"targets\.safetensors"):
        load_prepared(out)


def test_file_order_does_not_change_the_split(tmp_path: Path) -> None:
    rows, _ = generate(120, seed=1)
    for name, ordered in (("a", rows), ("b", rows[::-1])):
        (tmp_path / f"{name}.json").write_text(json.dumps(ordered))
        prepare(tmp_path / f"{name}.json", out=tmp_path / name, config=PrepareConfig(), seed=0)
    assert load_prepared(tmp_path / "a").records == load_prepared(tmp_path / "b").records
    assert (tmp_path / "a" / "split.json").read_bytes() == (tmp_path / "b" / "split.json").read_bytes()


def test_a_distribution_as_an_object_is_not_dropped_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps([{"id": "a", "text": "b", "emotions": {"joy": 0.7, "trust": 0.3}, "regret_factor": 0.4}])
    )
    (problem,) = parse(path).problems
    assert problem.field == "emotions" and "a list of seven shares: joy, " in problem.expected


def test_an_id_belongs_to_the_first_good_record_and_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": "x", "text": "", "label": 1}, {"id": "x", "text": "b", "label": 2}]))
    parsed = parse(path)
    assert [record.text for record in parsed.records] == ["b"] and len(parsed.problems) == 1
    good = {"text": "b", "emotions": [1, 0, 0, 0, 0, 0, 0]}
    rows = [{"id": "x", "text": "", "surd_metrics": {"a": 0.1, "b": 0.9}}, {**good, "id": "x"}]
    for metrics, expected in (({"b": 0.2, "a": 0.7}, {"a": 0.7, "b": 0.2}), ({}, {})):
        rows[1]["surd_metrics"] = metrics
        path.write_text(json.dumps(rows))
        parsed = parse(path)
        found = dict(zip(parsed.inventory.task("surd").targets, parsed.records[0].targets["surd"], strict=True))
        assert {name: value for name, value in found.items() if value is not None} == expected
    path.write_text(json.dumps([{"id": number, "text": "b", "label": 2} for number in range(4)]))
    assert [problem.field for problem in parse(path).problems] == ["id"] * 4

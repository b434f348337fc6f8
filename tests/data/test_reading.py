"""Files as people have them: what they are is seen from their bytes, and a faulty line is one problem among others."""

import codecs
import gzip
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redheart.core.config import PrepareConfig, load_toml
from redheart.core.errors import BadInput
from redheart.core.text import read_content, read_text
from redheart.data.generator import generate
from redheart.data.prepare import load_prepared, prepare
from redheart.data.rating_table import read_ratings
from redheart.data.records import Malformed, count_records, read_rows, text_lines
from redheart.data.schemas import Parsed, parse_rows
from redheart.predict.texts import read_texts

# What `str.splitlines` takes for the end of a line and nobody who counts lines does.
SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r"
DISGUISES: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16, big end": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "windows": lambda text: text.replace("\n", "\r\n").encode(),
    "an old mac": lambda text: text.replace("\n", "\r").encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "gzip of windows with a mark": lambda text: gzip.compress(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode()),
    "gzip in two parts": lambda text: gzip.compress(text[:9].encode()) + gzip.compress(text[9:].encode()),
}


def parse(path: Path) -> Parsed:
    kind, rows = read_rows(path)
    return parse_rows(path, kind, rows)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_every_file_that_is_read_may_come_in_any_disguise(disguise: str, suffix: str, tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(DISGUISES[disguise](text))
        return tmp_path / name

    rows = [{"id": "a", "text": "기쁘다", "label": 0}, {"id": "b", "text": "so sad", "label": 4}]
    for path in (
        write(f"a.json{suffix}", json.dumps(rows, indent=1, ensure_ascii=False)),
        write(f"a.jsonl{suffix}", "\n".join(json.dumps(row) for row in rows)),
    ):
        assert [(record.id, record.text) for record in parse(path).records] == [("a", "기쁘다"), ("b", "so sad")]
        assert [(record.id, record.text) for record in read_texts(path)] == [("a", "기쁘다"), ("b", "so sad")]
    write("labels.txt", "very sad\njoy \n\n")
    parsed = parse(write(f"a.tsv{suffix}", "기쁘다\t1\ta\n\nso sad\t0\tb\n"))
    assert parsed.inventory.task("emotion").targets == ("very sad", "joy")
    assert [(record.id, record.targets["emotion"]) for record in parsed.records] == [("a", (0, 1)), ("b", (1, 0))]
    texts = read_texts(write(f"a.txt{suffix}", "기쁘다\n\nso sad\n"))
    assert [(record.id, record.text) for record in texts] == [("line 1", "기쁘다"), ("line 3", "so sad")]
    table = read_ratings(write(f"r.csv{suffix}", "id,subject,valence\na,s,0.5\nb,s,\n"))
    assert table.ids == ["a", "b"] and table.values == {"valence": [0.5, None]}
    path = write(f"c.toml{suffix}", "# 설정\nepochs = 3\n[train]\nlearning_rate = 1e-4\n")
    config = load_toml(path)
    assert config.epochs == 3 and config.train.learning_rate == 1e-4


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.sampled_from("ab \t" + SEPARATORS), min_size=1, max_size=6), min_size=2, max_size=6),
    end=st.sampled_from(["\n", "\r\n"]),
    has_last=st.booleans(),
    packed=st.booleans(),
)
def test_a_line_ends_where_wc_counts_it(
    texts: list[str], end: str, has_last: bool, packed: bool, tmp_path: Path
) -> None:
    # The `\r` before an end belongs to the end.
    texts = [f"{index}{text.rstrip(chr(13))}x" for index, text in enumerate(texts)]
    content = (end.join(texts) + (end if has_last else "")).encode()
    path = tmp_path / "a.txt"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert [record.text for record in read_texts(path)] == texts
    (tmp_path / "labels.txt").write_bytes(content)
    (tmp_path / "a.tsv").write_text("x\t0\ta\n")
    assert parse(tmp_path / "a.tsv").inventory.task("emotion").targets == tuple(texts)
    cells = [text.replace("\t", " ") for text in texts]
    (tmp_path / "b.tsv").write_bytes(end.join(f"{text}\t0\t{index}" for index, text in enumerate(cells)).encode())
    assert [record.text for record in parse(tmp_path / "b.tsv").records] == cells
    rows = [json.dumps({"id": text, "text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes(end.join(rows).encode())
    assert [record.id for record in read_texts(tmp_path / "a.jsonl")] == texts
    quoted = "".join(f'"{text}",s,{index}{end}' for index, text in enumerate(texts))
    (tmp_path / "r.csv").write_bytes(f"id,subject,x{end}{quoted}".encode())
    assert read_ratings(tmp_path / "r.csv").ids == [text.strip() for text in texts]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-16")), packed=st.booleans()
)
def test_any_bytes_are_read_or_refused(content: bytes, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(gzip.compress(content) if packed else content)
    try:
        text = read_text(path)
    except BadInput:
        return
    assert "\r\n" not in text and text.encode() == read_content(path)
    for (_, line), expected in zip(text_lines(text.encode()), filter(str.strip, text.split("\n")), strict=False):
        assert isinstance(line, Malformed) or line == expected.removeprefix("\ufeff")


GOOD, _ = generate(60, seed=0)
FAULTS: dict[str, bytes] = {
    "cut short": json.dumps(GOOD[0]).encode()[:40],
    "no comma": b'{"id": "x" "text": "y"}',
    "no JSON": b"garbage",
    "two on a line": b"{} {}",
    "a wrong byte": b'{"id": "x", "text": "caf\xe9"}',
    "half of a character": b'{"id": "x", "text": "caf\xc3',
    "a surrogate in bytes": b'{"id": "x", "text": "\xed\xa0\x80"}',
    "a number of 5,000 digits": b'{"id": "x", "text": "y", "label": ' + b"9" * 5000 + b"}",
    "deep nesting": b'{"id": ' + b"[" * 50_000,
    "zero bytes": b"\0" * 100,
    "a zero byte in a string": b'{"id": "x", "text": "a\0b"}',
    "a control character": b'{"id": "x", "text": "a\x01b"}',
    "an array": b"[1, 2]",
    "a word": b'"x"',
    "nothing": b"null",
    "a mark in its midst": '{"id":\ufeff "x"}'.encode(),
}


def with_faults(path: Path) -> list[int]:
    """A file of good lines with every fault among them, and the lines (from 1) of the faults."""
    lines, numbers = [], []
    for good, fault in zip(GOOD[: len(FAULTS)], FAULTS.values(), strict=True):
        lines += [json.dumps(good).encode(), fault]
        numbers.append(len(lines))
    lines += [json.dumps(row).encode() for row in GOOD[len(FAULTS) :]]
    # The last line is cut, as of a download that broke off.
    numbers.append(len(lines) + 1)
    path.write_bytes(b"\n".join([*lines, json.dumps(GOOD[0]).encode()[:-20]]))
    return numbers


def test_faulty_lines_are_named_at_once_and_dropped_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    numbers = with_faults(path)
    problems = parse(path).problems
    assert [problem.where for problem in problems] == [f"line {number}" for number in numbers]
    assert all(len(problem.got) < 200 and problem.expected for problem in problems)
    with pytest.raises(BadInput, match=f"{len(numbers)} problems in {len(numbers)} records") as caught:
        prepare(path, out=tmp_path / "out", config=PrepareConfig(), seed=0)
    assert all(f"    line {number} " in str(caught.value) for number in numbers)
    manifest = prepare(path, out=tmp_path / "out", config=PrepareConfig(skip_invalid=True), seed=0)
    assert manifest.invalid == len(numbers) and manifest.read == len(numbers) + len(GOOD)
    kept = {record.id for record in load_prepared(tmp_path / "out").records}
    assert len(kept) + manifest.duplicates == len(GOOD) and kept <= {row["id"] for row in GOOD}
    dropped = [json.loads(line) for line in (tmp_path / "out" / "invalid.jsonl").read_text().split("\n")[:-1]]
    assert [item["where"] for item in dropped] == [problem.where for problem in problems]


def test_faulty_lines_of_texts_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    numbers = with_faults(path)
    with pytest.raises(BadInput) as caught:
        read_texts(path)
    # A JSON string is a text too.
    numbers.remove(2 * (list(FAULTS).index("a word") + 1))
    assert all(f"    line {number}: got " in str(caught.value) for number in numbers)
    assert f"{len(numbers)} problems" in str(caught.value)
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xe9\ncaf\xe9\nfine\nt\0e\0\n")
    with pytest.raises(BadInput, match="3 problems") as caught:
        read_texts(tmp_path / "a.txt")
    assert all(f"line {number}: got " in str(caught.value) for number in (2, 3, 5))


def test_faulty_lines_of_goemotions_are_problems_too(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("joy\nanger\n")
    (tmp_path / "a.tsv").write_bytes(b"x\t0\ta\ncaf\xe9\t1\tb\ny\t1\tc\n\0\n")
    parsed = parse(tmp_path / "a.tsv")
    assert [problem.where for problem in parsed.problems] == ["line 2", "line 4"] and len(parsed.records) == 2


def test_a_file_in_which_every_line_is_broken_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n}\n")
    with pytest.raises(BadInput, match="2 problems in 2 records"):
        prepare(tmp_path / "a.jsonl", out=tmp_path / "out", config=PrepareConfig(), seed=0)
    with pytest.raises(BadInput, match="no record is left"):
        prepare(tmp_path / "a.jsonl", out=tmp_path / "out", config=PrepareConfig(skip_invalid=True), seed=0)


def test_a_line_that_is_too_long_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redheart.data.records.MAX_LINE_CHARS", 500)
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps({"id": "a", "text": "b", "label": 1}))
    parsed = parse(tmp_path / "a.jsonl")
    assert len(parsed.records) == 1 and "one record a line" in parsed.problems[0].expected


@pytest.mark.parametrize("opened", ["[", '{"a": '])
def test_nesting_at_the_edge_of_what_python_bears(opened: str, tmp_path: Path) -> None:
    closed = {"[": "]", '{"a": ': "}"}[opened]
    limit = sys.getrecursionlimit()
    rows = [
        f'{{"id": "{depth}", "text": "x", "label": {opened * depth}1{closed * depth}}}'
        for depth in range(limit - 120, limit + 20)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert parse(tmp_path / "a.jsonl").num_invalid == len(rows)
    texts: list[Any] = [row.replace('"text": "x", "label"', '"text"') for row in rows]
    (tmp_path / "b.jsonl").write_text("\n".join(texts))
    with pytest.raises(BadInput, match=f"{len(rows)} problems"):
        read_texts(tmp_path / "b.jsonl")


def test_lists_of_texts_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[[], ["a"], "fine", null]')
    with pytest.raises(BadInput, match="3 problems") as caught:
        read_texts(tmp_path / "a.json")
    assert "record 0: got list" in str(caught.value) and "record 3: got NoneType" in str(caught.value)


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "A.JSON.GZ").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert len(parse(tmp_path / "A.JSON.GZ").records) == 60
    (tmp_path / "B.TXT").write_text("fine\n")
    assert len(read_texts(tmp_path / "B.TXT")) == 1


def test_a_pipe_is_read(tmp_path: Path) -> None:
    import os
    import threading

    for content in (b"fine\n", gzip.compress(b"fine\n")):
        pipe = tmp_path / "p.txt"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        assert [record.text for record in read_texts(pipe)] == ["fine"]
        writer.join()
        pipe.unlink()


@pytest.mark.parametrize("disguise", DISGUISES)
def test_records_are_counted_before_they_are_read(disguise: str, tmp_path: Path) -> None:
    records, _ = generate(30, seed=0)
    path = tmp_path / "r.json"
    path.write_bytes(DISGUISES[disguise](json.dumps(records)))
    assert count_records(path) == len(read_rows(path)[1])


def test_many_ends_of_lines_in_a_line_are_read_in_no_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" + b"\r" * 400_000 + b"x\n")
    start_s = time.perf_counter()
    assert len(read_text(path)) == 400_003
    assert time.perf_counter() - start_s < 5

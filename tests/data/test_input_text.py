"""What an encoder does not tell apart is one text, and nothing else is."""

import json
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from redheart.core.config import PrepareConfig
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, write_sealed
from redheart.data import minilm
from redheart.data.generator import generate
from redheart.data.input_text import folded, input_text
from redheart.data.prepare import Manifest, _keys, load_prepared, prepare
from redheart.data.records import Record

ALPHABET = (
    "abAB éÉe\u0301\u0307İıßΣσς 가각\u1100\u1161\u11a8ㄱか\u3099が你好,.!?'-¿«—_$€+"
    "\n\t\xa0\u3000\u200b\u00ad\ufeff\x07\x0b\x85\u2028ﬁＡ①²"
)


@pytest.fixture(scope="module")
def pieces() -> Callable[[str], list[str]]:
    """What MiniLM's own tokenizer makes of a text before it looks words up."""
    backend = AutoTokenizer.from_pretrained(str(minilm.installed_folder())).backend_tokenizer

    def pieces(text: str) -> list[str]:
        return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]

    return pieces


@settings(max_examples=500)
@given(first=st.text(ALPHABET, max_size=12), second=st.text(ALPHABET, max_size=12), data=st.data())
def test_texts_are_folded_together_exactly_where_the_encoder_reads_the_same(
    first: str, second: str, data: st.DataObject, pieces: Callable[[str], list[str]]
) -> None:
    disguise = data.draw(st.sampled_from([str.upper, str.title, lambda text: unicodedata.normalize("NFD", text)]))
    for one, other in (
        (first, second),
        (first, disguise(first)),
        (first, " " + first.replace(" ", " \xa0\n") + "\u200b"),
    ):
        if pieces(one) == pieces(other):
            assert folded(one) == folded(other)
    # What is folded reads the same, but for compatible forms, which MiniLM alone would tell apart.
    if unicodedata.is_normalized("NFKC", first):
        assert pieces(folded(first)) == pieces(first)
    assert folded(folded(first)) == folded(first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  So\tSAD,\n really !  ", "so sad,really!"),
        ("Cafe\u0301 CAFÉ", "cafe cafe"),
        (unicodedata.normalize("NFD", "기뻤고 슬펐다"), "기뻤고 슬펐다"),
        ("你 好 嗎", "你好嗎"),
        ("ＯＫ ﬁne", "ok fine"),
        ("zero\u200bwidth \x07", "zerowidth"),
        ("two words", "two words"),
        ("x \U0001f600", "x \U0001f600"),
        ("\u200b \x00", ""),
    ],
)
def test_by_hand(text: str, expected: str) -> None:
    assert folded(text) == expected


def test_the_start_of_a_text_is_the_same_in_both_normal_forms() -> None:
    text = "기뻤고 " * 50
    composed, decomposed = (
        input_text(Record("a", unicodedata.normalize(form, text), "제목", "", {}), text_chars=40)
        for form in ("NFC", "NFD")
    )
    assert composed == decomposed == "제목\n" + text[:40].strip()


@given(blanks=st.text(" \n\t\xa0\u3000\u2002", max_size=90), text=st.text(ALPHABET, max_size=90))
def test_blanks_before_a_text_do_not_take_its_place(blanks: str, text: str) -> None:
    alone, behind = (input_text(Record("a", found, "", "", {}), text_chars=40) for found in (text, blanks + text))
    assert alone == behind and (not text.strip() or alone)


def rows_of(changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": f"r{index:04d}", "label": index % 7, "text": "", **change} for index, change in enumerate(changes)]


def prepared(tmp_path: Path, changes: list[dict[str, Any]], **options: Any) -> Manifest:
    others = [{"text": row["text"], "id": row["id"], "label": row["label"]} for row in generate(120, seed=0)[0]]
    (tmp_path / "a.json").write_text(json.dumps([*rows_of(changes), *others]))
    return prepare(tmp_path / "a.json", out=tmp_path / "out", config=PrepareConfig(), seed=0, **options)


SENTENCES = [
    " ".join(f"{word}{index}" for word in ("première", "나는", "très", "déjà", "언니와", "où", "그랬다", "naïve"))
    for index in range(1000, 1030)
]
ALIKE: dict[str, Callable[[str], str]] = {
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "shouted": str.upper,
    "in titles": str.title,
    "spaced out": lambda text: "  " + text.replace(" ", "\n\n\t"),
    "with other spaces": lambda text: text.replace(" ", "\u3000"),
    "with what nobody sees": lambda text: "\u200b".join(text),
    "without accents": lambda text: "".join(
        c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn"
    ),
    "in wide letters": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_text_in_another_form_does_not_cross_the_split(name: str, tmp_path: Path) -> None:
    # Texts that differ in a number alone would be near each other as they are.
    texts = [f"{sentence} {str(zlib.crc32(sentence.encode())) * 3}" for sentence in SENTENCES]
    twins = [{"text": form(text)} for text in texts for form in (str, ALIKE[name])]
    base = prepared(tmp_path, [{"text": text} for text in texts]).duplicates
    assert base < 10
    assert prepared(tmp_path, twins).duplicates == base + len(texts)


def test_title_and_action_tell_records_apart_and_the_unread_end_does_not(tmp_path: Path) -> None:
    base = prepared(tmp_path, []).duplicates
    titles = [row["text"] for row in generate(60, seed=5)[0] if not row["text"].endswith("!")]
    distinct = prepared(tmp_path, [{"text": text} for text in titles]).duplicates - base
    for field in ("title", "action"):
        changes = [{field: title, "text": "It says it all."} for title in titles]
        assert prepared(tmp_path, changes).duplicates == base + distinct
    ends = [{"text": "the same start of a post " * 60 + f"{title} " * 30} for title in titles]
    assert prepared(tmp_path, ends, text_chars=9000).duplicates == base + distinct
    assert prepared(tmp_path, ends).duplicates == base + len(titles) - 1


def test_other_class_names_make_another_data_set(tmp_path: Path) -> None:
    rows, _ = generate(80, seed=0)
    (tmp_path / "a.tsv").write_text("".join(f"{row['text']}\t{row['label'] % 2}\t{row['id']}\n" for row in rows))
    options: dict[str, Any] = {"out": tmp_path / "out", "config": PrepareConfig(), "seed": 0}
    (tmp_path / "labels.txt").write_text("very\nsad\n")
    first = prepare(tmp_path / "a.tsv", **options)
    assert prepare(tmp_path / "a.tsv", **options, replace=False) == first
    (tmp_path / "labels.txt").write_text("very sad\njoy\n")
    with pytest.raises(BadInput, match=r"class names are not those.*\n.*labels\.txt\n.*very, sad"):
        prepare(tmp_path / "a.tsv", **options, replace=False)
    assert prepare(tmp_path / "a.tsv", **options).inventory.task("emotion").targets == ("very sad", "joy")


def test_a_run_of_an_older_version_goes_on_with_its_own_split(tmp_path: Path) -> None:
    new = prepared(tmp_path, [{"text": "x"}, {"text": "X"}])
    old_key = _keys(new.source, None, config=PrepareConfig(), seed=0, text_chars=1500)[1]
    manifest = read_sealed(tmp_path / "out" / "manifest.json", Manifest)
    old = msgspec.structs.replace(manifest, key=old_key)
    write_sealed(tmp_path / "out" / "manifest.json", old)
    options: dict[str, Any] = {"out": tmp_path / "out", "config": PrepareConfig(), "seed": 0}
    assert prepare(tmp_path / "a.json", **options, replace=False) == old
    assert load_prepared(tmp_path / "out").manifest == old
    # Where nothing rests on it, it is made anew.
    assert prepare(tmp_path / "a.json", **options) == new
    with pytest.raises(BadInput, match="not those that this run was started with"):
        prepare(tmp_path / "a.json", out=tmp_path / "out", config=PrepareConfig(), seed=1, replace=False)

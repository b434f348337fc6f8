"""Texts in a script that the encoder was not trained on are found, said once, and the right ones."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unicodedata import normalize

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from redheart.cli import main
from redheart.core.config import FeatureConfig, PrepareConfig, StudyConfig
from redheart.core.files import read_sealed, write_sealed
from redheart.data.encoders import HashEncoder, TransformerEncoder
from redheart.data.generator import generate
from redheart.data.minilm import MiniLM, installed_folder
from redheart.data.prepare import Manifest, load_prepared, prepare
from redheart.data.scripts import ADVICE, counted, foreign_script, unread_text
from redheart.report.facts import read_facts
from redheart.report.limitations import limitations
from redheart.study import phases
from redheart.study.run_folder import RunFolder

KEPT = ("--prepare.duplicate-similarity", "0")
TEXTS = {
    "오늘 나는 몹시 기뻤다": "Hangul",
    "\u110b\u1169\u1102\u1173\u11af ㅋㅋㅋ": "Hangul",
    "сегодня я рад": "Cyrillic",
    "今天我非常高兴": "Han",
    "今日はとてもうれしい": "Hiragana",
    "コーヒーを": "Katakana",
    "كنت سعيدا اليوم": "Arabic",
    "היום שמחתי": "Hebrew",
    "σήμερα χάρηκα": "Greek",
    "आज मैं खुश था": "Devanagari",
    "I met 언니와 상사 today": "Hangul",
}
LATIN = (
    *("", "  \n", "12345 67.8", "😀👍🏽", "?!…—「」", "I was glad.", "Ich grüße Élodie, hôm nay vui"),
    *("I was ﬁne, ＯＫ, 𝐛𝐨𝐥𝐝", "rock ʼn roll ª º", "I met my sister 언니 in the kitchen of my old friend"),
)


def written(path: Path, *, korean: int, english: int = 0) -> Path:
    """A file of so many records."""
    rows, _ = generate(400, seed=0)
    by_script = [[row for row in rows if str(row["text"]).isascii() == is_english] for is_english in (False, True)]
    path.write_text(json.dumps([*by_script[0][:korean], *by_script[1][:english]]))
    return path


@pytest.mark.parametrize(("text", "script"), [*TEXTS.items(), *((text, None) for text in LATIN)])
def test_a_text_has_the_script_of_its_letters(text: str, script: str | None) -> None:
    assert foreign_script(text) == script


@given(st.text(st.characters()))
def test_no_text_fails_and_the_hash_encoder_reads_them_all(text: str) -> None:
    script = foreign_script(text)
    assert script is None or (script and script != "Latin" and any(map(str.isalpha, normalize("NFKC", text))))
    assert HashEncoder().unread([text]) == [None]


@given(st.lists(st.text(st.characters(max_codepoint=127)), min_size=1))
def test_ascii_never_warns(texts: list[str]) -> None:
    scripts = counted(map(foreign_script, texts))
    assert scripts == {} and unread_text(scripts, len(texts), encoder="minilm") is None


def test_a_tenth_is_passed_over_and_more_is_said() -> None:
    assert unread_text({"Hangul": 1}, 1000, encoder="minilm") is None
    assert unread_text({"Hangul": 10}, 100, encoder="minilm") is None
    said = unread_text({"Hangul": 10, "Han": 1}, 100, encoder="minilm")
    assert said and said.startswith("11 of 100 texts (11%) are in Hangul, Han, and the encoder `minilm`")
    assert unread_text({"Hangul": 100}, 100, encoder="hash") is None
    assert "tokenizer" in str(unread_text({"Hangul": 100}, 100, encoder="/my/own"))


class English:
    """The tokenizer of an English encoder, in place of an encoder of one's own."""

    width, max_tokens, digest = 768, 512, "0"
    first_token, last_token, padding_token, unknown_token = 101, 102, 0, MiniLM.unknown_token

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str((installed_folder() or Path()) / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def to(self, device: torch.device) -> None:
        """There are no weights."""

    def tokens(self, texts: list[str]) -> list[list[int]]:
        return [item.ids for item in self.tokenizer.encode_batch(texts, add_special_tokens=False)]


class Words(English):
    """A tokenizer that knows every word."""

    def tokens(self, texts: list[str]) -> list[list[int]]:
        return [[7] * len(text.split()) for text in texts]


def test_an_own_encoder_is_judged_by_its_tokenizer() -> None:
    model: Any = English()
    assert model.tokenizer.token_to_id("[UNK]") == MiniLM.unknown_token
    texts = [*TEXTS, *LATIN]
    found = TransformerEncoder(model, label="/my/own").unread(texts)
    # It has the signs of Kana one by one, as a Japanese encoder may have them.
    expected = [None if script in ("Hiragana", "Katakana") else script for script in TEXTS.values()]
    assert found == [*expected, *[None] * len(LATIN)]
    knowing: Any = Words()
    assert TransformerEncoder(knowing, label="/my/own").unread(texts) == [None] * len(texts)
    # What the default one was trained on is known, whatever its tokenizer says.
    assert TransformerEncoder(knowing, label="minilm").unread(texts)[: len(TEXTS)] == list(TEXTS.values())


def test_prepare_and_plan_say_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = written(tmp_path / "a.json", korean=30, english=30), tmp_path / "data"
    for _ in range(2):
        main(["prepare", str(source), "--out", str(folder), "--json", *KEPT])
        told = capsys.readouterr()
        assert json.loads(told.out)["scripts"] == {"Hangul": 30}
        assert told.err.count("30 of 60 texts (50%) are in Hangul") == 1 and told.err.count(ADVICE) == 1
    plan = ["plan", "--preset", "tiny", "--micro-batch", "1", "--json", "--data"]
    for data in (source, folder):
        main([*plan, str(data)])
        told = capsys.readouterr()
        assert json.loads(told.out)["warning"] in told.err and told.err.count("in Hangul") == 1
        assert json.loads(told.out)["records"] == 60
    for encoder in ("hash", "/my/own"):
        main([*plan, str(folder), "--encoder", encoder])
        told = capsys.readouterr()
        assert json.loads(told.out)["warning"] is None and told.err == ""
    main(
        [
            "prepare",
            str(written(tmp_path / "b.json", korean=1, english=59)),
            "--out",
            str(tmp_path / "other"),
            "--json",
            *KEPT,
        ]
    )
    told = capsys.readouterr()
    assert json.loads(told.out)["scripts"] == {"Hangul": 1} and "warning" not in told.err


def test_a_folder_of_before_is_read_and_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = written(tmp_path / "a.json", korean=60), tmp_path / "data"
    prepare(source, out=folder, config=PrepareConfig(duplicate_similarity=0.0), seed=0)
    old = msgspec.to_builtins(read_sealed(folder / "manifest.json", Manifest))
    del old["scripts"]
    write_sealed(folder / "manifest.json", old)
    assert load_prepared(folder).manifest.scripts is None
    main(["prepare", str(source), "--out", str(folder), *KEPT])
    told = capsys.readouterr()
    assert "Hangul" not in told.err
    assert told.out == f"{folder}: 60 read, 0 near-duplicates; train 48, val 3 + 3, test 6\n"


@pytest.mark.parametrize(("encoder", "warnings"), [("minilm", 1), ("hash", 0), ("/my/own", 1)])
def test_a_run_says_it_before_it_trains(
    encoder: str, warnings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = SimpleNamespace(features=SimpleNamespace(manifest=SimpleNamespace(unread={"Hangul": 60})))
    monkeypatch.setattr(phases, "load_study", lambda *_, **__: opened)
    config = StudyConfig(
        prepare=PrepareConfig(duplicate_similarity=0.0),
        data=str(written(tmp_path / "a.json", korean=60)),
        out=tmp_path / "run",
        features=FeatureConfig(encoder=encoder),
    )
    phases.open_study(config, RunFolder(tmp_path / "run"))
    assert capsys.readouterr().err.count("60 of 60 texts (100%) are in Hangul") == warnings


def test_the_report_names_it_among_the_limitations(finished_run: Path) -> None:
    facts = read_facts(finished_run)
    assert facts.unread == {} and "texts (" not in limitations(facts)
    num_records = facts.manifest.num_records
    config = {**facts.config, "features": {**facts.config["features"], "encoder": "minilm"}}
    facts = msgspec.structs.replace(facts, unread={"Hangul": num_records}, config=config)
    assert f"- {num_records} of {num_records} texts (100%) are in Hangul, and the encoder" in limitations(facts)

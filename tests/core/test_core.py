"""Errors say everything at once; files are whole or not there; configurations are exact."""

import errno
from pathlib import Path

import pytest

from redheart.core.config import StudyConfig, SweepConfig, TrainConfig, digest, load_toml, resolved
from redheart.core.errors import BadInput, CorruptFile, DiskError
from redheart.core.files import (
    disk_errors,
    read_json,
    read_sealed,
    write_bytes,
    write_json,
    write_sealed,
)
from redheart.core.seeds import stream_seed


def test_error_lists_what_is_known() -> None:
    error = BadInput("no such key", where="a.toml", got="x", hint="remove it")
    assert str(error) == "no such key\n  where:    a.toml\n  got:      x\n  hint:     remove it"


def test_json_round_trip_and_broken_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5]})
    assert read_json(tmp_path / "a.json", dict) == {"b": 1, "a": [1.5]}
    (tmp_path / "a.json").write_bytes(b'{"b": 1')
    with pytest.raises(BadInput, match="not readable as JSON"):
        read_json(tmp_path / "a.json", dict)
    with pytest.raises(BadInput, match="file not found"):
        read_json(tmp_path / "b.json", dict)


def test_a_sealed_file_is_json_and_every_changed_byte_is_found(tmp_path: Path) -> None:
    path, value = tmp_path / "a.json", {"b": 1.5, "a": ["é", None], "c": {"d": -1e-9}}
    write_sealed(path, value)
    assert read_sealed(path, dict) == value
    assert {name: item for name, item in read_json(path, dict).items() if name != "sha256"} == value
    content = path.read_bytes()
    broken = [content[:position] for position in range(len(content))]
    broken += [
        content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for at in range(len(content))
        for bit in range(8)
    ]
    broken += [content + b" ", content + content, b"", b"{}", b'{"b": 1.5}\n']
    for changed in broken:
        path.write_bytes(changed)
        with pytest.raises(CorruptFile, match=r"a\.json"):
            read_sealed(path, dict)
    path.write_bytes(content)
    with pytest.raises(BadInput, match="of another version"):
        read_sealed(path, list)


def test_a_folder_in_the_way_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.json", tmp_path / ("n" * 300)):
        with pytest.raises(DiskError, match="cannot write"):
            write_bytes(path, b"x")


def test_full_disk_is_exit_74(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="no space left") as caught, disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.exit_code == 74


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("[train]\nlearning_rat = 1e-4\n")
    with pytest.raises(BadInput, match="did you mean `learning_rate`"):
        load_toml(path)


def test_toml_keeps_defaults_and_digest_sees_changes(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('out = "runs/x"\n[train]\nlearning_rate = 1e-4\n')
    config = load_toml(path)
    assert config.out == Path("runs/x") and config.train.learning_rate == 1e-4
    assert config.train.effective_batch == StudyConfig().train.effective_batch
    assert digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize(
    "content",
    [
        b"epochs = " + b"9" * 5000,
        b"x = " + b"[" * 20_000,
        b"\xff = 1",
        b'out = "\\ud800"',
        b"epochs = 1\nepochs = 2",
        b"=",
        b"out = 3",
    ],
)
def test_configuration_files_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"study\.toml"):
        load_toml(path)
    with pytest.raises(BadInput, match="cannot be read"):
        load_toml(tmp_path)


def test_all_settings_out_of_range_are_named_at_once() -> None:
    nan = float("nan")
    config = StudyConfig(
        epochs=0,
        data="a\0b",
        out=Path("a\udcffb"),
        train=TrainConfig(learning_rate=nan, beta2=1.0, clip_norm=float("inf"), effective_batch=10**30),
        sweep=SweepConfig(rates=(1e-4, -1.0, 1e-4)),
    )
    with pytest.raises(BadInput, match="settings out of range") as refused:
        resolved(config)
    for name in ("epochs", "data", "out", "train.learning_rate", "train.beta2", "train.clip_norm", "sweep.rates[1]"):
        assert f"{name} = " in str(refused.value)
    assert "different rates" in str(refused.value) and "train.effective_batch" in str(refused.value)
    assert "train.beta1" not in str(refused.value)


def test_streams_differ_by_name_and_are_stable() -> None:
    assert stream_seed(0, "order", 1) != stream_seed(0, "order", 2)
    assert stream_seed(0, "order", 1) == stream_seed(0, "order", 1) < 2**63

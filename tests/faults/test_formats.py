"""Every format that is read, changed at random: what was written, or an error of ours; never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redheart.cli.settings import default_toml
from redheart.core.config import load_toml, resolved
from redheart.core.errors import RedHeartError
from redheart.core.files import read_sealed, write_sealed
from redheart.snapshots.delta import read_delta, write_delta
from redheart.snapshots.manifests import Delta, Progress, SnapshotManifest, StateManifest, TensorFile
from redheart.snapshots.tensor_file import TensorReader, write_tensors
from redheart.train.log.events import EventLog, read_events

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3).bfloat16(), "b": torch.zeros(0), "c": torch.ones(300)}
ENTRY = TensorFile("one.safetensors", "0" * 64, 100, 3)


def tensor_file(path: Path) -> object:
    write_tensors(path, TENSORS)
    return read_tensors(path)


def read_tensors(path: Path) -> object:
    reader = TensorReader(path)
    return {name: (reader.specs[name], reader[name].view(torch.uint8).tolist()) for name in reader}


BASE = {"w": torch.arange(40.0).bfloat16()}


def delta_file(path: Path) -> object:
    write_delta(path, {"w": BASE["w"] + 1}, BASE, delta=Delta("b", "0" * 64, "1" * 64, 80))
    return read_differences(path)


def read_differences(path: Path) -> object:
    reader = read_delta(path, BASE)
    return {name: reader[name].view(torch.int16).tolist() for name in reader}


def toml_file(path: Path) -> object:
    path.write_text(default_toml())
    return None


def read_toml(path: Path) -> object:
    resolved(load_toml(path))
    # Any number in its range is a legal setting: a changed configuration is another one, not a damaged one.
    return None


def event_log(path: Path) -> object:
    log = EventLog(path, length_bytes=0)
    for step in range(4):
        log.write("step", step=step, loss=0.5, text="é")
    log.close()
    return read_log(path)


def read_log(path: Path) -> object:
    return [entry["step"] for entry in read_events(path, "step")]


def state_manifest(path: Path) -> object:
    write_sealed(path, StateManifest(Progress(1, 0, 7, {"x": 0.5}, {"x": 2.0}, 0, 0.25, 99), "key", [ENTRY], {}))
    return read_state(path)


def read_state(path: Path) -> object:
    return read_sealed(path, StateManifest)


def snapshot_manifest(path: Path) -> object:
    write_sealed(path, SnapshotManifest(2, 20, 0.5, 1.0, {"one": 1.0}, {"one": 0.9}, {"one": ENTRY}, ENTRY))
    return read_snapshot(path)


def read_snapshot(path: Path) -> object:
    return read_sealed(path, SnapshotManifest)


FORMATS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "tensors": (tensor_file, read_tensors),
    "differences": (delta_file, read_differences),
    "configuration": (toml_file, read_toml),
    "events": (event_log, read_log),
    "state manifest": (state_manifest, read_state),
    "snapshot manifest": (snapshot_manifest, read_snapshot),
}
# Without a digest around them: a reader alone cannot know that a number inside was another one.
PROVEN_ELSEWHERE = ("tensors", "differences", "configuration")
PIECES = st.sampled_from(
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b"NaN",
        b"-1",
        b"1e999",
        b"9" * 30,
        b"[" * 3000,
        b"{}",
        b'"',
        b"null",
        b"\xed\xa0\x80",
        b"\n",
    ]
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150)
@given(data=st.data())
def test_a_changed_file_is_what_it_was_or_refused(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write, read = FORMATS[name]
    path = tmp_path_factory.mktemp("format") / "file"
    expected = write(path)
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + 40)))
        content = content[:start] + data.draw(PIECES | st.binary(max_size=8)) + content[stop:]
    path.write_bytes(content)
    try:
        found = read(path)
    except RedHeartError:
        return
    if name == "events":
        # Lines after the last whole one that is in the chain are those of a killed run.
        assert isinstance(expected, list) and found == expected[: len(found)]  # type: ignore[arg-type]
    elif name not in PROVEN_ELSEWHERE:
        assert found == expected


def test_json_of_any_kind_is_refused_where_a_manifest_was_expected(tmp_path: Path) -> None:
    for value in (None, [], {}, 1, "x", {"progress": {}}, {"epoch": "two"}):
        (tmp_path / "m.json").write_text(json.dumps(value))
        for kind in (StateManifest, SnapshotManifest):
            with pytest.raises(RedHeartError, match=r"m\.json"):
                read_sealed(tmp_path / "m.json", kind)

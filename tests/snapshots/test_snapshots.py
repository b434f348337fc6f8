"""States and snapshots are whole or not there, verified when read, and assembled strictly."""

import errno
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from redheart.core.errors import CorruptFile, DiskError
from redheart.core.files import PARTIAL, sha256_file
from redheart.snapshots import tensor_file
from redheart.snapshots.manifests import Progress, state_folders
from redheart.snapshots.states import newest_state, write_state
from redheart.snapshots.survey import verify_run
from redheart.snapshots.tensor_file import open_tensors, write_tensors
from redheart.snapshots.tensors import Tensors, copy_into

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "c": torch.tensor(7, dtype=torch.int64),
    "d": torch.zeros(0, 4),
    "e": torch.arange(9, dtype=torch.uint8),
}


def progress(step: int) -> Progress:
    return Progress(
        epoch=0,
        step_in_epoch=step,
        step=step,
        sums={"x": 0.1},
        counts={"x": 3.0},
        bad_steps=0,
        grad_norm=0.5,
        events_bytes=9,
    )


def save(root: Path, step: int) -> None:
    write_state(
        root,
        tensors={"w": torch.full((4,), float(step))},
        progress=progress(step),
        run_key="k",
        rank=0,
        world_size=1,
        barrier=lambda: None,
        parameters={},
    )


def test_files_are_what_the_library_reads(tmp_path: Path) -> None:
    entry = write_tensors(tmp_path / "t.safetensors", TENSORS)
    by_library, ours = load_file(tmp_path / "t.safetensors"), dict(open_tensors(tmp_path, entry))
    for name, tensor in TENSORS.items():
        assert torch.equal(by_library[name], tensor) and by_library[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)


def test_every_flipped_cut_or_missing_byte_is_named(tmp_path: Path) -> None:
    entry = write_tensors(tmp_path / "t.safetensors", TENSORS)
    path = tmp_path / "t.safetensors"
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with pytest.raises(CorruptFile, match=r"t\.safetensors"):
            dict(open_tensors(tmp_path, entry))
        path.write_bytes(content[:position])
        with pytest.raises(CorruptFile, match="is cut"):
            dict(open_tensors(tmp_path, entry))
    path.unlink()
    with pytest.raises(CorruptFile, match="missing"):
        dict(open_tensors(tmp_path, entry))


def test_two_states_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    state = newest_state(tmp_path)
    assert state is not None and state.manifest.progress == progress(3)
    assert torch.equal(state.ranks[0]["w"], torch.full((4,), 3.0))


def test_a_leftover_of_a_killed_save_is_no_state(tmp_path: Path) -> None:
    save(tmp_path, 1)
    partial = tmp_path / f".step_00000002{PARTIAL}"
    partial.mkdir()
    (partial / "rank_0.safetensors").write_bytes(b"half")
    state = newest_state(tmp_path)
    assert state is not None and state.manifest.progress.step == 1
    save(tmp_path, 2)
    assert not partial.exists()


def test_a_state_that_is_half_removed_is_not_bad_and_one_without_its_manifest_is(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    half = tmp_path / "step_00000001"
    half.mkdir()
    (half / "rank_0.safetensors").write_bytes(b"what a kill has left of it")
    assert verify_run(tmp_path / "none", tmp_path).bad == []
    (tmp_path / "step_00000002" / "manifest.json").unlink()
    (bad,) = verify_run(tmp_path / "none", tmp_path).bad
    assert "step_00000002/manifest.json" in bad


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["manifest.json", "rank_0.safetensors"])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_state_is_passed_over_for_the_one_before(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    damage(tmp_path / "step_00000003" / name)
    state = newest_state(tmp_path)
    assert state is not None and state.manifest.progress.step == 2
    assert [str(error.where) for error in state.refused] == [str(tmp_path / "step_00000003" / name)]
    # The damaged one takes no good state's place while the run comes back to where it was.
    save(tmp_path, 3 if name == "manifest.json" else 2)
    state = newest_state(tmp_path)
    assert state is not None and not state.refused
    assert len(list(tmp_path.iterdir())) == (2 if name == "manifest.json" else 1)


def test_a_state_that_the_disk_does_not_give_back_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def read(path: Path) -> str:
        if "step_00000002" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return sha256_file(path)

    monkeypatch.setattr(tensor_file, "sha256_file", read)
    state = newest_state(tmp_path)
    assert state is not None and state.manifest.progress.step == 1
    (refused,) = state.refused
    assert (refused.what, refused.got) == ("a file of tensors cannot be read", "Input/output error")
    assert refused.where == tmp_path / "step_00000002" / "rank_0.safetensors"


def test_what_is_gone_between_two_looks_is_no_state(tmp_path: Path) -> None:
    save(tmp_path, 1)
    # As another process sees a state that the run removes meanwhile: a name that leads nowhere.
    (tmp_path / "step_00000002").symlink_to("gone")
    (tmp_path / "step_00000003").write_text("no folder")
    assert [folder.name for folder in state_folders(tmp_path)] == ["step_00000001"]
    state = newest_state(tmp_path)
    assert state is not None and state.manifest.progress.step == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "planted"), KeyboardInterrupt()])
def test_a_state_that_is_not_replaced_is_still_there(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        # The new one takes the place that the old one has left.
        if path.name == f".step_00000001{PARTIAL}":
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises((DiskError, KeyboardInterrupt)):
        save(tmp_path, 1)
    assert [item.name for item in tmp_path.iterdir()] == ["step_00000001"]
    state = newest_state(tmp_path)
    assert state is not None and state.manifest.progress.step == 1


def test_a_run_without_any_readable_state_says_so_and_touches_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    flip(tmp_path / "step_00000001" / "rank_0.safetensors")
    flip(tmp_path / "step_00000002" / "manifest.json")
    with pytest.raises(CorruptFile, match="train again from the start") as refused:
        newest_state(tmp_path)
    for name in ("step_00000001/rank_0.safetensors", "step_00000002/manifest.json"):
        assert name in str(refused.value)
    assert len(list(tmp_path.iterdir())) == 2


def test_copies_that_somebody_made_are_no_states(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_00000001.bak")
    for step in (2, 3, 4):
        save(tmp_path, step)
    assert (tmp_path / "step_00000001.bak").is_dir() and len(list(tmp_path.iterdir())) == 3


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from redheart.core.errors import DiskError
from redheart.snapshots.states import write_state
sys.path.insert(0, sys.argv[2])
from test_snapshots import progress
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    write_state(Path(sys.argv[1]), tensors={"w": torch.zeros(10_000)}, progress=progress(2), run_key="k",
                rank=0, world_size=1, barrier=lambda: None, parameters={})
except DiskError as error:
    print(error.exit_code)
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE is not None
    save(tmp_path, 1)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path, Path(__file__).parent], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "74"
    assert [item.name for item in tmp_path.iterdir()] == ["step_00000001"]
    state = newest_state(tmp_path)
    assert state is not None and state.ranks[0]["w"].tolist() == [1.0] * 4


def test_loading_is_strict() -> None:
    target = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(CorruptFile) as caught:
        copy_into(target, Tensors.of({"a": torch.ones(4), "c": torch.ones(1)}), where="file")
    for part in ("b: missing", "c: not expected", "a: got float32 [4], expected float32 [2]"):
        assert part in str(caught.value)
    assert target["a"].tolist() == [0, 0]

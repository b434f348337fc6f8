"""Compressed snapshots give back every byte, at every instant of the rewriting; pruning keeps what others lean on."""

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from killed_operations import files, weights
from launching import environment

from redheart.core.errors import BadInput, CorruptFile
from redheart.core.folders import folder_lock
from redheart.snapshots import compress
from redheart.snapshots.compress import compress_snapshots, expand
from redheart.snapshots.manifests import TensorFile
from redheart.snapshots.module_snapshots import Snapshot, list_snapshots, write_snapshot
from redheart.snapshots.prune import Keep, disk_bytes, prune


def walk(root: Path, snapshots: int, *, seed: int = 0, first: int = 1) -> Path:
    """Snapshots of weights that change a little from each to the next, and of a module that never does."""
    generator = torch.Generator().manual_seed(seed)
    weights, frozen = torch.randn(60, 40, generator=generator), torch.randn(64, generator=generator)
    for epoch in range(first, first + snapshots):
        weights = weights * (1 + 0.01 * torch.randn(weights.shape, generator=generator))
        write_snapshot(
            root,
            modules={"part.one": {"weight": weights.bfloat16()}, "frozen": {"weight": frozen.bfloat16()}},
            outputs={"part.one": torch.rand(4, 2, generator=generator)},
            epoch=epoch,
            step=10 * epoch,
            cycle_position=0.5,
            val_loss=abs(epoch - 3.2),
            val_module_loss={"part.one": 1.0},
            train_module_loss={"part.one": 0.9},
        )
    return root


def expand_all(root: Path) -> None:
    for snapshot in list_snapshots(root):
        expand(snapshot)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_all_but_the_newest_shrink_and_come_back_byte_for_byte(tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 20)
    before, tensors, size = files(root), weights(root), disk_bytes(root)
    done = compress_snapshots(root)
    assert weights(root) == tensors
    assert disk_bytes(root) < 0.7 * size
    whole = [snapshot.epoch for snapshot in list_snapshots(root) if snapshot.is_whole]
    assert whole == [1, 17, 20] and {item.epoch for item in done} == set(range(1, 21)) - set(whole)
    assert compress_snapshots(root) == []
    expand_all(root)
    assert files(root) == before


def test_whoever_follows_the_work_is_told_of_all_bytes(tmp_path: Path) -> None:
    root, told = walk(tmp_path / "snapshots", 4), []
    size = sum(entry.content_bytes for item in list_snapshots(root) for entry in item.manifest.modules.values())
    compress_snapshots(root, on_bytes=told.append)
    assert sum(told) == size


def test_snapshots_of_epochs_with_five_digits_come_behind_those_with_four(tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 4, first=9998)
    (root / "epoch_010002").mkdir()
    tensors = weights(root)
    assert [snapshot.epoch for snapshot in list_snapshots(root)] == [9998, 9999, 10_000, 10_001]
    assert [item.epoch for item in compress_snapshots(root)] == [9999, 10_000] and weights(root) == tensors
    assert len({(root / f"epoch_{epoch}" / "frozen.safetensors").stat().st_ino for epoch in (9999, 10_000)}) == 1


def test_no_read_goes_through_more_than_four_others(tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 17)
    compress_snapshots(root)
    by_name = {snapshot.folder.name: snapshot for snapshot in list_snapshots(root)}
    depths = []
    for snapshot in by_name.values():
        depth = 0
        while (entry := snapshot.manifest.modules["part.one"]).delta:
            snapshot, depth = by_name[entry.delta.base], depth + 1
        depths.append(depth)
    assert depths == [0, *(index.bit_count() for index in range(1, 16)), 0] and max(depths) == 4


def test_a_module_that_does_not_change_takes_its_bytes_once(tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 4)
    paths = [snapshot.folder / "frozen.safetensors" for snapshot in list_snapshots(root)]
    assert len({path.stat().st_ino for path in paths}) == 1
    compress_snapshots(root)
    assert len({path.stat().st_ino for path in paths}) == 1
    # What has rotted takes nobody's place.
    paths[3].write_bytes(flipped(paths[3].read_bytes()))
    walk(root, 1, first=5)
    assert len({path.stat().st_ino for path in (paths[3], root / "epoch_0005" / "frozen.safetensors")}) == 2


def test_what_a_difference_leans_on_is_checked(tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 4)
    compress_snapshots(root)
    second = list_snapshots(root)[1]
    first = root / "epoch_0001"
    content = (first / "part.one.safetensors").read_bytes()
    (first / "part.one.safetensors").write_bytes(flipped(content))
    with pytest.raises(CorruptFile, match=r"epoch_0001/part\.one\.safetensors"):
        second.open_module("part.one")
    # Another run's snapshot, with digests of its own.
    other = walk(tmp_path / "other" / "snapshots", 1, seed=1) / "epoch_0001"
    first.rename(tmp_path / "away")
    with pytest.raises(CorruptFile, match="is missing"):
        second.open_module("part.one")
    other.rename(first)
    with pytest.raises(CorruptFile, match="differences to other weights"):
        second.open_module("part.one")


def test_a_corrupt_original_is_left_alone_and_named(tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 4)
    path = root / "epoch_0003" / "part.one.safetensors"
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(CorruptFile, match=r"epoch_0003/part\.one\.safetensors"):
        compress_snapshots(root)
    assert path.exists() and not (root / "epoch_0003" / "part.one.delta").exists()
    assert not list_snapshots(root)[1].is_whole and list_snapshots(root)[2].is_whole


@pytest.mark.parametrize("epoch", ["epoch_0001", "epoch_0002", "epoch_0003"])
def test_an_original_that_is_gone_is_named(epoch: str, tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 4)
    (root / epoch / "part.one.safetensors").unlink()
    with pytest.raises(CorruptFile, match="missing") as caught:
        compress_snapshots(root)
    assert f"{epoch}/part.one.safetensors" in str(caught.value)


def test_what_is_not_read_back_the_same_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = walk(tmp_path / "snapshots", 3)
    before = files(root)
    monkeypatch.setattr(compress, "content_sha256", lambda *_: "0" * 64)
    with pytest.raises(CorruptFile, match="does not give back the original's bytes"):
        compress_snapshots(root)
    assert files(root) == before


def test_two_do_not_rewrite_at_once(tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 3)
    with folder_lock(tmp_path, name="snapshots", wait=False), pytest.raises(BadInput, match="another process"):
        compress_snapshots(root)


def test_a_disk_that_cannot_be_read_is_not_said_to_be_one_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = list_snapshots(walk(tmp_path / "snapshots", 1))[0].open_model()

    def failing(*_: object, **__: object) -> object:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(CorruptFile, match="cannot be read"):
        dict(tensors)


def test_pruning_says_first_and_keeps_what_is_leant_on(tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 8)
    compress_snapshots(root)
    tensors, before = weights(root), files(root)
    keep = Keep(every=4, best=1)
    planned = prune(root, keep)
    assert (planned.kept, planned.rewritten, planned.is_done) == ([3, 4, 8], [3], False)
    assert files(root) == before
    done = prune(root, keep, remove=True)
    assert (done.kept, done.removed) == (planned.kept, planned.removed) == ([3, 4, 8], [1, 2, 5, 6, 7])
    assert weights(root) == {epoch: tensors[epoch] for epoch in (3, 4, 8)}
    assert done.bytes_after == disk_bytes(root) and done.bytes_after < done.bytes_before
    assert prune(root, keep, remove=True).removed == []
    compress_snapshots(root)
    assert weights(root) == {epoch: tensors[epoch] for epoch in (3, 4, 8)}
    assert sorted(path.name for path in root.iterdir()) == ["epoch_0003", "epoch_0004", "epoch_0008"]


def test_what_is_needed_and_the_newest_stay_and_wrong_rules_are_refused(tmp_path: Path) -> None:
    root = walk(tmp_path / "snapshots", 4)

    def needed() -> list[int]:
        # What a search chooses until the lock is held is needed too.
        with pytest.raises(BadInput, match="another process"):
            compress_snapshots(root)
        return [2, 99]

    assert prune(root, Keep(epochs=(1,)), needed=needed).kept == [1, 2, 4]
    for keep, message in (
        (Keep(), "no rule"),
        (Keep(epochs=(9,)), "no snapshot of that epoch"),
        (Keep(best=-1), "range"),
    ):
        with pytest.raises(BadInput, match=message):
            prune(root, keep, remove=True)
    with pytest.raises(BadInput, match="no snapshots"):
        prune(tmp_path / "none", Keep(last=1))
    assert len(list_snapshots(root)) == 4


@pytest.mark.parametrize("operation", ["compress", "expand", "prune"])
def test_killed_before_any_file_operation_everything_can_be_read(operation: str, tmp_path: Path) -> None:
    root = walk(tmp_path / "source" / "snapshots", 4)
    if operation != "compress":
        compress_snapshots(root)
    script = Path(__file__).parent / "killed_operations.py"
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, script, root, work, operation], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert not result["problems"], result["problems"]
    assert result["kills"] > 20


def test_a_snapshot_that_is_written_anew_waits_for_who_rewrites_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between differences and manifest its folder was another one: the weights went, and only the manifest stayed."""
    root = walk(tmp_path / "snapshots", 4)
    before, switch, writers = weights(root), compress._switch, []

    def while_training_goes_on(snapshot: Snapshot, entries: dict[str, TensorFile]) -> Snapshot:
        if not writers:
            writers.append(threading.Thread(target=walk, args=(root, 4)))
            writers[0].start()
            writers[0].join(timeout=0.5)
        return switch(snapshot, entries)

    monkeypatch.setattr(compress, "_switch", while_training_goes_on)
    assert compress_snapshots(root)
    writers[0].join()
    assert weights(root) == before

"""`redheart snapshots` on a real run: what it lists, checks, shrinks, removes and writes."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from launching import PYTHON, SMALL, launch
from safetensors.torch import load_file, save_file

from redheart.cli import main
from redheart.core.errors import BadInput
from redheart.model.dims import preset
from redheart.model.network import build
from redheart.snapshots import consolidate
from redheart.snapshots.compress import compress_snapshots
from redheart.snapshots.module_snapshots import list_snapshots


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("snapshots") / "run"
    done = launch(
        PYTHON, *SMALL, "--train.strategy", "plain", "--epochs", 4, "--train.snapshot-every", 1, "--out", folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    yield folder


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    capsys.readouterr()
    main(["snapshots", *map(str, arguments), "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def weights(run: Path) -> dict[int, dict[str, torch.Tensor]]:
    return {
        item.epoch: {f"{name}.{key}": t for name in item.manifest.modules for key, t in item.open_module(name).items()}
        for item in list_snapshots(run / "train" / "snapshots")
    }


def test_a_run_is_listed_verified_shrunk_and_written_as_one_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(run)
    assert [row["epoch"] for row in answer(capsys, "list", run)["snapshots"]] == [1, 2, 3, 4]  # type: ignore[index]
    assert answer(capsys, "verify", run)["bad"] == []
    made = answer(capsys, "compress", run)
    assert made["bytes_after"] < made["bytes_before"]  # type: ignore[operator]
    after = weights(run)
    assert all(torch.equal(after[epoch][name], t) for epoch, tensors in before.items() for name, t in tensors.items())
    assert answer(capsys, "verify", run)["bad"] == []

    answer(capsys, "consolidate", run, "--epoch", 2, "--out", tmp_path / "two.safetensors")
    two = load_file(tmp_path / "two.safetensors")
    assert set(two) == set(before[2]) and all(torch.equal(two[name], t) for name, t in before[2].items())
    answer(capsys, "consolidate", run, "--from-state", "--dtype", "bf16", "--out", tmp_path / "last.safetensors")
    last = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(last[name], t) for name, t in before[4].items())
    model = build(preset("tiny"), seed=0)
    model.load_state_dict({name: tensor.float() for name, tensor in two.items()})

    made = answer(capsys, "import", tmp_path / "two.safetensors", "--like", run, "--out", tmp_path / "modules")
    assert made["is_checked"] is True and (tmp_path / "modules" / "manifest.json").is_file()


def test_a_state_whose_removal_was_cut_off_is_not_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, half = answer(capsys, "list", run), run / "train" / "states" / "step_00000000"
    half.mkdir()
    (half / "rank_0.safetensors").touch()
    assert answer(capsys, "list", run) == before
    shutil.rmtree(half)


@pytest.mark.parametrize("can_lock", [True, False])
def test_a_snapshot_is_not_rewritten_while_it_is_read(
    can_lock: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = consolidate.consolidated

    def beside_another(*given: object, **settings: object) -> object:
        if can_lock:
            with pytest.raises(BadInput, match="another process"):
                compress_snapshots(run / "train" / "snapshots")
        return read(*given, **settings)  # type: ignore[arg-type]

    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(consolidate, "consolidated", beside_another)
    if not can_lock:
        monkeypatch.setattr("fcntl.flock", no_lock)
    out = tmp_path / "two.safetensors"
    assert answer(capsys, "consolidate", run, "--epoch", 2, "--out", out)["file"] == str(out)


def test_what_is_bad_is_named_all_of_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshots = run / "train" / "snapshots"
    changed = [snapshots / "epoch_0004" / "backbone.safetensors", snapshots / "epoch_0001" / "outputs.safetensors"]
    originals = [path.read_bytes() for path in changed]
    for path, content in zip(changed, originals, strict=True):
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["snapshots", "verify", str(run)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and all(str(path) in said for path in changed)
    for path, content in zip(changed, originals, strict=True):
        path.write_bytes(content)


def test_pruning_says_first_and_keeps_what_was_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights(run)
    assert answer(capsys, "prune", run, "--keep-every", 2)["removed"] == [1, 3]
    assert set(weights(run)) == {1, 2, 3, 4}
    answer(capsys, "prune", run, "--keep-every", 2, "--yes")
    after = weights(run)
    assert set(after) == {2, 4}
    assert all(torch.equal(t, before[epoch][name]) for epoch in after for name, t in after[epoch].items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lsit"], "list"),
        (["list", "/no/such/run"], "no run"),
        (["consolidate", "RUN", "--epoch", "9", "--out", "x.safetensors"], "no snapshot of that epoch"),
        (["consolidate", "RUN", "--out", "x.pt"], "safetensors"),
        (["import", "/no/such/file.pt", "--out", "x.safetensors"], "/no/such/file.pt"),
    ],
)
def test_bad_requests_are_one_clear_error(
    run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["snapshots", *(str(run) if item == "RUN" else item for item in arguments)])
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("place", ["train/snapshots/epoch_0002/backbone.safetensors", "features/new.safetensors"])
def test_a_whole_model_does_not_take_the_place_of_a_runs_own_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(SystemExit) as ended:
        main(["snapshots", "consolidate", str(run), "--out", str(tmp_path / "link" / place)])
    assert ended.value.code == 2 and "the run's own files" in capsys.readouterr().err
    assert answer(capsys, "verify", run)["bad"] == []


@pytest.mark.parametrize("place", ["select/final", "train/new.safetensors"])
def test_nor_does_an_imported_one(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    source = tmp_path / "m.safetensors"
    main(["snapshots", "consolidate", str(run), "--out", str(source)])
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(SystemExit) as ended:
        main(["snapshots", "import", str(source), "--like", str(run), "--out", str(tmp_path / "link" / place)])
    assert ended.value.code == 2 and "the run's own files" in capsys.readouterr().err
    assert not (run / place).exists()


def test_an_import_does_not_take_the_place_of_a_file_that_an_index_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a.w": torch.ones(2)}, tmp_path / "shard-1.safetensors")
    index = {"weight_map": {"a.w": "shard-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    before = (tmp_path / "shard-1.safetensors").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["snapshots", "import", str(tmp_path), "--out", str(tmp_path / "shard-1.safetensors"), "--dtype", "bf16"])
    assert ended.value.code == 2 and "the output is the input" in capsys.readouterr().err
    assert (tmp_path / "shard-1.safetensors").read_bytes() == before


def test_an_import_does_not_take_the_place_of_what_it_reads(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "m.safetensors"
    main(["snapshots", "consolidate", str(run), "--out", str(source)])
    before = source.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["snapshots", "import", str(source), "--out", str(source), "--dtype", "fp32"])
    assert ended.value.code == 2 and "the output is the input" in capsys.readouterr().err
    assert source.read_bytes() == before

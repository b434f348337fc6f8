"""One file per model: the masters of real states are the weights of the snapshot, name by name and bit by bit."""

from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from test_consolidate import write
from test_snapshots import progress

from redheart.core.errors import BadInput, CorruptFile
from redheart.snapshots.consolidate import consolidated, in_type, write_modules
from redheart.snapshots.manifests import ParameterPlace, StateManifest
from redheart.snapshots.module_snapshots import list_snapshots
from redheart.snapshots.states import State, newest_state, open_masters


def test_masters_of_real_states_rounded_are_the_snapshot_of_that_epoch(trained_run: Path, tmp_path: Path) -> None:
    state = newest_state(trained_run / "train" / "states")
    last = list_snapshots(trained_run / "train" / "snapshots")[-1]
    assert state is not None and state.manifest.progress.epoch == last.epoch
    from_state = consolidated(state, tmp_path / "state.safetensors", dtype="bf16")
    from_snapshot = consolidated(last, tmp_path / "snapshot.safetensors", dtype="bf16")
    found, expected = load_file(from_state.file), load_file(from_snapshot.file)
    assert set(found) == set(expected) and len(found) == 361
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    masters = load_file(consolidated(state, tmp_path / "fp32.safetensors", dtype="fp32").file)
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    # Float32 masters hold more than their bf16 copies do.
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in masters.values())
    step = str(last.manifest.step)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:  # type: ignore[no-untyped-call]
        assert file.metadata() == {"format": "pt", "from": "resume state", "epoch": "2", "step": step}


def write_ranks(root: Path, flat: torch.Tensor, ranks: int, places: dict[str, ParameterPlace]) -> State:
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % (2 * ranks)))
    for rank in reversed(range(ranks)):
        write_rank(root, padded.chunk(ranks)[rank], rank, ranks, places)
    state = newest_state(root)
    assert state is not None
    return state


def write_rank(root: Path, part: torch.Tensor, rank: int, ranks: int, places: dict[str, ParameterPlace]) -> None:
    from redheart.core.files import write_json, write_sealed
    from redheart.snapshots.manifests import TensorFile
    from redheart.snapshots.tensor_file import write_tensors

    folder = root / "step_00000001"
    folder.mkdir(parents=True, exist_ok=True)
    entry = write_tensors(folder / f"rank_{rank}.safetensors", {"0.master": part})
    write_json(folder / f"rank_{rank}.json", entry)
    if rank == 0:
        entries = [
            msgspec.json.decode((folder / f"rank_{item}.json").read_bytes(), type=TensorFile) for item in range(ranks)
        ]
        write_sealed(folder / "manifest.json", StateManifest(progress(1), "k", entries, places))


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), ranks=st.integers(1, 5), seed=st.integers(0, 99))
def test_parameters_that_lie_across_ranks_come_back_whole(
    sizes: list[int], ranks: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parameters = {
        f"p{index}": torch.randn(size, 2, generator=torch.Generator().manual_seed(seed + index))
        for index, size in enumerate(sizes)
    }
    places, offset = {}, 0
    for name, tensor in parameters.items():
        places[name] = ParameterPlace(0, offset, list(tensor.shape))
        offset += tensor.numel()
    flat = torch.cat([tensor.reshape(-1) for tensor in parameters.values()])
    masters = open_masters(write_ranks(tmp_path_factory.mktemp("ranks"), flat, ranks, places))
    assert list(masters) == list(parameters)
    for name, tensor in parameters.items():
        assert torch.equal(masters[name], tensor)


def test_progress_is_told_in_bytes_of_the_source_whatever_is_written(tmp_path: Path) -> None:
    made = write(tmp_path / "run" / "s", 2)
    source, file, folder = made.open_model(), list[int](), list[int]()
    consolidated(made, tmp_path / "model.safetensors", dtype="fp32", on_tensor=file.append)
    converted = in_type(source, torch.float32, folder.append)
    write_modules(tmp_path / "model", converted, list(made.manifest.modules))
    assert file == folder == [spec.bytes for spec in source.specs.values()]


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    made = write(tmp_path / "run" / "s", 2)
    with pytest.raises(BadInput, match=r"ends in \.safetensors"):
        consolidated(made, tmp_path / "model.bin", dtype="bf16")
    out = tmp_path / "model.safetensors"
    first = consolidated(made, out, dtype="fp32")
    assert load_file(out)["one.weight"].dtype == torch.float32 and first.num_tensors == 2
    before = out.read_bytes()
    tensors = made.open_model()
    (made.folder / "two.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFile, match=r"two\.safetensors"):
        tensors["two.weight"]
    with pytest.raises(CorruptFile, match=r"two\.safetensors"):
        consolidated(made, out, dtype="bf16")
    assert out.read_bytes() == before and {item.name for item in tmp_path.iterdir()} == {"run", out.name}

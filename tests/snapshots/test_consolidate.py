"""One model from several snapshots: exact bits, provenance, strict errors, bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from redheart.core.errors import BadInput, CorruptFile
from redheart.snapshots.blend import Blend, blended, mean_of, single, weighted
from redheart.snapshots.consolidate import (
    Specs,
    assemble,
    link_folder,
    load_assembly,
    module_specs,
    read_assembly,
    read_module,
)
from redheart.snapshots.module_snapshots import Snapshot, list_snapshots, write_snapshot


def model() -> nn.ModuleDict:
    return nn.ModuleDict({"one": nn.Linear(2, 2, bias=False), "two": nn.Linear(2, 3, bias=False)})


def weights(epoch: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    return {
        "one": {"weight": torch.randn(2, 2, generator=generator).bfloat16()},
        "two": {"weight": torch.randn(3, 2, generator=generator).bfloat16()},
    }


def write(root: Path, epoch: int, modules: dict[str, dict[str, Tensor]] | None = None) -> Snapshot:
    return write_snapshot(
        root,
        modules=modules or weights(epoch),
        outputs={"one": torch.rand(4, 2)},
        epoch=epoch,
        step=epoch * 10,
        cycle_position=0.5,
        val_loss=1.0,
        val_module_loss={"one": 1.0},
        train_module_loss={"one": 0.9},
    )


def specs() -> Specs:
    return module_specs(model(), ["one", "two"])


def test_complex_weights_have_a_mean_too() -> None:
    sources = [{"w": torch.tensor([1 + 1j])}, {"w": torch.tensor([3 + 3j])}]
    assert blended(sources, [0.5, 0.5], "w").tolist() == [2 + 2j]
    assert sources[0]["w"].tolist() == [1 + 1j]


@pytest.mark.parametrize("number", [2, 6, 10])
def test_what_is_the_same_in_all_snapshots_stays_as_it_is(number: int) -> None:
    """The lowest number of a mask must not become infinite, which 0 times is no number."""
    table = torch.tensor([torch.finfo(torch.float32).min, 0.1, 1 / 3])
    assert torch.equal(blended([{"w": table.clone()}] * number, [1 / number] * number, "w"), table)


def test_what_is_not_trained_keeps_the_type_that_it_came_in(tmp_path: Path) -> None:
    """Snapshots hold it rounded to bf16."""
    frozen = model()
    own = {name: parameter.detach().clone() for name, parameter in frozen.named_parameters()}
    parts = {name: {"weight": module.weight.detach().bfloat16()} for name, module in frozen.items()}
    choice = dict.fromkeys(parts, single(2))
    assemble(tmp_path / "out", choice=choice, snapshots=[write(tmp_path / "s", 2, parts)], expected=specs())
    frozen["one"].requires_grad_(False)
    load_assembly(frozen, tmp_path / "out")
    assert torch.equal(frozen["one"].weight, own["one.weight"])
    assert torch.equal(frozen["two"].weight, own["two.weight"].bfloat16().float())
    with torch.no_grad():
        frozen["one"].weight.add_(1.0)
    load_assembly(frozen, tmp_path / "out")
    assert torch.equal(frozen["one"].weight, own["one.weight"].bfloat16().float())


def test_every_module_comes_from_its_epochs_with_provenance(tmp_path: Path) -> None:
    snapshots = [write(tmp_path / "s", epoch) for epoch in (2, 4, 6)]
    choice = {"one": single(4), "two": weighted({2: 1.0, 4: 1.0, 6: 2.0})}
    assembly = assemble(tmp_path / "out", choice=choice, snapshots=snapshots, expected=specs())
    assert assembly == read_assembly(tmp_path / "out")
    loaded = model()
    assert load_assembly(loaded, tmp_path / "out").digest == assembly.digest
    assert torch.equal(loaded["one"].weight, weights(4)["one"]["weight"].float())
    parts = [weights(epoch)["two"]["weight"].double() for epoch in (2, 4, 6)]
    exact = (parts[0] + parts[1] + 2 * parts[2]) / 4
    # Summed in float32, rounded once: half a unit in the last place of bf16.
    assert torch.allclose(loaded["two"].weight.double(), exact, rtol=2**-8, atol=0)
    assert assembly.modules["one"].sources == (snapshots[1].manifest.modules["one"].sha256,)
    assert assembly.modules["two"].sources == tuple(item.manifest.modules["two"].sha256 for item in snapshots)
    assert assembly.modules["two"].blend == Blend((2, 4, 6), (0.25, 0.25, 0.5))
    by_epoch = {snapshot.epoch: snapshot for snapshot in snapshots}
    for name, blend in choice.items():
        read = read_module(by_epoch, name, blend, specs()[name])
        assert torch.equal(read["weight"].float(), loaded[name].weight)


def test_a_module_of_one_snapshot_takes_no_room_and_survives_the_snapshot(tmp_path: Path) -> None:
    snapshot = write(tmp_path / "s", 2)
    assembly = assemble(
        tmp_path / "out", choice={"one": single(2), "two": single(2)}, snapshots=[snapshot], expected=specs()
    )
    source, target = snapshot.folder / "one.safetensors", tmp_path / "out" / "one.safetensors"
    assert source.samefile(target)
    link_folder(tmp_path / "out", tmp_path / "final")
    for path in sorted(snapshot.folder.iterdir()):
        path.unlink()
    loaded = model()
    assert load_assembly(loaded, tmp_path / "final") == assembly
    assert torch.equal(loaded["one"].weight, weights(2)["one"]["weight"].float())


def test_without_links_the_bytes_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, choice = write(tmp_path / "s", 2), {"one": single(2), "two": single(2)}
    linked = assemble(tmp_path / "a", choice=choice, snapshots=[snapshot], expected=specs())

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    copied = assemble(tmp_path / "b", choice=choice, snapshots=[snapshot], expected=specs())
    link_folder(tmp_path / "b", tmp_path / "c")
    assert linked == copied == read_assembly(tmp_path / "c")
    assert (tmp_path / "a" / "one.safetensors").read_bytes() == (tmp_path / "c" / "one.safetensors").read_bytes()
    assert not (tmp_path / "b" / "one.safetensors").samefile(tmp_path / "c" / "one.safetensors")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "weight: missing, expected bfloat16 [2, 2]"),
        ({"weight": torch.zeros(2, 2).bfloat16(), "bias": torch.zeros(2)}, "bias: not expected, got float32 [2]"),
        ({"weight": torch.zeros(4).bfloat16()}, "weight: got bfloat16 [4], expected bfloat16 [2, 2]"),
        ({"weight": torch.zeros(2, 2)}, "weight: got float32 [2, 2], expected bfloat16 [2, 2]"),
    ],
)
@pytest.mark.parametrize("blend", [single(4), mean_of((2, 4))])
def test_what_does_not_fit_is_named_and_nothing_is_left(
    changed: dict[str, Tensor], message: str, blend: Blend, tmp_path: Path
) -> None:
    root = tmp_path / "run" / "s"
    snapshots = [write(root, 2), write(root, 4, {**weights(4), "one": changed})]
    with pytest.raises(CorruptFile) as caught:
        assemble(tmp_path / "out", choice={"one": blend, "two": single(2)}, snapshots=snapshots, expected=specs())
    assert message in str(caught.value) and "epoch_0004, one" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_chosen_epoch_without_a_snapshot_is_named(tmp_path: Path) -> None:
    choice = {"one": single(8), "two": single(2)}
    with pytest.raises(BadInput, match="epoch 8"):
        assemble(tmp_path / "out", choice=choice, snapshots=[write(tmp_path / "s", 2)], expected=specs())


def test_a_flipped_bit_in_a_source_or_in_the_model_is_found(tmp_path: Path) -> None:
    snapshot = write(tmp_path / "s", 2)
    choice = {"one": single(2), "two": mean_of((2, 4))}
    snapshots = [snapshot, write(tmp_path / "s", 4)]
    assemble(tmp_path / "out", choice=choice, snapshots=snapshots, expected=specs())
    for path in (tmp_path / "out" / "two.safetensors", snapshot.folder / "two.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(CorruptFile, match=r"out/two\.safetensors"):
        load_assembly(model(), tmp_path / "out")
    with pytest.raises(CorruptFile, match=r"epoch_0002/two\.safetensors"):
        assemble(tmp_path / "again", choice=choice, snapshots=list_snapshots(tmp_path / "s"), expected=specs())


def test_a_model_of_another_shape_does_not_load(tmp_path: Path) -> None:
    assemble(
        tmp_path / "out",
        choice={"one": single(2), "two": single(2)},
        snapshots=[write(tmp_path / "s", 2)],
        expected=specs(),
    )
    other = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(3, 3, bias=False)})
    before = other["one"].weight.clone()
    with pytest.raises(CorruptFile) as caught:
        load_assembly(other, tmp_path / "out")
    for part in ("one.bias: missing", "two.weight: got bfloat16 [3, 2], expected float32 [3, 3]"):
        assert part in str(caught.value)
    assert torch.equal(other["one"].weight, before)


WEIGHTS = st.dictionaries(st.integers(1, 60), st.floats(0, 1e3), min_size=1, max_size=6)


@given(WEIGHTS)
def test_equal_mixtures_are_equal_objects(given: dict[int, float]) -> None:
    if not sum(given.values()) > 0:
        with pytest.raises(BadInput, match="not all 0"):
            weighted(given)
        return
    blend = weighted(given)
    assert blend == weighted(dict(reversed(given.items()))) and hash(blend) == hash(weighted(given))
    assert sum(blend.weights) == pytest.approx(1) and all(share > 0 for share in blend.weights)
    assert list(blend.epochs) == sorted(epoch for epoch, weight in given.items() if weight / sum(given.values()) > 0)


@pytest.mark.parametrize("bad", [{1: -1.0, 2: 2.0}, {1: float("nan")}, {1: float("inf")}, {}])
def test_weights_that_are_none_are_refused(bad: dict[int, float]) -> None:
    with pytest.raises(BadInput, match="weights of snapshots"):
        weighted(bad)


def test_whole_numbers_have_no_mean_and_are_the_last_ones() -> None:
    first, last = {"n": torch.tensor([3])}, {"n": torch.tensor([6])}
    assert torch.equal(blended([first, last], (0.5, 0.5), "n"), torch.tensor([6]))


PEAK = """
import resource, sys
from pathlib import Path
import torch
from redheart.snapshots.blend import mean_of
from redheart.snapshots.consolidate import assemble, module_specs
from redheart.snapshots.module_snapshots import list_snapshots
with torch.device("meta"):
    model = torch.nn.ModuleDict({"m": torch.nn.ModuleList(torch.nn.Linear(1024, 2048, bias=False) for _ in range(24))})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
root = Path(sys.argv[1])
assemble(root / "out", choice={"m": mean_of((2, 4))}, snapshots=list_snapshots(root / "s"),
         expected=module_specs(model, ["m"]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_mean_holds_a_few_tensors_not_a_module(tmp_path: Path) -> None:
    for epoch in (2, 4):
        tensors = {f"{index}.weight": torch.full((2048, 1024), float(epoch)).bfloat16() for index in range(24)}
        write(tmp_path / "s", epoch, {"m": tensors})
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True)
    # A tensor is 4 MiB, a module 96 MiB: a float32 sum, two sources, the rounded mean and the file's buffers.
    assert int(done.stdout) < 48 * 1024

"""Parts of `benchmarks/crossover.py` that assemble models; each runs in a process of its own."""

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

EPOCHS = (2, 4)
"""Of the two snapshots of `full`."""


def measured(work: Callable[[], object]) -> tuple[Any, dict[str, float]]:
    """What the work returns, its seconds, and by how much it raised the process's peak."""
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start_s = time.perf_counter()
    value = work()
    seconds = time.perf_counter() - start_s
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    return value, {"seconds": round(seconds, 3), "peak_mib": round(peak_kib / 1024, 1)}


WAYS = ("every module of one snapshot, linked", "the same, links refused", "every module a mean of two")


def assemble_one_way(snapshots: str, preset: str, way: str) -> dict[str, object]:
    """One way to assemble."""
    from redheart.model.dims import preset as dims_of
    from redheart.model.ledger import module_names
    from redheart.model.network import build
    from redheart.snapshots.blend import mean_of, single
    from redheart.snapshots.consolidate import assemble, module_specs
    from redheart.snapshots.module_snapshots import list_snapshots

    model = build(dims_of(preset), seed=0, device="meta")
    specs, found = module_specs(model, module_names(model)), list_snapshots(Path(snapshots))
    first, second = found[0].epoch, found[1].epoch
    blend = mean_of((first, second)) if way == WAYS[2] else single(first)
    if way == WAYS[1]:
        os.link = _refuse  # type: ignore[assignment]
    out = Path(snapshots).parent / "assembled"

    def work() -> object:
        return assemble(out, choice=dict.fromkeys(specs, blend), snapshots=found, expected=specs)

    _, cost = measured(work)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    shutil.rmtree(out)
    return {**cost, "model_bytes": size, "model_mb_per_s": round(size / 1e6 / cost["seconds"], 1)}


def _refuse(*_: object, **__: object) -> None:
    raise OSError("links are refused for the measurement")


def save_checkpoints(run: str) -> dict[str, object]:
    """One file of the whole model per snapshot, as the design keeps them."""
    import torch

    from redheart.snapshots.module_snapshots import list_snapshots

    folder = Path(run) / "checkpoints"
    folder.mkdir()
    for snapshot in list_snapshots(Path(run) / "train" / "snapshots"):
        tensors = {
            f"{name}.{key}": tensor
            for name in snapshot.manifest.modules
            for key, tensor in snapshot.open_module(name).items()
        }
        torch.save(tensors, folder / f"{snapshot.epoch}.pt")
    return {}


def load_checkpoints(folder: str) -> dict[str, object]:
    """The design's way: every checkpoint of the whole model is loaded; here the first two are averaged and saved."""
    import torch

    paths = sorted(Path(folder).glob("*.pt"))

    def work() -> None:
        loaded = [torch.load(path, weights_only=True) for path in paths]
        mean = {key: ((loaded[0][key].float() + loaded[1][key].float()) / 2).bfloat16() for key in loaded[0]}
        torch.save(mean, Path(folder) / "mean.out")

    _, cost = measured(work)
    model_mib = paths[0].stat().st_size / 2**20
    return {**cost, "checkpoints": len(paths), "peak_in_models": round(cost["peak_mib"] / model_mib, 1)}


class MadeUp(Mapping[str, Mapping[str, Any]]):
    """Modules of `full` with uniform random weights; one is made when it is asked for."""

    def __init__(self, seed: int) -> None:
        from redheart.model.dims import preset
        from redheart.model.ledger import module_names
        from redheart.model.network import build

        self._model = build(preset("full"), seed=0, device="meta")
        self._names, self._seed = module_names(self._model), seed

    def __getitem__(self, name: str) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(self._seed + self._names.index(name))
        return {
            key: torch.rand(tensor.shape, generator=generator).bfloat16()
            for key, tensor in self._model.get_submodule(name).state_dict().items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_full(folder: str) -> dict[str, object]:
    """Two snapshots of `full`."""
    import torch

    from redheart.snapshots.module_snapshots import write_snapshot

    for epoch in EPOCHS:
        write_snapshot(
            Path(folder),
            modules=MadeUp(1000 * epoch),
            outputs={"heads.emotion": torch.zeros(1, 7)},
            epoch=epoch,
            step=epoch,
            cycle_position=0.0,
            val_loss=0.0,
            val_module_loss={},
            train_module_loss={},
        )
    return {}


def copy(folder: str) -> dict[str, object]:
    """A plain copy of one snapshot, flushed to the disk as an assembly is."""
    source = Path(folder) / f"epoch_{EPOCHS[0]:04d}"
    target = Path(folder) / "copied"

    def work() -> None:
        target.mkdir()
        for path in source.iterdir():
            shutil.copyfile(path, target / path.name)
            with (target / path.name).open("rb") as file:
                os.fsync(file.fileno())

    _, cost = measured(work)
    size = sum(path.stat().st_size for path in target.iterdir())
    shutil.rmtree(target)
    return {**cost, "model_bytes": size, "model_mb_per_s": round(size / 1e6 / cost["seconds"], 1)}


def export(folder: str) -> dict[str, object]:
    """mergekit's inputs for the mean of both snapshots."""
    from redheart.model.dims import preset
    from redheart.model.ledger import module_names
    from redheart.model.network import build
    from redheart.snapshots.blend import mean_of
    from redheart.snapshots.consolidate import module_specs
    from redheart.snapshots.mergekit import export_mergekit
    from redheart.snapshots.module_snapshots import list_snapshots

    model = build(preset("full"), seed=0, device="meta")
    specs = module_specs(model, module_names(model))
    choice = dict.fromkeys(specs, mean_of(EPOCHS))
    snapshots = list_snapshots(Path(folder))
    export_mergekit(Path(folder) / "merge.yaml", choice=choice, snapshots=snapshots, expected=specs)
    return {}


def mergekit(folder: str) -> dict[str, object]:
    """mergekit's own merge of the same two snapshots."""
    from mergekit.scripts.merge_raw_pytorch import main as merge

    out = Path(folder) / "merged"
    arguments = ["--tensor-union", str(Path(folder) / "merge.yaml"), str(out)]
    # Its progress bars and log lines must not stand where the result is read.
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = nowhere
        _, cost = measured(lambda: merge(arguments, standalone_mode=False))
        sys.stdout = sys.__stdout__
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    shutil.rmtree(out)
    return {**cost, "model_bytes": size, "model_mb_per_s": round(size / 1e6 / cost["seconds"], 1)}

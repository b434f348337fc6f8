"""Every byte of a run that its results rest on: flipped, cut off or gone, it is named, or the result is the same."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from redheart.core.errors import RedHeartError
from redheart.core.files import read_sealed
from redheart.data.features import open_features
from redheart.data.prepare import load_prepared
from redheart.evaluate.holdout_log import read_openings
from redheart.evaluate.results import EvaluationResult, Sweep
from redheart.model.dims import preset
from redheart.model.network import build
from redheart.select.loss_store import LossStore
from redheart.select.maps import Maps
from redheart.select.sweet_spot import SweetSpot
from redheart.snapshots.consolidate import load_assembly
from redheart.snapshots.survey import verify_run
from redheart.study import run_folder
from redheart.study.final import read_crossover
from redheart.study.module_graph import FINALS
from redheart.train.log.events import read_events

Reader = Callable[[], object]
"""What a command makes of a file: a value to compare, or an error that names the file."""
NOT_READ = (".lock", ".csv", ".tex", ".png", ".md", ".html")
"""Locks hold nothing; the others are written for people and read by no command."""


def readers(run: Path) -> Iterator[tuple[Path, Reader]]:
    """All files of a run with who reads them."""
    folder, _ = run_folder.load(run)
    outputs = load_prepared(folder.data).manifest.inventory.outputs

    def products() -> object:
        bad = verify_run(folder.snapshots, folder.states).bad
        assert len(bad) <= 1
        if bad:
            raise RedHeartError("a file is bad", where=bad[0])
        return None

    def log(path: Path) -> Reader:
        return lambda: [read_events(path, kind) for kind in ("step", "epoch")]

    def trial_log(path: Path) -> Reader:
        whole = read_events(path, "epoch")

        def read() -> object:
            # A trial whose log is cut is trained again; what is there must be what was there.
            events = read_events(path, "epoch")
            assert events == whole[: len(events)]
            return None

        return read

    loaded = build(preset("tiny", outputs=outputs), seed=0)

    def model(path: Path) -> Reader:
        def read() -> object:
            for parameter in loaded.parameters():
                parameter.data.fill_(torch.nan)
            load_assembly(loaded, path)
            return {name: tensor.tolist() for name, tensor in loaded.state_dict().items()}

        return read

    def features(path: Path) -> Reader:
        def read() -> object:
            cache = open_features(path, [], fit=folder.summary_fit)
            return [np.asarray(cache.row(index)).tobytes() for index in range(len(cache))]

        return read

    def losses() -> object:
        num_records = len(load_prepared(folder.data).split["val_select"])
        store = LossStore(folder.select / "evaluated.bin", finals=FINALS, num_records=num_records)
        # What is gone is evaluated again; what is there must be what was there.
        assert all(value.tobytes() in known for found in store._losses.values() for value in [found])
        return None

    num_records = len(load_prepared(folder.data).split["val_select"])
    store = LossStore(folder.select / "evaluated.bin", finals=FINALS, num_records=num_records)
    known = {value.tobytes() for value in store._losses.values()}
    sealed = {
        folder.select / "sweet_spot.json": SweetSpot,
        folder.select / "maps.json": Maps,
        folder.evaluation / "evaluation.json": EvaluationResult,
        folder.sweep / "sweep.json": Sweep,
    }
    for path in sorted(item for item in run.rglob("*") if item.is_file() and item.suffix not in NOT_READ):
        if path.name == "samples.jsonl":
            # Looked at while it grows, and nothing follows from it.
            continue
        part = path.relative_to(run).parts
        if path in sealed:
            yield path, lambda path=path: read_sealed(path, sealed[path])
        elif path == folder.config:
            yield path, lambda: run_folder.load(run)[1]
        elif path == folder.holdout_log:
            yield path, lambda: read_openings(folder.root)
        elif path == folder.select / "crossover.json":
            yield path, lambda: read_crossover(folder)
        elif path == folder.select / "evaluated.bin":
            yield path, losses
        elif path.name == "events.jsonl":
            yield path, trial_log(path) if part[0] == "sweep" else log(path)
        elif part[0] == "data":
            yield path, lambda: load_prepared(folder.data).manifest
        elif part[0] == "features":
            yield path, features(path.parent)
        elif part[0] == "select":
            yield path, model(path.parent)
        else:
            assert part[0] == "train", path
            yield path, products


def mutate(path: Path, random_: random.Random) -> str:
    """Change one file in one way, and say how."""
    content = path.read_bytes()
    way = random_.choice(["flip", "flip", "flip", "cut", "delete", "append"])
    # A hard link of the same bytes elsewhere must not change with it.
    path.unlink()
    if way == "flip" and content:
        position = random_.randrange(len(content))
        changed = content[position] ^ (1 << random_.randrange(8))
        path.write_bytes(content[:position] + bytes([changed]) + content[position + 1 :])
        return f"bit flipped at {position}"
    if way == "cut" and content:
        length = random_.randrange(len(content))
        path.write_bytes(content[:length])
        return f"cut to {length}"
    if way == "append":
        path.write_bytes(content + random_.randbytes(random_.randrange(1, 40)))
        return "bytes appended"
    return "deleted"


def run_mutations(run: Path, folder: Path, *, count: int, seed: int) -> dict[str, int]:
    """Mutate files of a copy one after the other; how many were named, and how many changed nothing."""
    copy = folder / "run"
    shutil.copytree(run, copy)
    files = list(readers(copy))
    values = {path: read() for path, read in files}
    random_, tally = random.Random(seed), {"named": 0, "same": 0}
    for number in range(count):
        path, read = files[number % len(files)] if number < len(files) else random_.choice(files)
        original = path.read_bytes()
        how = mutate(path, random_)
        try:
            found = read()
        except RedHeartError as error:
            assert path.name in str(error) or path.parent.name in str(error), f"{path}, {how}: {error}"
            tally["named"] += 1
        else:
            assert found == values[path], f"{path}, {how}: read as something else"
            tally["same"] += 1
        path.write_bytes(original)
    return tally


def test_a_sample_of_mutations_is_named(whole_study: Path, tmp_path: Path) -> None:
    tally = run_mutations(whole_study / "run", tmp_path, count=120, seed=0)
    # What changes nothing: losses that are computed again, and what stands behind a log's last whole line.
    assert tally["same"] < 12


@pytest.mark.long
def test_two_thousand_mutations_are_named(whole_study: Path, tmp_path: Path) -> None:
    tally = run_mutations(whole_study / "run", tmp_path, count=2500, seed=1)
    print(tally)
    assert tally["named"] > 2000

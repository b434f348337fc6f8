"""The sweet spot of a run: which snapshots each module group is taken from. Reads files of the run; needs no engine."""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from redheart.core.config import SelectConfig, StudyConfig
from redheart.core.errors import BadInput
from redheart.core.files import canonical_json, write_sealed
from redheart.core.progress import SILENT, Display
from redheart.data.prepare import Prepared
from redheart.evaluate.holdout_log import SELECT
from redheart.evaluate.prediction import loss_floors, predictor_losses
from redheart.model.dims import preset
from redheart.model.ledger import module_names
from redheart.model.network import build
from redheart.select.conditional import ConditionalEvaluator
from redheart.select.loss_store import LossStore, StoredEvaluator
from redheart.select.maps import draw_maps
from redheart.select.problem import SelectionProblem
from redheart.select.search import Search
from redheart.select.sweet_spot import SweetSpot, find_sweet_spot
from redheart.snapshots.blend import Blend
from redheart.snapshots.consolidate import Specs, module_specs, read_module
from redheart.snapshots.module_snapshots import Snapshot, list_snapshots
from redheart.study.module_graph import FINALS, ModuleGraph
from redheart.study.phases import StudyData
from redheart.study.run_folder import RunFolder

MIB = 2**20


def selection_groups(modules: list[str]) -> dict[str, tuple[str, ...]]:
    """The design's groups: backbone with heads, neural, signal, every advanced analyzer alone, phases."""
    groups: dict[str, list[str]] = {}
    for module in modules:
        part = module.partition(".")[0]
        group = "backbone_heads" if part in ("backbone", "heads") else module if part == "advanced" else part
        groups.setdefault(group, []).append(module)
    return {group: tuple(members) for group, members in groups.items()}


def run_sweet_spot(
    config: StudyConfig, folder: RunFolder, data: StudyData, *, settings: SelectConfig, display: Display = SILENT
) -> SweetSpot:
    """Choose on the select half of the validation records; writes `sweet_spot.json` and `maps.json` below `select/`.

    What was evaluated before is not evaluated again, whatever the strategy, also after a kill.
    """
    snapshots = open_snapshots(folder)
    problem = selection_problem(snapshots, data.prepared)
    evaluator = make_evaluator(config, folder, data, snapshots, settings)
    with display.track("sweet-spot", 0, unit="models compared") as advance:
        spot = find_sweet_spot(
            problem,
            evaluator,
            settings,
            seed=config.seed,
            num_reused=lambda: evaluator.num_reused,
            on_trial=_counted(advance),
        )
    write_sealed(folder.select / "sweet_spot.json", spot)
    if settings.map_epochs > 1:
        with display.track("maps", 0, unit="models compared") as advance:
            search = Search(problem, evaluator, settings, on_trial=_counted(advance))
            write_sealed(folder.select / "maps.json", draw_maps(search, num_epochs=settings.map_epochs))
    else:
        (folder.select / "maps.json").unlink(missing_ok=True)
    return spot


def open_snapshots(folder: RunFolder) -> list[Snapshot]:
    """The run's snapshots.

    Raises:
        BadInput: there are none.
    """
    snapshots = list_snapshots(folder.snapshots)
    if not snapshots:
        raise BadInput("the run has no snapshots yet", where=folder.snapshots, hint="train first: `redheart train`")
    return snapshots


def expected_specs(config: StudyConfig, prepared: Prepared) -> Specs:
    """What a snapshot of the run must hold."""
    model = build(preset(config.preset, outputs=prepared.inventory.outputs), seed=0, device="meta")
    return module_specs(model, module_names(model))


def selection_problem(snapshots: list[Snapshot], prepared: Prepared) -> SelectionProblem:
    """The select records' losses at every snapshot, from the outputs that training has stored with it."""
    rows = prepared.split[SELECT]
    losses: dict[str, list[np.ndarray]] = {}
    for snapshot in snapshots:
        # The rows of the outputs are the select records, then the confirm records.
        outputs = {name: tensor.numpy()[: len(rows)] for name, tensor in snapshot.load_outputs().items()}
        for name, losses_N in predictor_losses(outputs, prepared, rows).items():
            losses.setdefault(name, []).append(losses_N)
    # A task without any target has no mean loss in the manifest.
    training = {
        name: np.array([snapshot.manifest.train_module_loss.get(name, np.nan) for snapshot in snapshots])
        for name in losses
    }
    modules = list(snapshots[0].manifest.modules)
    return SelectionProblem(
        epochs=tuple(snapshot.epoch for snapshot in snapshots),
        modules=tuple(modules),
        groups=selection_groups(modules),
        losses_EN={name: np.stack(parts) for name, parts in losses.items()},
        train_losses_E=training,
        finals=FINALS,
        floors_N=loss_floors(prepared, rows),
    )


def make_evaluator(
    config: StudyConfig, folder: RunFolder, data: StudyData, snapshots: list[Snapshot], settings: SelectConfig
) -> StoredEvaluator:
    """The evaluator that strategies are given: it knows the select records only."""
    rows = data.prepared.split[SELECT]
    dims = preset(config.preset, outputs=data.prepared.inventory.outputs)
    specs = expected_specs(config, data.prepared)
    by_epoch = {snapshot.epoch: snapshot for snapshot in snapshots}
    files = {
        epoch: {name: entry.content_sha256 for name, entry in snapshot.manifest.modules.items()}
        for epoch, snapshot in by_epoch.items()
    }
    given = {
        "data": data.prepared.manifest.key,
        "features": data.features.key,
        "micro_batch": config.train.micro_batch,
    }

    def key(choice: Mapping[str, Blend]) -> bytes:
        sources = {
            name: [(files[epoch][name], weight) for epoch, weight in zip(blend.epochs, blend.weights, strict=True)]
            for name, blend in choice.items()
        }
        return hashlib.sha256(canonical_json([given, sources])).digest()

    model = ModuleGraph(dims, data.prepared, data.features, rows, micro_batch=config.train.micro_batch)
    cache_bytes = settings.cache_mib * MIB
    conditional = ConditionalEvaluator(
        model,
        lambda name, blend: read_module(by_epoch, name, blend, specs[name]),
        cache_bytes=cache_bytes * 2 // 3,
        weights_bytes=cache_bytes // 3,
    )
    store = LossStore(folder.select / "evaluated.bin", finals=FINALS, num_records=len(rows))
    return StoredEvaluator(conditional, store, key)


def _counted(advance: Callable[[float], None]) -> Callable[[Search], None]:
    """What a search calls after every model, so that it is told how many it has compared."""
    told = 0

    def count(search: Search) -> None:
        nonlocal told
        advance(search.num_candidates - told)
        told = search.num_candidates

    return count

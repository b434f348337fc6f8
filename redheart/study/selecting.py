"""The sweet spot of a run: which snapshots each module group is taken from. Reads files of the run; needs no engine."""

import hashlib
from collections.abc import Mapping
from functools import cache

import msgspec
import numpy as np
import torch
from torch import Tensor

from redheart.core.config import SelectConfig, StudyConfig
from redheart.core.device import free_bytes, records_at_once, study_device, weights_type
from redheart.core.errors import BadInput, DoesNotFit
from redheart.core.files import canonical_json, write_sealed
from redheart.core.progress import SILENT, Display
from redheart.core.units import MIB
from redheart.data.prepare import Prepared
from redheart.evaluate.holdout_log import CONFIRM, SELECT
from redheart.evaluate.prediction import loss_floors, predictor_losses
from redheart.model.dims import preset
from redheart.model.ledger import module_names
from redheart.model.network import build
from redheart.select.conditional import ConditionalEvaluator
from redheart.select.loss_store import LossStore
from redheart.select.maps import draw_maps, map_evaluations
from redheart.select.problem import SelectionProblem
from redheart.select.search import Search
from redheart.select.strategies import most_evaluations
from redheart.select.sweet_spot import SweetSpot, find_sweet_spot
from redheart.snapshots.blend import Blend, blended
from redheart.snapshots.consolidate import Specs, checked_module, module_specs
from redheart.snapshots.module_snapshots import Snapshot, list_snapshots
from redheart.snapshots.tensors import Tensors
from redheart.study.module_graph import FINALS, ModuleGraph
from redheart.study.phases import Study
from redheart.study.run_folder import RunFolder
from redheart.train.device.compute_type import NAMES
from redheart.train.device.out_of_memory import no_second_try

CPU_CACHE_BYTES = 1536 * MIB


def selection_groups(modules: list[str]) -> dict[str, tuple[str, ...]]:
    """The design's groups: backbone with heads, neural, signal, every advanced analyzer alone, phases."""
    groups: dict[str, list[str]] = {}
    for module in modules:
        part = module.partition(".")[0]
        group = "backbone_heads" if part in ("backbone", "heads") else module if part == "advanced" else part
        groups.setdefault(group, []).append(module)
    return {group: tuple(members) for group, members in groups.items()}


def run_sweet_spot(study: Study, *, display: Display = SILENT) -> SweetSpot:
    """Choose on the select half of the validation records; writes `sweet_spot.json` and `maps.json` below `select/`.

    What was evaluated before is not evaluated again, whatever the strategy, also after a kill.

    Raises:
        BadInput: there are no snapshots, or there is no such device.
        DoesNotFit: the device's memory does not take one record.
    """
    config, folder, settings = study.config, study.folder, study.config.select
    snapshots = open_snapshots(folder)
    problem = selection_problem(snapshots, study.prepared)
    evaluator = make_evaluator(study, snapshots)
    total = most_evaluations(problem, settings)
    # Fewer records at once were tried where they are what the memory runs out of.
    refusal = DoesNotFit(
        "out of device memory",
        where="the search for the sweet spot",
        hint="free the device of other programs, give a lower --select.cache-mib, or search with --device cpu",
    )
    with no_second_try(refusal), display.track("sweet-spot", total, unit="full evaluations") as advance:
        spot = find_sweet_spot(problem, evaluator, settings, seed=config.seed, on_trial=advance)
    computed_in = NAMES[weights_type(study_device(config.device))]
    spot = msgspec.structs.replace(spot, num_reused=evaluator.num_reused, computed_in=computed_in)
    write_sealed(folder.select / "sweet_spot.json", spot)
    if settings.map_epochs > 1:
        search = Search(problem, evaluator, settings)
        total = map_evaluations(search)
        with no_second_try(refusal), display.track("maps", total, unit="full evaluations") as search.on_trial:
            write_sealed(folder.select / "maps.json", draw_maps(search))
    else:
        (folder.select / "maps.json").unlink(missing_ok=True)
    return spot


def open_snapshots(folder: RunFolder) -> list[Snapshot]:
    """The run's snapshots; `BadInput` where there are none."""
    snapshots = list_snapshots(folder.snapshots)
    if not snapshots:
        hint = f"train first: `redheart train --run {folder.root}`"
        raise BadInput("the run has no snapshots yet", where=folder.snapshots, hint=hint)
    return snapshots


def expected_specs(config: StudyConfig, prepared: Prepared) -> Specs:
    """What a snapshot of the run must hold."""
    model = build(preset(config.preset, outputs=prepared.inventory.outputs), seed=0, device="meta")
    return module_specs(model, module_names(model))


def selection_problem(snapshots: list[Snapshot], prepared: Prepared) -> SelectionProblem:
    """The select records' losses at every snapshot, from the outputs that training has stored with it."""
    rows = prepared.split[SELECT]
    num_validation = len(rows) + len(prepared.split[CONFIRM])
    losses: dict[str, list[np.ndarray]] = {}
    for snapshot in snapshots:
        # The rows of the outputs are the select records, then the confirm records.
        stored = snapshot.load_outputs()
        num_stored = len(next(iter(stored.values())))
        if num_stored != num_validation:
            raise BadInput(
                "the run's records are not those that it was trained on",
                where=prepared.folder,
                got=f"{num_validation} validation records",
                expected=f"{num_stored}, as in {snapshot.folder.name}",
                hint="restore the folder from a copy, or begin a new run",
            )
        outputs = {name: tensor.numpy()[: len(rows)] for name, tensor in stored.items()}
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


def make_evaluator(study: Study, snapshots: list[Snapshot]) -> ConditionalEvaluator:
    """The evaluator that strategies are given: it knows the select records only."""
    rows, specs = study.prepared.split[SELECT], expected_specs(study.config, study.prepared)
    by_epoch = {snapshot.epoch: snapshot for snapshot in snapshots}
    device = study_device(study.config.device)
    given = {
        "data": study.prepared.manifest.key,
        "features": study.features.key,
        "micro_batch": records_at_once(study.config),
    }
    if weights_type(device) != torch.float32:
        # Between two models computed in different types there is a difference that neither of them makes.
        given["computed_in"] = NAMES[weights_type(device)]

    def key(choice: Mapping[str, Blend]) -> bytes:
        sources = {
            name: [
                (by_epoch[epoch].manifest.modules[name].content_sha256, weight)
                for epoch, weight in zip(blend.epochs, blend.weights, strict=True)
            ]
            for name, blend in choice.items()
        }
        return hashlib.sha256(canonical_json([given, sources])).digest()

    @cache
    def reader(name: str, epoch: int) -> Tensors:
        # Verified once: a search reads a module many times, and its digest takes as long again.
        return checked_module(by_epoch[epoch], name, specs[name])

    def weights(name: str, blend: Blend) -> dict[str, Tensor]:
        chosen = [reader(name, epoch) for epoch in blend.epochs]
        return {key: blended(chosen, blend.weights, key).to(device) for key in specs[name]}

    model = ModuleGraph(study, rows)
    results_bytes, weights_bytes = _cache_bytes(study.config.select, device)
    store = LossStore(study.folder.select / "evaluated.bin", finals=FINALS, num_records=len(rows))
    return ConditionalEvaluator(
        model, weights, cache_bytes=results_bytes, weights_bytes=weights_bytes, store=store, key=key
    )


def _cache_bytes(settings: SelectConfig, device: torch.device) -> tuple[int, int]:
    """Bounds of the results and the weights that a search keeps, where it computes.

    What is kept for a card lies on it. Of `full`, the 1.46 GB of a model's weights need 0.12 s over a bus of 12 GB/s
    and nearly 2 s from files (1.7 GB/s, and 1.5 GB/s for their digests at the first time); its products for 443 records
    are 28 TFLOP, 0.07 s at 400 TFLOPS; its results are 0.14 GB. So a card keeps weights before results. A CPU at 0.1
    TFLOPS needs minutes for the products.
    """
    asked = settings.cache_mib * MIB
    if device.type == "cpu":
        total = asked or CPU_CACHE_BYTES
        return total * 2 // 3, total // 3
    # The other half is for the module at work, what the model at hand has made, and activations.
    half = free_bytes(device) // 2
    total = min(asked, half) or half
    return total // 3, total * 2 // 3

"""Sweet spot and crossover of a run, and the evaluation of what comes out. Reads files of the run; needs no engine."""

from pathlib import Path

import msgspec
import numpy as np

from redheart.core.config import StudyConfig
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, write_sealed
from redheart.core.seeds import stream_seed
from redheart.data.features import make_features
from redheart.data.inventory import Inventory
from redheart.data.prepare import Manifest, Prepared, target_arrays
from redheart.data.records import Record, read_rows
from redheart.data.schemas import parse_rows
from redheart.evaluate.baselines import fit_baselines
from redheart.evaluate.evaluation import Evaluation, evaluate_predictions
from redheart.model.dims import TASKS, preset
from redheart.model.network import RedHeart, build
from redheart.select.problem import SelectionProblem
from redheart.select.statistics import Gain, paired_gain, verdict
from redheart.select.sweet_spot import SweetSpot, find_sweet_spot
from redheart.snapshots.consolidate import assemble, load_assembly
from redheart.snapshots.module_snapshots import Snapshot, list_snapshots
from redheart.study.learner import VALIDATION_PARTS, predict_rows, predictor_losses
from redheart.study.phases import StudyData
from redheart.study.run_folder import RunFolder

FINALS = tuple(f"heads.{task}" for task in TASKS)


class Crossover(msgspec.Struct, frozen=True):
    """The recombined model beside the best single snapshot."""

    strategy: str
    anchor_epoch: int
    modules: dict[str, list[int]]
    gain_select: Gain
    """On the records that the choice was made on: optimistic."""
    gain_confirm: Gain
    """On records that the choice has not seen."""
    verdict: str
    recommended: str
    """`crossover` or `best_single`."""


class EvaluationResult(msgspec.Struct, frozen=True):
    """Evaluation of the run's models and baselines on the test split."""

    recommended: str
    models: dict[str, Evaluation]
    baselines: dict[str, Evaluation]
    gain_test: Gain


def selection_groups(modules: list[str]) -> dict[str, tuple[str, ...]]:
    """The design's groups: backbone with heads, neural, signal, every advanced analyzer alone, phases."""
    groups: dict[str, list[str]] = {}
    for module in modules:
        part = module.partition(".")[0]
        group = "backbone_heads" if part in ("backbone", "heads") else module if part == "advanced" else part
        groups.setdefault(group, []).append(module)
    return {group: tuple(members) for group, members in groups.items()}


def run_sweet_spot(folder: RunFolder, data: StudyData, *, strategy: str) -> SweetSpot:
    """Choose epochs on the select half of the validation records and write `select/sweet_spot.json`."""
    snapshots = _snapshots(folder)
    modules = list(snapshots[0].manifest.modules)
    spot = find_sweet_spot(_problem(snapshots, modules, data.prepared), strategy)
    write_sealed(folder.select / "sweet_spot.json", spot)
    return spot


def run_crossover(config: StudyConfig, folder: RunFolder, data: StudyData) -> Crossover:
    """Assemble the chosen model and the best single snapshot, and compare them on the confirm half."""
    spot = read_sealed(folder.select / "sweet_spot.json", SweetSpot)
    snapshots = _snapshots(folder)
    choices = {
        "crossover": spot.modules,
        "best_single": {module: [spot.anchor_epoch] for module in spot.modules},
    }
    losses: dict[str, dict[str, np.ndarray]] = {}
    for name, choice in choices.items():
        assemble(folder.select / name, choice=choice, snapshots=snapshots)
        model = load_final(config, folder, data.prepared.inventory, name)
        losses[name] = {
            part: _final_losses(model, data, part, micro_batch=config.train.micro_batch) for part in VALIDATION_PARTS
        }
    gains = {
        part: paired_gain(
            losses["best_single"][part], losses["crossover"][part], seed=stream_seed(config.seed, "gain", part)
        )
        for part in VALIDATION_PARTS
    }
    confirm = gains["val_confirm"]
    crossover = Crossover(
        strategy=spot.strategy,
        anchor_epoch=spot.anchor_epoch,
        modules=spot.modules,
        gain_select=gains["val_select"],
        gain_confirm=confirm,
        verdict=verdict(confirm, candidate="crossover", reference="best single snapshot"),
        recommended="crossover" if confirm.is_evidence else "best_single",
    )
    write_sealed(folder.select / "crossover.json", crossover)
    return crossover


def run_evaluation(config: StudyConfig, folder: RunFolder, data: StudyData) -> EvaluationResult:
    """Evaluate both models and the baselines on the test split and write `evaluation/evaluation.json`."""
    crossover = _crossover(folder)
    rows = data.prepared.split["test"]
    models, losses = {}, {}
    for name in ("crossover", "best_single"):
        model = load_final(config, folder, data.prepared.inventory, name)
        outputs = predict_rows(model, data.features, rows, micro_batch=config.train.micro_batch)
        models[name] = evaluate_predictions(
            {task: outputs[f"heads.{task}"] for task in TASKS},
            data.prepared.values_NT[rows],
            data.prepared.mask_NT[rows],
            data.prepared.inventory,
            seed=config.seed,
        )
        losses[name] = _mean_over_finals(predictor_losses(outputs, data.prepared, rows))
    baselines = fit_baselines(data.prepared, data.features, text_chars=config.features.text_chars)
    gain = paired_gain(losses["best_single"], losses["crossover"], seed=stream_seed(config.seed, "gain", "test"))
    result = EvaluationResult(crossover.recommended, models, baselines, gain)
    write_sealed(folder.evaluation / "evaluation.json", result)
    return result


def evaluate_file(config: StudyConfig, folder: RunFolder, inventory: Inventory, path: Path) -> Evaluation:
    """Evaluate the run's recommended model on a labelled file that it has never seen.

    Raises:
        BadInput: the file is malformed, or its emotion classes are not the run's.
    """
    kind, rows = read_rows(path)
    parsed = parse_rows(path, kind, rows)
    if parsed.problems:
        listing = "\n".join(f"    {problem}" for problem in parsed.problems[:100])
        raise BadInput(f"{len(parsed.problems)} problems in {parsed.num_invalid} records\n{listing}", where=path)
    records = [_renamed(record, parsed.inventory, inventory, path) for record in parsed.records]
    values_NT, mask_NT = target_arrays(records, inventory)
    features = make_features(
        records, config=config.features, root=folder.evaluation / "features", fit=folder.summary_fit, show_progress=True
    )
    model = load_final(config, folder, inventory, _crossover(folder).recommended)
    outputs = predict_rows(model, features, np.arange(len(records)), micro_batch=config.train.micro_batch)
    return evaluate_predictions(
        {task: outputs[f"heads.{task}"] for task in TASKS}, values_NT, mask_NT, inventory, seed=config.seed
    )


def load_final(config: StudyConfig, folder: RunFolder, inventory: Inventory, name: str) -> RedHeart:
    """An assembled model of the run, loaded strictly, float32, in evaluation mode."""
    model = build(preset(config.preset, outputs=inventory.outputs), seed=config.seed)
    load_assembly(model, folder.select / name)
    return model.eval()


def _crossover(folder: RunFolder) -> Crossover:
    path = folder.select / "crossover.json"
    if not path.is_file():
        raise BadInput("the run has no crossover yet", where=path, mend="run `redheart crossover RUN` first")
    return read_sealed(path, Crossover)


def _snapshots(folder: RunFolder) -> list[Snapshot]:
    snapshots = list_snapshots(folder.snapshots)
    if not snapshots:
        raise BadInput("the run has no snapshots yet", where=folder.snapshots, mend="train first: `redheart train`")
    return snapshots


def _problem(snapshots: list[Snapshot], modules: list[str], prepared: Prepared) -> SelectionProblem:
    select = prepared.split["val_select"]
    losses: dict[str, list[np.ndarray]] = {}
    for snapshot in snapshots:
        # The rows of the outputs are the select records, then the confirm records.
        outputs = {name: tensor.numpy()[: len(select)] for name, tensor in snapshot.load_outputs().items()}
        for name, losses_N in predictor_losses(outputs, prepared, select).items():
            losses.setdefault(name, []).append(losses_N)
    training = {
        name: np.array([snapshot.manifest.train_module_loss[name] for snapshot in snapshots]) for name in losses
    }
    return SelectionProblem(
        epochs=tuple(snapshot.epoch for snapshot in snapshots),
        modules=tuple(modules),
        groups=selection_groups(modules),
        losses_EN={name: np.stack(rows) for name, rows in losses.items()},
        train_losses_E=training,
        finals=FINALS,
    )


def _final_losses(model: RedHeart, data: StudyData, part: str, *, micro_batch: int) -> np.ndarray:
    rows = data.prepared.split[part]
    outputs = predict_rows(model, data.features, rows, micro_batch=micro_batch)
    return _mean_over_finals(predictor_losses(outputs, data.prepared, rows))


def _mean_over_finals(losses: dict[str, np.ndarray]) -> np.ndarray:
    stacked = np.stack([losses[name] for name in FINALS if not np.isnan(losses[name]).all()])
    count_N = (~np.isnan(stacked)).sum(0)
    return np.where(count_N > 0, np.nansum(stacked, axis=0) / np.maximum(count_N, 1), np.nan)


def _renamed(record: Record, found: Inventory, expected: Inventory, path: Path) -> Record:
    """The record with its targets in the run's order; targets that the run does not know are left out."""
    targets = {}
    for task in expected.tasks:
        names = found.task(task.name).targets
        if task.kind == "distribution" and names != task.targets:
            raise BadInput(
                "the file's emotion classes are not the run's",
                where=path,
                got=", ".join(names),
                expected=", ".join(task.targets),
            )
        by_name = dict(zip(names, record.targets[task.name], strict=True))
        targets[task.name] = tuple(by_name.get(name) for name in task.targets)
    return msgspec.structs.replace(record, targets=targets)


def inventory_of(folder: RunFolder) -> Inventory:
    """The target inventory that a run was made with."""
    return read_sealed(folder.data / "manifest.json", Manifest).inventory

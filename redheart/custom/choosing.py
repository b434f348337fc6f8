"""The best mixture of snapshots for every module of one's own model, chosen on one half of the validation records and
judged on the other."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from redheart.core.config import SelectConfig, digest
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed
from redheart.core.ranks import launched
from redheart.core.seeds import stream_seed
from redheart.custom.learner import LOSS, TensorLearner
from redheart.custom.training import VALIDATION, ValidationRecords
from redheart.evaluate.holdout_log import confirm_place
from redheart.select.problem import SelectionProblem
from redheart.select.statistics import Gain, level_of, paired_gain, verdict
from redheart.select.sweet_spot import SweetSpot, find_sweet_spot
from redheart.snapshots.blend import Blend, single
from redheart.snapshots.consolidate import assemble, module_specs, read_module
from redheart.snapshots.module_snapshots import Snapshot, check_modules, list_snapshots
from redheart.snapshots.tensors import parts_of, take
from redheart.train.device.compute_type import in_float32


class Chosen(msgspec.Struct, frozen=True):
    """What was chosen, and whether it is better than the best single snapshot."""

    spot: SweetSpot
    gain_confirm: Gain
    """On records that nothing was chosen on."""
    verdict: str
    folder: Path
    """The model that the verdict recommends: `redheart.snapshots.consolidate.load_assembly` reads it."""


class WholeEvaluator:
    """Implements `redheart.select.search.Evaluator` for any model: every choice is loaded into it and evaluated."""

    def __init__(self, learner: TensorLearner, snapshots: list[Snapshot], rows: np.ndarray) -> None:
        self._learner, self._rows = learner, rows
        self._snapshots = {snapshot.epoch: snapshot for snapshot in snapshots}
        in_float32(learner.model).eval()
        self.specs = module_specs(learner.model, learner.modules())
        self._parts = parts_of(learner.model, learner.modules())
        self._loaded: dict[str, Blend] = {}
        self.evaluations = 0.0

    def losses(self, choice: Mapping[str, Blend], *, base: Mapping[str, Blend] | None = None) -> dict[str, np.ndarray]:
        self.load(choice)
        self.evaluations += 1
        return {LOSS: self._learner.validation_losses(self._learner.model, self._rows)}

    def load(self, choice: Mapping[str, Blend]) -> None:
        """Let the model hold the weights of a choice."""
        for name, blend in choice.items():
            if self._loaded.get(name) != blend:
                weights = read_module(self._snapshots, name, blend, self.specs[name])
                for key, tensor in self._parts[name].items():
                    take(tensor, weights[key])
                self._loaded[name] = blend

    def cost(self, modules: object, *, first: object) -> float:
        return 1.0


def choose(learner: TensorLearner, folder: Path | str, *, settings: SelectConfig | None = None) -> Chosen:
    """Choose windows of snapshots for every module and assemble the model that is the better founded one.

    Each further choice that the same records judge has a wider interval; see `level_of`.

    Args:
        learner: as it was trained; afterwards its model holds the recommended weights, in float32.
        folder: where `fit` has left its snapshots.
        settings: the strategy; by default the best window of every module, given the others.

    Raises:
        BadInput: there are no snapshots, they are of other modules or were validated on other records, or there is no
            such strategy.
        CorruptFile: a snapshot does not match its digests.
        DiskError: the model cannot be written.
    """
    folder = Path(folder)
    settings = settings or SelectConfig(strategy="window", level="module", map_epochs=0)
    snapshots = list_snapshots(folder / "snapshots")
    if not snapshots:
        raise BadInput("there are no snapshots yet", where=folder / "snapshots", hint="train first, with `fit`")
    for snapshot in snapshots:
        check_modules(snapshot, learner.modules())
    # A folder of before this was written has none.
    known = folder / VALIDATION
    if known.is_file() and read_sealed(known, ValidationRecords).digests != learner.validation.digest():
        raise BadInput(
            "the validation records are not those of the run, or in another order",
            where=folder,
            hint="give the learner what `fit` was given: the snapshots' losses are of those",
        )
    num_records = len(learner.validation)
    select, confirm = np.arange(num_records // 2), np.arange(num_records // 2, num_records)
    evaluator = WholeEvaluator(learner, snapshots, select)
    spot = find_sweet_spot(_problem(snapshots, learner, len(select)), evaluator, settings, seed=learner.seed)
    models = {"best_single": dict.fromkeys(spot.modules, single(spot.best_epoch)), "chosen": dict(spot.modules)}
    digests = {name: digest(msgspec.to_builtins(choice)) for name, choice in models.items()}
    place = confirm_place(
        folder, judged="chosen", models=digests, num_records=len(confirm), file=known, command="choose"
    )
    judge = WholeEvaluator(learner, snapshots, confirm)
    losses = {name: judge.losses(choice)[LOSS] for name, choice in models.items()}
    gain = paired_gain(
        losses["best_single"],
        losses["chosen"],
        seed=stream_seed(learner.seed, "gain", "confirm"),
        level=level_of(place),
    )
    recommended = "chosen" if gain.is_evidence else "best_single"
    out = folder / "select" / recommended
    judge.load(models[recommended])
    if launched().is_first:
        assemble(out, choice=models[recommended], snapshots=snapshots, expected=judge.specs)
    said = verdict(gain, candidate="choice per module", reference="best single snapshot")
    return Chosen(spot, gain, said, out)


def _problem(snapshots: list[Snapshot], learner: TensorLearner, num_select: int) -> SelectionProblem:
    outputs = [snapshot.load_outputs()[LOSS].numpy()[:num_select, 0] for snapshot in snapshots]
    modules = tuple(learner.modules())
    return SelectionProblem(
        epochs=tuple(snapshot.epoch for snapshot in snapshots),
        modules=modules,
        groups={name: (name,) for name in modules},
        losses_EN={LOSS: np.stack(outputs)},
        train_losses_E={LOSS: np.array([snapshot.manifest.train_module_loss[LOSS] for snapshot in snapshots])},
        finals=(LOSS,),
    )

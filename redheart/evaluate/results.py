"""What the phases of a run leave in its files, for those that come after them."""

import msgspec

from redheart.evaluate.calibration import Calibration
from redheart.evaluate.evaluation import Evaluation
from redheart.evaluate.reliability import Bin, CalibrationScores
from redheart.select.statistics import Gain
from redheart.snapshots.blend import Blend


class Trial(msgspec.Struct, frozen=True):
    """One learning rate of the sweep."""

    rate: float
    status: str
    """`done`, or why it failed."""
    score: float | None
    """None where it failed."""
    val_loss: list[float]
    train_loss: list[float]


class Sweep(msgspec.Struct, frozen=True):
    """All trials and the rate with the lowest score."""

    key: str
    trials: list[Trial]
    best_rate: float


class Crossover(msgspec.Struct, frozen=True):
    """The recombined model beside the best single snapshot."""

    strategy: str
    best_epoch: int
    """The best single snapshot."""
    modules: dict[str, Blend]
    scales: dict[str, float]
    """As in the sweet spot."""
    num_candidates: int
    gain_select: Gain
    """On the records that the choice was made on: optimistic."""
    gain_confirm: Gain
    """On records that the choice has not seen."""
    shrinkage: float | None
    """Gain on the confirm records over that on the select records; None where the latter is none."""
    tasks: dict[str, Gain]
    """On the confirm records, task by task."""
    num_judged: int
    """Place of this choice among those of the run that the confirm records have judged, from 1; the interval's level
    rises with it."""
    digests: dict[str, str]
    """Of the weights of both models."""
    verdict: str
    recommended: str
    """`crossover` or `best_single`; `select/final` holds it."""


class MethodResult(msgspec.Struct, frozen=True):
    """One way to calibrate, or `none`."""

    select_cross_entropy: float
    """On records of the select half that the fit had not seen (five folds), nats; what the choice is made by."""
    confirm: CalibrationScores
    reliability: list[Bin]
    """On the confirm records."""


class CalibrationResult(msgspec.Struct, frozen=True):
    """What was tried, what was chosen, and whether it is used."""

    model: str
    """Digest of the weights that it was fitted to."""
    num_select: int
    num_confirm: int
    methods: dict[str, MethodResult]
    candidate: str
    """The method with the lowest loss on the select records, `none` among them."""
    gain_confirm: Gain
    """Of the candidate over none, in percent of the loss."""
    verdict: str
    calibration: Calibration | None
    """What predictions use; None where nothing was shown to be better."""


class EvaluationResult(msgspec.Struct, frozen=True):
    """Evaluation of the run's models and baselines on the test split."""

    recommended: str
    models: dict[str, Evaluation]
    baselines: dict[str, Evaluation]
    gain_test: Gain
    digests: dict[str, str] = {}
    """Of the models' weights."""

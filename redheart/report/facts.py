"""What a run's files say, as the report, the model card and the tables need it.

Each is read with only the fields that are used here, so that a file may hold more.
"""

from pathlib import Path
from typing import TypeVar

import msgspec

from redheart.core.files import read_sealed, shown
from redheart.data.prepare import Manifest
from redheart.evaluate.evaluation import Evaluation
from redheart.evaluate.reliability import Bin, CalibrationScores
from redheart.select.statistics import Gain

T = TypeVar("T")


class CrossoverFacts(msgspec.Struct, frozen=True):
    """Of `select/crossover.json`."""

    recommended: str
    verdict: str
    gain_select: Gain
    gain_confirm: Gain


class EvaluationFacts(msgspec.Struct, frozen=True):
    """Of `evaluation/evaluation.json`."""

    recommended: str
    models: dict[str, Evaluation]
    baselines: dict[str, Evaluation]


class MethodFacts(msgspec.Struct, frozen=True):
    """One way to calibrate."""

    select_cross_entropy: float
    confirm: CalibrationScores
    reliability: list[Bin]


class CalibrationFacts(msgspec.Struct, frozen=True):
    """Of `calibration/calibration.json`."""

    model: str
    """Digest of the weights that were calibrated."""
    num_select: int
    num_confirm: int
    methods: dict[str, MethodFacts]
    candidate: str
    gain_confirm: Gain
    verdict: str

    @property
    def is_used(self) -> bool:
        """Whether predictions use the candidate."""
        return self.candidate != "none" and self.gain_confirm.is_evidence


class RunFacts(msgspec.Struct, frozen=True):
    """A run as far as it has come; None where a phase has not run."""

    name: str
    config: dict[str, object]
    manifest: Manifest
    crossover: CrossoverFacts | None
    evaluation: EvaluationFacts | None
    calibration: CalibrationFacts | None


class _Config(msgspec.Struct, frozen=True):
    config: dict[str, object]


def read_facts(root: Path) -> RunFacts:
    """Read what lies in a run's folder.

    Raises:
        BadInput: there is no prepared data.
        CorruptFile: a file was changed since it was written.
    """
    return RunFacts(
        name=shown(root.resolve().name),
        config=read_sealed(root / "config.json", _Config).config,
        manifest=read_sealed(root / "data" / "manifest.json", Manifest),
        crossover=_if_there(root / "select" / "crossover.json", CrossoverFacts),
        evaluation=_if_there(root / "evaluation" / "evaluation.json", EvaluationFacts),
        calibration=_if_there(root / "calibration" / "calibration.json", CalibrationFacts),
    )


def _if_there(path: Path, kind: type[T]) -> T | None:
    return read_sealed(path, kind) if path.is_file() else None

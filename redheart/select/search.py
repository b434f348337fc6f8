"""What a strategy works with: the problem, an evaluator bound to the select records, and the log of what it tried."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from redheart.core.config import SelectConfig
from redheart.select.problem import SelectionProblem
from redheart.snapshots.blend import Blend, single

Modules = Mapping[str, Blend]


class Evaluator(Protocol):
    """Losses of any choice of weights on the select records."""

    def losses(self, choice: Modules, *, base: Modules | None = None) -> dict[str, np.ndarray]:
        """(N,) losses by final predictor, NaN where a record has no target."""

    def cost(self, modules: Sequence[str], *, first: Modules) -> float:
        """Share of a full evaluation that other weights of these modules cost; of `first`, if none was made before."""

    @property
    def evaluations(self) -> float:
        """What was computed so far, in full-model evaluations."""


@dataclass(frozen=True)
class Swap:
    """One change that was tried on the model at hand."""

    unit: str
    blend: Blend
    gain: float
    """By how much the mean score fell."""
    z: float
    """The gain over its standard error, paired over the records."""


class Search:
    """One strategy at work; it sees the select records and nothing else. `on_trial` is told what each trial cost."""

    def __init__(
        self,
        problem: SelectionProblem,
        evaluator: Evaluator,
        settings: SelectConfig,
        *,
        on_trial: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.problem, self.settings = problem, settings
        self.evaluator = evaluator
        self.swaps: list[Swap] = []
        self.spent = 0.0
        """Full evaluations that the trials cost by what they changed."""
        self.naive = 0.0
        """Full evaluations that the same search would take if every candidate were a whole model."""
        self.scores: dict[tuple[Blend, ...], np.ndarray] = {}
        """Of all models that were evaluated, by the mixture of every module."""
        self.on_trial = on_trial

    @property
    def best_single(self) -> dict[str, Blend]:
        """Every module from the best single snapshot."""
        return self.everywhere(single(self.problem.best_epoch))

    def everywhere(self, blend: Blend) -> dict[str, Blend]:
        """The same mixture for every module."""
        return dict.fromkeys(self.problem.modules, blend)

    def scores_N(self, modules: Modules, *, base: Modules | None = None) -> np.ndarray:
        """Score of a model on every select record, lower is better; what was asked before costs nothing.

        `base` is the model that this one was derived from by a change, which decides what the trial costs.
        """
        key = self._key(modules)
        if key not in self.scores:
            cost = 1.0 if base is None else self.cost([name for name in modules if modules[name] != base[name]])
            self.spent += cost
            self.scores[key] = self.problem.score_N(self.evaluator.losses(modules, base=base))
            self.on_trial(cost)
        return self.scores[key]

    def cost(self, modules: Sequence[str]) -> float:
        """Share of a full evaluation that other weights of these modules cost; one is made if none was before."""
        return self.evaluator.cost(modules, first=self.best_single)

    def is_known(self, modules: Modules) -> bool:
        """Whether a model was evaluated before in this search."""
        return self._key(modules) in self.scores

    def try_swap(self, unit: str, members: Sequence[str], blend: Blend, current: Modules) -> Swap:
        """Evaluate the model at hand with other weights in one unit, and log it."""
        before_N = self.scores_N(current)
        gains_N = before_N - self.scores_N({**current, **dict.fromkeys(members, blend)}, base=current)
        swap = Swap(unit, blend, float(gains_N.mean()), z_of(gains_N[self.problem.labelled_TN.any(0)]))
        self.swaps.append(swap)
        return swap

    def _key(self, modules: Modules) -> tuple[Blend, ...]:
        return tuple(modules[name] for name in self.problem.modules)


def z_of(gains_N: np.ndarray) -> float:
    """Mean over its standard error; 0 where nothing differs."""
    spread = float(gains_N.std(ddof=1)) if len(gains_N) > 1 else 0.0
    mean = float(gains_N.mean())
    if spread == 0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return mean / (spread / math.sqrt(len(gains_N)))

"""Snapshots whose losses are known: every module of every epoch adds its own amount to every record's loss."""

from collections.abc import Sequence

import numpy as np

from redheart.core.config import SelectConfig
from redheart.select.problem import SelectionProblem
from redheart.select.search import Modules, Search
from redheart.snapshots.blend import single

FINAL = "heads.a"


class Additive:
    """Implements `redheart.select.search.Evaluator`.

    Args:
        modules: names of the modules.
        epochs: of the snapshots.
        num_records: N of each of the two halves.
        noise: standard deviation of what a module of an epoch adds to a record; its mean over all records is zero.
        planted: by module and epoch, what it adds to the loss of every record.
        seed: of the noise.
    """

    def __init__(
        self,
        modules: Sequence[str],
        epochs: Sequence[int],
        *,
        num_records: int,
        noise: float,
        planted: dict[tuple[str, int], float] | None = None,
        seed: int,
        costs: dict[str, float] | None = None,
    ) -> None:
        random = np.random.default_rng(seed)
        self.modules, self.epochs = tuple(modules), tuple(epochs)
        self.base_N = random.gamma(2.0, 0.5, 2 * num_records)
        self.added = {
            (module, epoch): random.normal(0, noise, 2 * num_records) + (planted or {}).get((module, epoch), 0.0)
            for module in modules
            for epoch in epochs
        }
        self.num_records = num_records
        self.costs = costs or dict.fromkeys(modules, 0.1)
        self.evaluations = 0.0

    def all_losses_N(self, choice: Modules) -> np.ndarray:
        """Losses on the select records, then on the confirm records."""
        total_N = self.base_N.copy()
        for module, blend in choice.items():
            for epoch, weight in zip(blend.epochs, blend.weights, strict=True):
                total_N += weight * self.added[module, epoch]
        return total_N

    def confirm_N(self, choice: Modules) -> np.ndarray:
        return self.all_losses_N(choice)[self.num_records :]

    def losses(self, choice: Modules, *, base: Modules | None = None) -> dict[str, np.ndarray]:
        self.evaluations += 1
        return {FINAL: self.all_losses_N(choice)[: self.num_records]}

    def cost(self, modules: Sequence[str], *, first: Modules) -> float:
        return min(1.0, sum(self.costs[name] for name in modules))

    def problem(self, *, own: bool = False) -> SelectionProblem:
        """What a strategy would be given; with `own` every module also predicts by itself, as most real ones do."""
        singles = [dict.fromkeys(self.modules, single(epoch)) for epoch in self.epochs]
        losses_EN = np.stack([self.all_losses_N(choice)[: self.num_records] for choice in singles])
        predictors = {FINAL: losses_EN}
        if own:
            predictors |= {
                module: np.stack(
                    [(self.base_N + self.added[module, epoch])[: self.num_records] for epoch in self.epochs]
                )
                for module in self.modules
                if module != FINAL
            }
        return SelectionProblem(
            epochs=self.epochs,
            modules=self.modules,
            groups={module: (module,) for module in self.modules},
            losses_EN=predictors,
            train_losses_E={name: losses.mean(1) for name, losses in predictors.items()},
            finals=(FINAL,),
        )

    def search(self, *, own: bool = False, **settings: object) -> Search:
        return Search(self.problem(own=own), self, SelectConfig(**settings))  # type: ignore[arg-type]
